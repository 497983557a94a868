"""Axes and pieces of hand-written SVG. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from autopeft.report import numbers

# Colours by role, for light and dark paper; of similar lightness, and told apart by shape as well.
STYLE = """<style>
.ap{--paper:#ffffff;--ink:#22252a;--soft:#5f6670;--grid:#e6e8ec;--cloud:#9aa2ad;--front:#1d5fa8;--rival:#b3471d;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:12px}
@media (prefers-color-scheme:dark){.ap{--paper:#15181d;--ink:#e4e6ea;--soft:#a2a9b4;--grid:#2b3038;--cloud:#6d7683;
--front:#6cb0f5;--rival:#f0946b}}
@media print{.ap{--paper:#ffffff;--ink:#000000;--soft:#444444;--grid:#dddddd;--cloud:#8a8a8a;--front:#1d5fa8;
--rival:#b3471d}}
.ap .paper{fill:var(--paper)}.ap text{fill:var(--ink)}.ap .soft{fill:var(--soft)}
.ap .grid{stroke:var(--grid);fill:none}.ap .axis{stroke:var(--soft);fill:none}
.ap .cloud{fill:var(--cloud);fill-opacity:.55}.ap .cloud-line{stroke:var(--cloud);fill:none;stroke-opacity:.45}
.ap .front{fill:var(--front);stroke:var(--paper)}.ap .front-line{stroke:var(--front);fill:none;stroke-width:2}
.ap .thin{stroke-width:1.2;stroke-opacity:.8}.ap .bar{stroke:var(--front);stroke-width:1.2}
.ap .rival{fill:var(--rival);stroke:var(--paper)}.ap .rival-line{stroke:var(--rival);fill:none;stroke-dasharray:5 4}
.ap text.rival-text{fill:var(--rival);paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.ap text{font-variant-numeric:tabular-nums}
</style>"""


@dataclass(frozen=True)
class Axis:
    """A linear map from values to pixels, with its ticks.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Pixel of `low`.
        end: Pixel of `high`.
        ticks: Pairs of value and label.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def linear(values: Sequence[float], start: float, end: float, wanted: int = 6, pad: float = 0.05) -> Axis:
    """Returns an axis over all values, with round ticks and labels of equal decimals.

    Example:
        >>> [label for _, label in linear([0.61, 0.74], 0, 100).ticks]
        ['0.62', '0.64', '0.66', '0.68', '0.70', '0.72', '0.74']
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * pad or abs(high) * 0.05 or 0.5
    low, high = low - room, high + room
    step = _round_step((high - low) / wanted)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((k * step, _tick(k * step, places)) for k in range(first, last + 1))
    return Axis(low, high, start, end, ticks)


def decades(values: Sequence[float], start: float, end: float) -> Axis:
    """Returns an axis for positive values, mapped by their log10: ticks at 1, (2, 5) and 10 times powers of ten."""
    logs = [math.log10(v) for v in values] or [3.0, 5.0]
    low, high = min(logs), max(logs)
    room = max(0.05 * (high - low), 0.15)
    low, high = low - room, high + room
    steps = (1,) if high - low > 2.5 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    raw = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    ticks = tuple((math.log10(v), numbers.short(v)) for v in raw if low <= math.log10(v) <= high)
    return Axis(low, high, start, end, ticks)


def whole(count: int, start: float, end: float, wanted: int = 6) -> Axis:
    """Returns an axis from 1 to `count` with ticks at whole numbers."""
    step = max(1, round(_round_step(max(count - 1, 1) / wanted)))
    marks = sorted({1, *range(step, count + 1, step)})
    return Axis(1.0, max(count, 2) + 0.0, start, end, tuple((float(k), str(k)) for k in marks))


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start", extra: str = "") -> str:
    """Returns a text element; the content is escaped."""
    names = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{names} text-anchor="{anchor}"{extra}>{clean(content)}</text>'


def line(points: Sequence[tuple[float, float]], css: str) -> str:
    """Returns an open line through pixel positions."""
    return f'<polyline class="{css}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def titled(shape: str, title: str) -> str:
    """Returns a shape with a tooltip; `shape` is our own markup, the title is escaped."""
    return f"<g>{shape}<title>{clean(title)}</title></g>"


def clean(content: str) -> str:
    """Escapes text for markup, and drops control characters, which XML does not allow at all."""
    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in content))


def figure(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    """Returns a whole SVG document; the label is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ap" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{clean(label)}">\n{STYLE}\n'
        f'<rect class="paper" width="{width}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>"
    )


def frame(x: Axis, y: Axis, x_title: str, y_title: str, second: Sequence[str] = ()) -> list[str]:
    """Returns grid, axes, tick labels and titles; `second` is one further label below each tick of x."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for value, label in y.ticks:
        parts.append(line([(left, y(value)), (right, y(value))], "grid"))
        parts.append(text(left - 8, y(value) + 4, label, "soft", "end"))
    for k, (value, label) in enumerate(x.ticks):
        parts.append(line([(x(value), bottom), (x(value), bottom + 5)], "axis"))
        parts.append(text(x(value), bottom + 19, label, "soft", "middle"))
        if second:
            parts.append(text(x(value), bottom + 34, second[k], "soft", "middle", ' font-size="10.5"'))
    parts.append(line([(left, bottom), (right, bottom)], "axis"))
    parts.append(text((left + right) / 2, bottom + (54 if second else 38), x_title, "", "middle"))
    parts.append(text(left, top - 12, y_title, "", "start"))
    return parts


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if 0.75 * rough <= m * power)


def _tick(value: float, places: int) -> str:
    return f"{value + 0.0:.{places}f}".replace("-", "−")
