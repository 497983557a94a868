"""Whether the front beats the baselines, said no louder than the noise allows. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import scipy  # its parts are loaded when they are first used

from autopeft.report import numbers
from autopeft.report.records import BaselineRow, Comparison, FinalRow, Noise, Outcome, TrialRow, Verdict

CONFIDENCE = 0.95


@dataclass(frozen=True)
class _Evidence:
    """Two qualities that may be compared: on one split, with the seeds behind each."""

    rival: TrialRow
    difference: float
    margin: float | None
    split: str
    seeds: int


def judge(
    front: Sequence[TrialRow],
    baselines: Sequence[BaselineRow],
    finals: Sequence[FinalRow],
    noise: Sequence[Noise],
    finished: int,
) -> Verdict:
    """Compares the front with every completed baseline.

    A baseline is held against the front's configurations with no more parameters: the one of the best validation
    quality. Where both were trained on fresh seeds, their means on the selection split decide, which neither the
    search nor the choice has seen; otherwise the validation quality of the one run each has. A difference counts as
    proven where it exceeds what seeds explain (two-sided t interval at 95 % of the pooled deviation).

    Args:
        front: The front.
        baselines: All baselines.
        finals: Runs on fresh seeds.
        noise: Noise of a seed by split.
        finished: Number of search trials in a final state.
    """
    if not front:
        text = "No search trial has finished yet, so there is no front."
        if finished:
            text = f"None of the {finished} finished search trials completed, so there is no front."
        return Verdict(text)
    completed = [b for b in baselines if b.quality is not None]
    if not completed:
        return Verdict(
            "No baseline was trained, so this report cannot say whether the search found more than a usual choice."
        )
    comparisons = tuple(_compare(b, front, finals, noise) for b in completed)
    return Verdict(_text(comparisons, front), comparisons)


def _compare(
    baseline: BaselineRow, front: Sequence[TrialRow], finals: Sequence[FinalRow], noise: Sequence[Noise]
) -> Comparison:
    quality = _known(baseline.quality)
    dominates = tuple(
        row.trial
        for row in front
        if quality >= _known(row.quality)
        and baseline.parameters <= row.parameters
        and (quality, -baseline.parameters) != (row.quality, -row.parameters)
    )
    rivals = [row for row in front if row.parameters <= baseline.parameters]
    if not rivals:
        best = max(front, key=lambda row: _known(row.quality))
        gain = _known(best.quality) - quality
        outcome: Outcome = "incomparable" if gain > 0 else "unbeaten"
        return Comparison(
            baseline=baseline.name,
            trial=baseline.trial,
            outcome=outcome,
            proven=False,
            rival=best.trial,
            difference=gain,
            margin=None,
            split="validation",
            seeds=0,
            dominates=dominates,
            sentence=_smaller(best, gain),
        )
    evidence = _evidence(baseline, rivals, finals, noise)
    outcome, proven = _outcome(evidence, baseline)
    return Comparison(
        baseline=baseline.name,
        trial=baseline.trial,
        outcome=outcome,
        proven=proven,
        rival=evidence.rival.trial,
        difference=evidence.difference,
        margin=evidence.margin,
        split=evidence.split,
        seeds=evidence.seeds,
        dominates=dominates,
        sentence=_sentence(outcome, evidence, baseline),
    )


def _evidence(
    baseline: BaselineRow, rivals: Sequence[TrialRow], finals: Sequence[FinalRow], noise: Sequence[Noise]
) -> _Evidence:
    by_trial = {f.of: s for f in finals if (s := f.on("selection")) is not None}
    trained = [row for row in rivals if row.trial in by_trial]
    deviations = {n.split: n for n in noise}
    if baseline.trial in by_trial and trained:
        rival = max(trained, key=lambda row: (_known(row.quality), -row.parameters))
        ours, theirs = by_trial[rival.trial], by_trial[baseline.trial]
        runs = (len(ours.values), len(theirs.values))
        margin = _margin(deviations.get("selection"), *runs)
        return _Evidence(rival, ours.mean - theirs.mean, margin, "selection", min(runs))
    rival = max(rivals, key=lambda row: (_known(row.quality), -row.parameters))
    difference = _known(rival.quality) - _known(baseline.quality)
    return _Evidence(rival, difference, _margin(deviations.get("validation"), 1, 1), "validation", 0)


def _margin(noise: Noise | None, ours: int, theirs: int) -> float | None:
    """Half the width of the confidence interval of a difference of two means, for equal deviations."""
    if noise is None:
        return None
    quantile = float(scipy.special.stdtrit(noise.freedom, 0.5 + CONFIDENCE / 2))
    return quantile * noise.deviation * math.sqrt(1 / ours + 1 / theirs)


def _outcome(evidence: _Evidence, baseline: BaselineRow) -> tuple[Outcome, bool]:
    difference, margin = evidence.difference, evidence.margin
    if margin is not None and abs(difference) <= margin:
        return "level", False
    if difference == 0:
        return ("beaten" if evidence.rival.parameters < baseline.parameters else "level"), False
    return ("beaten" if difference > 0 else "unbeaten"), margin is not None


def _sentence(outcome: Outcome, evidence: _Evidence, baseline: BaselineRow) -> str:
    source = (
        f"mean of {evidence.seeds} or more fresh seeds on the {evidence.split} split"
        if evidence.seeds > 1
        else "one fresh seed each"
        if evidence.seeds
        else "one run each"
    )
    noise = (
        "the noise of a seed was not measured"
        if evidence.margin is None
        else f"seeds alone explain up to {evidence.margin:.3f}"
    )
    found = {"beaten": "Beaten by", "unbeaten": "Not beaten by", "level": "Level with"}[outcome]
    return (
        f"{found} trial {evidence.rival.trial}: {numbers.difference(evidence.difference)} with "
        f"{_fewer(evidence.rival.parameters, baseline.parameters)} ({source}; {noise})."
    )


def _fewer(ours: int, theirs: int) -> str:
    if ours == theirs:
        return "as many parameters"
    if ours == 0:
        return "no parameters"
    ratio = theirs / ours
    return f"{ratio:.3g} times fewer parameters" if ratio >= 1.95 else f"{100 * (1 - 1 / ratio):.2g} % fewer parameters"


def _smaller(best: TrialRow, gain: float) -> str:
    cost = f"trial {best.trial}, with {numbers.count(best.parameters)} parameters"
    if gain > 0:
        return f"Smaller than the whole front; its best, {cost}, gains {numbers.difference(gain)} (one run each)."
    return f"Not beaten: smaller than the whole front and no worse; its best is {cost} ({numbers.difference(gain)})."


def _text(comparisons: Sequence[Comparison], front: Sequence[TrialRow]) -> str:
    def names(outcome: Outcome, proven: bool | None = None) -> list[str]:
        return [c.baseline for c in comparisons if c.outcome == outcome and proven in (None, c.proven)]

    parts = []
    if beaten := names("beaten", True):
        parts.append(f"The search beat {numbers.listing(beaten)}, by more than seeds explain.")
    if ahead := names("beaten", False):
        parts.append(f"On one run each, the front is ahead of {numbers.listing(ahead)}.")
    if lost := names("unbeaten", True):
        parts.append(f"The search did not beat {numbers.listing(lost)}.")
    if behind := names("unbeaten", False):
        parts.append(f"The search did not beat {numbers.listing(behind)}, on one run each.")
    if level := names("level"):
        be = "is" if len(level) == 1 else "are"
        parts.append(f"{numbers.listing(level)} {be} level with the front: no difference beyond the noise.")
    if aside := names("incomparable"):
        be = "has" if len(aside) == 1 else "have"
        what = "fewer parameters than anything on the front, and lower quality than its best"
        parts.append(f"{numbers.listing(aside)} {be} {what}.")
    dominated = {number for c in comparisons for number in c.dominates}
    if dominated:
        by = [c.baseline for c in comparisons if c.dominates]
        what = "the whole front" if len(dominated) == len(front) else f"{len(dominated)} of the front's {len(front)}"
        end = "" if len(dominated) == len(front) else " configurations"
        verb = "dominates" if len(by) == 1 else "together dominate"
        parts.append(f"By the measured numbers alone, {numbers.listing(by)} {verb} {what}{end}.")
    if any(c.margin is None and c.outcome in ("beaten", "unbeaten", "level") for c in comparisons):
        parts.append("The noise of a seed was not measured here, so small differences prove nothing.")
    return " ".join(parts)


def _known(value: float | None) -> float:
    assert value is not None
    return value
