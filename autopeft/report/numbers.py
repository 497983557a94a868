"""Numbers as a person reads them; tables, pictures and sentences write them alike. Torch-free."""

from __future__ import annotations

NONE = "–"


def quality(value: float | None, places: int = 3) -> str:
    """Returns a metric: "0.742"; "–" for None."""
    return NONE if value is None else f"{value:.{places}f}".replace("-", "−")


def difference(value: float | None) -> str:
    """Returns a difference of metrics with its sign: "+0.012", "−0.004", "0.000"."""
    if value is None:
        return NONE
    text = f"{abs(value):.3f}"
    return text if float(text) == 0.0 else ("+" if value > 0 else "−") + text


def count(value: int) -> str:
    """Returns a whole number with thousands marked: "73,728"."""
    return f"{value:,}"


def short(value: float) -> str:
    """Returns a power of ten or other number in few characters: "500", "10k", "2.5M".

    Example:
        >>> [short(x) for x in (0, 500, 10_000, 2_500_000)]
        ['0', '500', '10k', '2.5M']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    """Returns a percentage with two significant digits: "0.33 %", "100 %".

    Example:
        >>> [percent(x) for x in (0.0, 0.00123, 0.325, 4.84, 100.0)]
        ['0 %', '0.0012 %', '0.33 %', '4.8 %', '100 %']
    """
    if value >= 9.95:
        return f"{value:.0f} %"
    digits = f"{value:.1e}"
    places = max(0, 1 - int(digits.split("e")[1])) if value else 0
    return f"{value:.{places}f} %"


def rate(value: float) -> str:
    """Returns a learning rate: "0.003", "1e-04" as "0.0001"."""
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    """Returns a time: "0.4 s", "14 s", "3 min 20 s", "2 h 5 min"; "–" for None.

    Example:
        >>> [duration(x) for x in (0.42, 14.2, 200, 7500)]
        ['0.4 s', '14 s', '3 min 20 s', '2 h 5 min']
    """
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def roughly(seconds: float) -> str:
    """Returns an estimated time with two digits, in one unit: "42 s", "3.4 min", "16 min", "2.1 h".

    Example:
        >>> [roughly(x) for x in (0.42, 42.4, 204, 990, 7500, 123_456)]
        ['0.4 s', '42 s', '3.4 min', '16 min', '2.1 h', '34 h']
    """
    unit, name = (1.0, "s") if seconds < 60.0 else (60.0, "min") if seconds < 3600.0 else (3600.0, "h")
    number = seconds / unit
    return f"{number:.1f} {name}" if number < 9.95 else f"{number:.0f} {name}"


def size(number: int) -> str:
    """Returns a size of memory: "312 MB", "1.2 GB"; "–" for 0."""
    if number <= 0:
        return NONE
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def listing(names: list[str]) -> str:
    """Returns names as part of a sentence: "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
