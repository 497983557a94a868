"""What the processor of this machine can do. Torch-free."""

from __future__ import annotations

from pathlib import Path

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of a processor with instructions for products of bfloat16: x86 with AVX-512 or AMX, and ARM."""
_FLAGS = Path("/proc/cpuinfo")


def has_bfloat16(path: Path = _FLAGS) -> bool:
    """Says whether the processor multiplies bfloat16 by instructions of its own; without them it is slower by far.

    Args:
        path: Where Linux tells the processor's flags; other systems do not, and then the answer is no.

    Example:
        >>> has_bfloat16(Path("/there/is/no/such/file"))
        False
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    told = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool(told) and all(BFLOAT16.intersection(flags) for flags in told)
