"""The pictures of a report: the front, its growth over the trials, the learning curves. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from autopeft.report import numbers
from autopeft.report.axes import Axis, decades, figure, frame, line, linear, text, titled, whole
from autopeft.report.records import BaselineRow, Summary, TrialRow

DRAWN = 1500
"""Most points or curves a picture shows, evenly chosen; the front is always drawn whole."""

Box = tuple[float, float, float, float]


def front_svg(summary: Summary, width: int = 760, height: int = 440) -> str:
    """Returns the front as a self-contained SVG: stored parameters (log) against quality.

    Every completed search trial is a grey dot, the front a staircase, each baseline a labelled diamond; a baseline
    without inserted parameters is a dashed line, since a log axis has no zero. Where the noise of a seed is known, the
    front carries bars of one standard deviation. Trials far below the rest sit at the lower edge, as triangles.

    Args:
        summary: The study's summary.
        width: In pixels; the picture scales.
        height: In pixels.

    Example:
        >>> Path("front.svg").write_text(front_svg(summarise(study)))  # doctest: +SKIP
    """
    searched = [r for r in summary.trials if r.purpose == "search" and r.quality is not None]
    rivals = [b for b in summary.baselines if b.quality is not None]
    label = f"Pareto front of {len(summary.front)} configurations out of {len(searched)} completed trials"
    everything: list[TrialRow | BaselineRow] = [*searched, *rivals]
    x = decades([r.parameters for r in everything if r.parameters > 0], 62, width - 24)
    floor = _floor([_q(r) for r in searched], [_q(r) for r in summary.front])
    y = linear([max(_q(r), floor) for r in everything], height - 66, 34)
    shares = [numbers.percent(100 * 10**tick / summary.definition.backbone_parameters) for tick, _ in x.ticks]
    parts = frame(x, y, "stored parameters, and their share of the backbone", _metric(summary), shares)
    if not everything:
        parts.append(text((62 + width - 24) / 2, height / 2, "no trial has completed yet", "soft", "middle"))
        return figure(width, height, label, parts)
    low = [r for r in searched if _q(r) < floor]
    parts += [_dot(r, x, y, floor) for r in _some([r for r in searched if not r.on_front])]
    parts += _staircase(summary.front, x, y)
    parts += _bars(summary, x, y)
    parts += [_dot(r, x, y, floor) for r in summary.front]
    parts += _rivals(rivals, summary, x, y)
    if low:
        note = f"▼ {len(low)} of {len(searched)} trials lie below"
        parts.append(text(width - 24, y.start - 8, note, "soft", "end", ' font-size="10.5"'))
    return figure(width, height, label, parts)


def anytime_svg(summary: Summary, width: int = 560, height: int = 250) -> str:
    """Returns the hypervolume of the front after each search trial as an SVG line."""
    values = summary.anytime.values
    x = whole(len(values), 62, width - 24)
    y = linear([0.0, *values], height - 48, 34, wanted=5, pad=0.03)
    parts = frame(x, y, "completed search trials", "hypervolume of the front")
    if values:
        points = [(x(k + 1), y(v)) for k, v in enumerate(values)]
        steps = [p for k, (px, py) in enumerate(points) for p in ([(px, points[k - 1][1])] if k else []) + [(px, py)]]
        parts.append(line(steps, "front-line"))
        title = f"{values[-1]:.4g} after {len(values)} trials"
        parts.append(titled(f'<circle class="front" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="4"/>', title))
    else:
        parts.append(text((62 + width - 24) / 2, height / 2, "no trial has completed yet", "soft", "middle"))
    return figure(width, height, "hypervolume of the front over the trials", parts)


def curves_svg(summary: Summary, width: int = 560, height: int = 250) -> str:
    """Returns the mean training loss per epoch of every search trial as an SVG, those of the front in colour."""
    rows = [
        r
        for r in summary.trials
        if r.purpose == "search" and r.share == 1.0 and len([v for v in r.curve if v is not None]) > 1
    ]
    losses = [v for r in rows for v in r.curve if v is not None]
    epochs = max((len(r.curve) for r in rows), default=2)
    x = whole(epochs, 62, width - 24)
    top = float(np.quantile(losses, 0.98)) if losses else 1.0
    y = linear([min(v, top) for v in losses], height - 48, 34, wanted=5, pad=0.03)
    parts = frame(x, y, "epoch", "mean training loss")
    if not rows:
        parts.append(text((62 + width - 24) / 2, height / 2, "no learning curve was recorded", "soft", "middle"))
    for row in [*_some([r for r in rows if not r.on_front]), *(r for r in rows if r.on_front)]:
        css = "front-line thin" if row.on_front else "cloud-line"
        points = [(x(k + 1), y(min(v, top))) for k, v in enumerate(row.curve) if v is not None]
        ending = ", ".join(numbers.quality(v) for v in row.curve)
        parts.append(titled(line(points, css), f"trial {row.trial}: {ending}\n{row.description}"))
    return figure(width, height, f"learning curves of {len(rows)} trials", parts)


def _metric(summary: Summary) -> str:
    size = summary.definition.sizes.get("validation")
    return f"{summary.definition.metric} on the validation split" + (f" ({size} examples)" if size else "")


def _q(row: TrialRow | BaselineRow) -> float:
    assert row.quality is not None
    return row.quality


def _floor(qualities: Sequence[float], front: Sequence[float]) -> float:
    """Returns the quality below which trials would squeeze the picture: Tukey's lower fence, never above the front."""
    if len(qualities) < 8:
        return min(qualities, default=0.0)
    q1, q3 = np.quantile(qualities, [0.25, 0.75])
    return min(float(q1 - 1.5 * (q3 - q1)), *front)


