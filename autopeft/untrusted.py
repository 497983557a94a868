"""JSON and text that a stranger may have written: read within bounds and shown as what it is.

Torch-free. A file that passes holds finite numbers below 2^63, text that UTF-8 can write, and no deep nesting: what
is done with it afterwards needs no defence against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from autopeft.errors import InputError

LARGEST: Final = 64 << 20
"""Most bytes of a JSON file."""
DEEPEST: Final = 64
"""Most lists and objects within each other."""
_MOST: Final = 1 << 63


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: A plain file.
        largest: Most bytes it may have; no more are read.

    Raises:
        InputError: It cannot be read, is too large, is not UTF-8, not JSON, nested too deeply, or holds a number that
            is not finite or beyond 64 bits.

    Example:
        >>> read_json(Path("adapter_config.json"))["format"]  # doctest: +SKIP
        1
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("there is no such file")
        with path.open("rb") as stream:
            content = stream.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"it is larger than {largest:,} bytes")
        return parse_json(content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"not JSON: {reason}", where=str(path), cure="get it again") from None


def parse_json(content: bytes | str) -> Any:
    """Returns what a JSON text says; raises ValueError, saying why, as `read_json` does.

    Example:
        >>> parse_json("[1, NaN]")
        Traceback (most recent call last):
        ...
        ValueError: NaN is not a finite number
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        found = json.loads(text, parse_constant=_constant, parse_float=_float, parse_int=_integer)
        require_plain(found)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeError:
        raise ValueError("it holds bytes that are no text in UTF-8") from None
    return found


def require_plain(value: Any) -> None:
    """Raises ValueError for nesting deeper than `DEEPEST`, and UnicodeError for text that UTF-8 cannot write."""
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, Mapping):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise ValueError("it is nested too deeply")


def visible(text: str) -> str:
    r"""Returns a text without what a terminal obeys: control characters are spelled out, as are halves of characters.

    Line ends and tabs stay.

    Example:
        >>> visible("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    spaces = "\n\t\u00a0\u3000"  # these are not printable to Python, and harmless
    return "".join(c if c.isprintable() or c in spaces else ascii(c)[1:-1] for c in text)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -_MOST <= int(text) < _MOST:
        raise ValueError(f"{text[:40]} has more than 64 bits")
    return int(text)
