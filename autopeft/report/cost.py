"""What a study cost, from its trials and the times of its events. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopeft.report.records import CostRow, CostTotals
from autopeft.study.database import StudyEvent
from autopeft.trial import Trial, TrialStatus

PAUSE_SECONDS = 60.0
"""A longer time without a running trial is a pause, not a cost."""

_ENDS = frozenset({"completed", "pruned", "failed"})


def cost_totals(trials: Sequence[Trial], events: Iterable[StudyEvent]) -> CostTotals:
    """Returns sums by purpose, and what the events tell of time outside the trials.

    Args:
        trials: All trials.
        events: All events, in order.
    """
    ended = [t for t in trials if t.status.final]
    rows = [_row(p, [t for t in ended if t.proposal.purpose == p]) for p in ("baseline", "search", "final")]
    spans = _spans(events)
    if not spans:
        return CostTotals((*rows, _row("all", ended)), None, None, None)
    busy, between, end = 0.0, 0.0, None
    for _, began, ended_at in sorted(spans, key=lambda span: span[1:]):
        if end is not None and 0.0 < began - end <= PAUSE_SECONDS:
            between += began - end
        busy += max(0.0, ended_at - (began if end is None else max(began, end)))
        end = ended_at if end is None else max(end, ended_at)
    completed = {t.number: t.cost.seconds for t in trials if t.status is TrialStatus.COMPLETED}
    last = {number: ended_at - began for number, began, ended_at in spans}
    overhead = sum(max(0.0, last[n] - seconds) for n, seconds in completed.items() if n in last)
    return CostTotals((*rows, _row("all", ended)), busy, between, overhead)


def rung_seconds(plan: Sequence[tuple[float, int]], searched: Iterable[Trial]) -> dict[float, float]:
    """Returns the mean time of a trial of each rung by its share of the budget, where any trial tells; {} for none.

    A rung none of whose trials has completed is reckoned from the others, by the part of the steps that is its own.

    Args:
        plan: Rungs of the search (`Searcher.plan`).
        searched: Search trials.
    """
    shares = [share for share, _ in plan]
    own = {share: share - before for before, share in zip([0.0, *shares], shares, strict=False)}
    seconds: dict[float, list[float]] = {}
    for trial in searched:
        if trial.status is TrialStatus.COMPLETED:
            seconds.setdefault(trial.proposal.budget.share, []).append(trial.cost.seconds)
    known = {share: sum(found) / len(found) for share, found in seconds.items() if share in own}
    if not known:
        return {}
    rate = sum(known.values()) / sum(own[share] for share in known)
    return {share: known.get(share, rate * own[share]) for share in shares}


def seconds_left(
    plan: Sequence[tuple[float, int]], searched: Sequence[Trial], left: int, promotions: int
) -> float | None:
    """Returns the time that the rest of a search takes one worker; None where no trial tells how long one takes.

    Args:
        plan: Rungs of the search (`Searcher.plan`).
        searched: Search trials.
        left: Configurations that have yet to end their first trial.
        promotions: Trials that continue others and have yet to end, at most.

    Example:
        >>> seconds_left(((1.0, 60),), [], 60, 0)
    """
    means = rung_seconds(plan, searched)
    if not means:
        return None
    (first, _), *later = plan
    total = left * means[first]
    for share, planned in later:
        ended = sum(t.proposal.budget.share == share and t.status.final for t in searched)
        count = min(promotions, max(0, planned - ended))
        total, promotions = total + count * means[share], promotions - count
    return total


def _row(purpose: str, trials: Sequence[Trial]) -> CostRow:
    return CostRow(
        purpose=purpose,
        trials=len(trials),
        cpu_seconds=sum(t.cost.cpu_seconds for t in trials),
        seconds=sum(t.cost.seconds for t in trials),
        peak_bytes=max((t.cost.peak_bytes for t in trials), default=0),
    )


def _spans(events: Iterable[StudyEvent]) -> list[tuple[int, float, float]]:
    """Returns number, begin and end of every trial's last run; an interrupted run may have been noticed days later."""
    began: dict[int, float] = {}
    spans = []
    for event in events:
        if event.trial is None:
            continue
        if event.kind == "running":
            began[event.trial] = event.time
        elif event.kind in _ENDS and event.trial in began:
            start = began.pop(event.trial)
            spans.append((event.trial, start, max(start, event.time)))
    return spans
