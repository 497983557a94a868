"""JSON and text that a stranger may have written: read within bounds and shown as what it is.

Torch-free. A file that passes holds finite numbers below 2^63, text that UTF-8 can write, and no deep nesting: what
is done with it afterwards needs no defence against them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

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
        if not is_file(path):  # a pipe would never end
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


def is_file(path: str | Path) -> bool:
    """Says whether a path is a plain file; a name that no file can have, such as one too long, is none."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for some of those names


def is_folder(path: str | Path) -> bool:
    """Says whether a path is a folder; a name that no folder can have is none."""
    return os.path.isdir(path)  # noqa: PTH112


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


Form = Any
"""What a value has to look like, as a value: see `require_form`."""


def require_form(value: Any, form: Form, name: str = "") -> None:
    """Checks the types within a JSON value against a form.

    A form is a type (`float` takes whole numbers too; `object` takes anything), None, a tuple of forms of which one has
    to fit, a list of one form for a list, {str: form} for an object with any keys, or an object with the keys that have
    to be there. A key that ends in "?" may be absent; the key ... gives the form of all others, which are refused where
    there is none.

    Args:
        value: What was read.
        form: What it has to look like.
        name: How the value is called in messages.

    Raises:
        ValueError: Something in it is of another type, missing or unknown, a number is not finite or has more than 64
            bits, or UTF-8 cannot write a text.

    Example:
        >>> require_form({"seed": 1.5}, {"seed": int, "note?": str}, "budget")
        Traceback (most recent call last):
        ...
        ValueError: budget.seed is float, not int
    """
    if isinstance(form, tuple):
        plain = [one for one in form if not isinstance(one, list | dict)]
        nested = [one for one in form if isinstance(one, list | dict)]
        if nested and isinstance(value, list | tuple | Mapping):
            require_form(value, nested[0], name)
        elif not any(_is(value, one) for one in plain):
            _refuse(value, form, name)
        else:
            _require_plain_value(value, name)
    elif isinstance(form, list):
        if not isinstance(value, list | tuple):
            _refuse(value, form, name)
        for i, item in enumerate(value):
            require_form(item, form[0], f"{name}[{i}]")
    elif isinstance(form, dict):
        _require_keys(value, form, name)
    elif not _is(value, form):
        _refuse(value, form, name)
    else:
        _require_plain_value(value, name)


def _require_keys(value: Any, form: Mapping[Any, Form], name: str) -> None:
    if not isinstance(value, Mapping):
        _refuse(value, dict, name)
    if str in form:
        for key, item in value.items():
            require_form(key, str, f"a key of {name}")
            require_form(item, form[str], f"{name}.{key}")
        return
    plain = {key.removesuffix("?"): (key, inner) for key, inner in form.items() if key is not ...}
    for key, item in value.items():
        if key not in plain and ... not in form:
            raise ValueError(f"{name} has no key {ascii(key)[:60]}")
        require_form(item, plain[key][1] if key in plain else form[...], f"{name}.{key}" if name else f"{key}")
    for key, (spelled, _) in plain.items():
        if key not in value and not spelled.endswith("?"):
            raise ValueError(f"{name or 'it'} lacks '{key}'")


def _is(value: Any, kind: Form) -> bool:
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return value is None if kind is None else isinstance(value, kind)


def _require_plain_value(value: Any, name: str) -> None:
    if (isinstance(value, int) and not -_MOST <= value < _MOST) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"{name} is a number out of range")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is no text in UTF-8") from None


def _refuse(value: Any, form: Form, name: str) -> NoReturn:
    wanted = " or ".join(_word(one) for one in (form if isinstance(form, tuple) else (form,)))
    raise ValueError(f"{name or 'it'} is {type(value).__name__}, not {wanted}")


def _word(form: Form) -> str:
    if isinstance(form, dict) or form is dict:
        return "an object"
    return "a list" if isinstance(form, list) else "null" if form is None else str(form.__name__)


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
