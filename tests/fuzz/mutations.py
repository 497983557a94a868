"""Mutations of files: of their bytes, and of what they say; one generator makes all draws, so a seed repeats them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

DEEP: Any = json.loads("[" * 80 + "]" * 80)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**18), 10**400,
    0.5, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf,
    "", " ", "a", "é", "\ud800", "\x00", "\x1b[2J", "a\nb", "../../x", "/dev/zero", "/dev/stdin", "<script>", "{{7*7}}",
    "9" * 50, "9" * 5000, "a" * 20000, "nan", "1e999", "0x10", "encoder.0.ffn", "encoder.99999999999.ffn",
    "encoder.0.attention", "os:system", "demo", "hf:x", "quality", "lora", "serial_adapter", "completed", "failed",
    [], {}, [[]], [None], [0] * 2000, {"": None}, {"a": {"a": {}}}, {"kind": "lora", "rank": 10**9}, DEEP,
)  # fmt: skip
TOKENS = (
    b"\x00", b"\xff", b"\n", b'"', b"{", b"[", b"}", b"-", b"1e999", b"NaN", b"null", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\x80\x04", b"PK\x03\x04", b"\x1f\x8b", b"*a", b"&a", b"!!python/object/apply:os.system", b": ", b"../",
    b"\\ud800", b"9" * 400, b"[" * 400, b"ustar\x00", b"\t", b",", b"PAR1",
)  # fmt: skip


def mutated_bytes(content: bytes, rng: Random) -> bytes:
    """Returns the bytes after 1 to 4 changes: flipped, cut, inserted, removed, repeated, overwritten."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        span = rng.choice((1, 1, 2, 4, 8, 64, 512, 4096))
        kind = rng.randrange(9)
        if kind == 0 and found:
            for _ in range(rng.choice((1, 3, 20))):
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            found[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            del found[at : at + span]
        elif kind == 4:
            found[at:at] = found[at : at + span] * rng.choice((1, 2, 50))
        elif kind == 5:
            found[at : at + span] = bytes([rng.choice((0, 0xFF, 0x80, rng.randrange(256)))]) * len(
                found[at : at + span]
            )
        elif kind == 6:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, rng.randrange(2**16), len(found)))
            found[at : at + 8] = number.to_bytes(8, rng.choice(("little", "big")))
        elif kind == 7:
            other = rng.randrange(len(found) + 1)
            found[at : at + span] = found[other : other + span]
        else:
            found[at:at] = bytes(rng.randrange(256) for _ in range(min(span, 64)))
    return bytes(found)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value within a JSON value, its own first."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:200]):
            yield from places(inner, (*path, i))


def mutated_json(value: Any, rng: Random) -> Any:
    """Returns a JSON value after 1 to 4 changes: types swapped, keys added, lost or renamed, numbers and texts bent."""
    found = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        paths = list(places(found))
        # Half of the draws by depth: a long list deep down would otherwise take them all.
        depth = rng.choice([len(p) for p in paths]) if rng.random() < 0.5 else rng.randint(0, max(map(len, paths)))
        path = rng.choice([p for p in paths if len(p) == depth])
        found = _changed(found, path, rng)
    return found


def _changed(value: Any, path: tuple[Any, ...], rng: Random) -> Any:
    if not path:
        return _other(value, rng)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    last, kind = path[-1], rng.randrange(8)
    if kind == 0 and isinstance(holder, dict):
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", "kind", "name", "é", "\x00", "trial", "path"))] = copy.deepcopy(holder[last])
    elif kind == 2 and isinstance(holder, dict):
        holder[f"{last}{rng.choice(('x', '_', ' '))}"] = holder.pop(last)
    elif kind == 3 and isinstance(holder, list):
        del holder[last]
    elif kind == 4 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[last]))
    else:
        holder[last] = _other(holder[last], rng)
    return value


def _other(value: Any, rng: Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return [value]
    if kind == 1:
        return {"x": value}
    if kind == 2:
        return repr(value)[:5000] if not isinstance(value, int) or abs(value) < 2**64 else "9"
    if isinstance(value, bool) or value is None or kind > 5:
        return copy.deepcopy(rng.choice(ODD))
    if isinstance(value, int | float):
        return rng.choice(
            (value + 1, -value, value * 10**6, value * 10**20, value / 3 if abs(value) < 1e300 else 0, str(value))
        )
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return (
            value[:at]
            + rng.choice(("", "x", "\x00", "é", "\ud800", "../", ".", " ", "0", "999999999999"))
            + value[at + 1 :]
        )
    if isinstance(value, dict) and value and rng.random() < 0.5:
        return list(value.values())
    return copy.deepcopy(rng.choice(ODD))


def dumped(value: Any) -> bytes:
    """Returns the JSON of a value; numbers that are not finite as Python writes them, half characters escaped."""
    return json.dumps(value).encode()
