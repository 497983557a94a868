"""Durations and sizes as people write them: "2h", "1h30m", "8GB". Torch-free."""

from __future__ import annotations

import math
import re

from autopeft.errors import InputError

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_BYTES = {"b": 1, "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


def seconds_of(value: str | float, where: str = "duration") -> float:
    """Returns a duration in seconds.

    Args:
        value: Seconds, or numbers with the units d, h, m (or min), s, one after the other.
        where: What the error message names.

    Raises:
        InputError: It is neither, or not above 0.

    Example:
        >>> seconds_of("1h30m"), seconds_of("2.5 min"), seconds_of(45)
        (5400.0, 150.0, 45.0)
    """
    text = str(value).strip().lower()
    parts = re.findall(rf"{_NUMBER}\s*(d|h|min|m|s)\s*", text)
    if parts and re.fullmatch(rf"(?:{_NUMBER}\s*(?:d|h|min|m|s)\s*)+", text):
        return _positive(sum(float(number) * _SECONDS[unit] for number, unit in parts), value, where, "2h, 90m or 45s")
    return _positive(_float(text), value, where, "2h, 90m or 45s")


def bytes_of(value: str | float, where: str = "size") -> int:
    """Returns a size in bytes; GB is 10^9, GiB 2^30.

    Args:
        value: Bytes, or a number with a unit.
        where: What the error message names.

    Raises:
        InputError: It is neither, or not above 0.

    Example:
        >>> bytes_of("8GB"), bytes_of("1.5 GiB"), bytes_of(4096)
        (8000000000, 1610612736, 4096)
    """
    text = str(value).strip().lower()
    found = re.fullmatch(rf"{_NUMBER}\s*([kmgt]i?)?b?", text)
    if not found:
        return int(_positive(_float(text), value, where, "8GB or 512MiB"))
    unit = found.group(2) or ""
    return int(_positive(float(found.group(1)) * (_BINARY.get(unit) or _BYTES[unit]), value, where, "8GB or 512MiB"))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _positive(number: float, value: object, where: str, like: str) -> float:
    if not 0.0 < number < math.inf:
        raise InputError(f"{value!r} is no {where.rsplit('.', 1)[-1]}", where=where, cure=f"write {like}")
    return number
