"""What to do next, as functions of a study's definition and trials. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from autopeft.errors import StudyError
from autopeft.study.definition import StudyDefinition
from autopeft.trial import Problem, Proposal, Trial, TrialStatus


def propose(definition: StudyDefinition, trials: Sequence[Trial], next_number: int, n: int) -> list[Proposal]:
    """Has the searcher propose up to `n` configurations.

    It is shown the search trials and the baselines it can learn from (`informs`). Its generator is derived from the
    study's seed and the number of search trials ever proposed. Every proposal gets the study's seed for its training.

    Args:
        definition: The study.
        trials: All its trials.
        next_number: Number of the next trial.
        n: How many are wanted.

    Raises:
        StudyError: The searcher broke its contract.
    """
    problem = definition.problem()
    shown = [t for t in trials if t.proposal.purpose == "search" or informs(definition, t)]
    # Numbers of lost records count as well: the searcher must not repeat its random draws.
    proposed = next_number - sum(t.proposal.purpose != "search" for t in trials)
    history, pending = [t for t in shown if t.status.final], [t for t in shown if not t.status.final]
    proposals: list[Proposal] = []
    for wanted in [n] if definition.searcher.batched else [1] * n:
        rng = np.random.default_rng((definition.seed, proposed + len(proposals)))
        found = definition.searcher.suggest(problem, history, pending, wanted, rng)
        pending += [Trial(next_number + len(proposals) + k, proposal) for k, proposal in enumerate(found)]
        proposals += found
    _require_contract(definition, problem, shown, proposals)
    return [replace(p, seed=definition.seed, purpose="search") for p in proposals]


def _require_contract(
    definition: StudyDefinition, problem: Problem, shown: Sequence[Trial], proposals: Sequence[Proposal]
) -> None:
    """Raises StudyError where a searcher repeats a configuration, leaves the space or breaks a constraint."""
    kind = definition.searcher.kind
    seen = {(t.configuration.id, t.proposal.budget) for t in shown}
    for proposal in proposals:
        key = (proposal.configuration.id, proposal.budget)
        if key in seen or proposal.configuration not in definition.space:
            raise StudyError(f"the searcher '{kind}' repeated a configuration or left the space", where=key[0])
        if not problem.allows(proposal.configuration):
            raise StudyError(f"the searcher '{kind}' broke a constraint", where=key[0])
        seen.add(key)


def baseline_proposals(definition: StudyDefinition, trials: Iterable[Trial]) -> list[Proposal]:
    """Returns proposals of the baselines that have no trial yet."""
    present = {t.proposal.note["name"] for t in trials if t.proposal.purpose == "baseline"}
    return [
        Proposal(configuration, definition.budget, definition.seed, purpose="baseline", note={"name": name})
        for name, configuration in definition.baselines
        if name not in present
    ]


def final_proposals(chosen: Trial, seeds: Iterable[int], splits: Sequence[str]) -> list[Proposal]:
    """Returns proposals that repeat a trial's configuration with other seeds and score other splits."""
    note = {"of": chosen.number, "splits": list(splits)}
    return [replace(chosen.proposal, seed=seed, parent=None, purpose="final", note=note) for seed in seeds]


def finals_of(trials: Iterable[Trial], number: int, splits: Sequence[str]) -> dict[int, Trial]:
    """Returns by seed the final trials of a trial that score at least these splits, quality on the first of them.

    Failed ones do not count: they may be tried again.
    """
    found = {}
    for trial in trials:
        note = trial.proposal.note
        if trial.proposal.purpose == "final" and note["of"] == number and trial.status is not TrialStatus.FAILED:
            scored = note["splits"]
            if scored[0] == splits[0] and set(splits) <= set(scored):
                found[trial.proposal.seed] = trial
    return found


def informs(definition: StudyDefinition, trial: Trial) -> bool:
    """Says whether a searcher learns from a baseline.

    It does where the baseline lies in the space, and from the frozen probe: no point of a space is without modules,
    but the probe's quality is what every module has to beat.
    """
    if trial.proposal.purpose != "baseline":
        return False
    probe = trial.status is TrialStatus.COMPLETED and not trial.configuration.placements
    return probe or trial.configuration in definition.space


def counts(trial: Trial) -> bool:
    """Says whether a trial counts towards the total: a configuration at its first rung.

    One that was interrupted does too: it is run again, as that trial.
    """
    return trial.proposal.purpose == "search" and trial.proposal.parent is None


def yet_to_propose(definition: StudyDefinition, trials: Iterable[Trial]) -> int:
    """Returns how many search trials have yet to be proposed to reach the total."""
    return max(0, definition.trials - sum(counts(t) for t in trials))