def _some(rows: Sequence[TrialRow]) -> Sequence[TrialRow]:
    return rows if len(rows) <= DRAWN else [rows[i] for i in np.linspace(0, len(rows) - 1, DRAWN).astype(int)]


def _at(parameters: int, x: Axis) -> float:
    return x(math.log10(parameters)) if parameters > 0 else x.start


def _dot(row: TrialRow, x: Axis, y: Axis, floor: float) -> str:
    cx, cy = _at(row.parameters, x), y(max(_q(row), floor))
    title = (
        f"trial {row.trial}: {numbers.quality(row.quality)} with {numbers.count(row.parameters)} parameters "
        f"({numbers.percent(row.percent)})\n{row.description}"
    )
    if _q(row) < floor:
        bottom = y.start - 2
        shape = f'<path class="cloud" d="M{cx - 4:.1f} {bottom - 7:.1f}h8l-4 7z"/>'
    else:
        size, css = (5, "front") if row.on_front else (3.2, "cloud")
        shape = f'<circle class="{css}" cx="{cx:.1f}" cy="{cy:.1f}" r="{size}"/>'
    return titled(shape, title)


def _staircase(front: Sequence[TrialRow], x: Axis, y: Axis) -> list[str]:
    points = _corners(front, x, y)
    return [line(points, "front-line")] if points else []


def _corners(front: Sequence[TrialRow], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """The border of what the front dominates; with a third objective some steps would go down and are left out."""
    best, points = -math.inf, list[tuple[float, float]]()
    for row in sorted(front, key=lambda r: (r.parameters, -_q(r))):
        if _q(row) > best:
            here = _at(row.parameters, x)
            points += [(here, y(best))] if points else []
            best = _q(row)
            points.append((here, y(best)))
    return [*points, (x.end, points[-1][1])] if points else []


def _bars(summary: Summary, x: Axis, y: Axis) -> list[str]:
    noise = summary.noise_on("validation")
    if noise is None:
        return []
    parts = []
    for row in summary.front:
        here = _at(row.parameters, x)
        ends = [(here, min(max(y(_q(row) + s * noise.deviation), y.end), y.start)) for s in (-1, 1)]
        parts.append(line(ends, "bar"))
    return parts


def _rivals(rivals: Sequence[BaselineRow], summary: Summary, x: Axis, y: Axis) -> list[str]:
    """Markers first, then each label where it hides least."""
    marks = [(_at(b.parameters, x), y(_q(b))) for b in rivals]
    taken = [_around(_at(r.parameters, x), y(_q(r)), 6) for r in summary.front]
    taken += [_around(cx, cy, 6) for cx, cy in marks]
    corners = _corners(summary.front, x, y)
    taken += [
        (min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]) + 2, max(a[1], b[1]) + 2) for a, b in pairwise(corners)
    ]
    shapes, labels = [], []
    for rival, (cx, cy) in zip(rivals, marks, strict=True):
        title = (
            f"{rival.name}: {numbers.quality(rival.quality)} with {numbers.count(rival.parameters)} parameters "
            f"({numbers.percent(rival.percent)})\n{rival.description}"
        )
        if rival.parameters > 0:
            shape = f'<path class="rival" d="M{cx:.1f} {cy - 6:.1f}l6 6l-6 6l-6 -6z"/>'
        else:
            shape = line([(x.start, cy), (x.end, cy)], "rival-line")
        shapes.append(titled(shape, title))
        name = rival.name if len(rival.name) <= 30 else rival.name[:29] + "…"
        name += "" if rival.parameters else " (no parameters)"
        px, py, box = min(_places(cx, cy, name, rival.parameters > 0), key=lambda place: _cost(place[2], taken, x, y))
        taken.append(box)
        labels.append(text(px, py, name, "rival-text"))
    return shapes + labels


def _places(cx: float, cy: float, name: str, marker: bool) -> Iterator[tuple[float, float, Box]]:
    """Yields left end, base line and box of a label, the best place first."""
    wide = 6.4 * len(name)
    if marker:
        starts = [(cx + 10, cy + 4), (cx - 10 - wide, cy + 4)]
        starts += [(cx + dx, cy + dy) for dy in (-11, 20, -25, 34) for dx in (-wide / 2, 6, -wide - 6)]
    else:
        starts = [(cx + 6 + shift, cy + dy) for shift in (0, 120, 240, 360, 480) for dy in (-6, 15)]
    for px, py in starts:
        yield px, py, (px, py - 10, px + wide, py + 3)


def _cost(box: Box, taken: Sequence[Box], x: Axis, y: Axis) -> float:
    """Area a label would hide, and much more for what would leave the picture."""
    hidden = sum(
        max(0.0, min(box[2], b[2]) - max(box[0], b[0])) * max(0.0, min(box[3], b[3]) - max(box[1], b[1])) for b in taken
    )
    outside = max(0.0, x.start - box[0]) + max(0.0, box[2] - x.end - 18) + max(0.0, y.end - box[1])
    return hidden + 1e3 * (outside + max(0.0, box[3] - y.start))


def _around(cx: float, cy: float, reach: float) -> Box:
    return (cx - reach, cy - reach, cx + reach, cy + reach)
