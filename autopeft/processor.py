"""What the processor of this machine can do. Torch-free."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of a processor with instructions for products of bfloat16: x86 with AVX-512 or AMX, and ARM."""
_FLAGS = Path("/proc/cpuinfo")
_X86 = ("vendor_id", "cpu family", "model", "model name", "flags")
_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")
_TELLING = frozenset({*_X86, *_ARM})
"""What a line of that file begins with if it says which processor this is."""


def has_gpu(path: Path = Path("/proc/driver/nvidia/version")) -> bool:
    """Says whether trials of this machine would run on a GPU, whose instructions the processor's flags do not tell.

    Args:
        path: Where NVIDIA's driver on Linux says that it is there.

    Example:
        >>> has_gpu(Path("/there/is/no/such/file"))
        False
    """
    return path.exists()


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


def identity(path: Path = _FLAGS) -> str:
    """Returns a digest that differs between processors that may round differently: vendor, model, instructions.

    Libraries choose their kernels by all of these, so that two processors with AVX-512 need not agree in the last bit.

    Args:
        path: Where Linux tells them; elsewhere it is what Python knows of the processor.

    Example:
        >>> len(identity())
        16
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    pairs = {(name.strip(), " ".join(value.split())) for name, _, value in (line.partition(":") for line in lines)}
    told = sorted(pair for pair in pairs if pair[0] in _TELLING)
    known = told or [("processor", platform.processor())]
    return hashlib.sha256(repr([platform.machine(), *known]).encode()).hexdigest()[:16]
