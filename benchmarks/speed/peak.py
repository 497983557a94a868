"""How fast one thread multiplies matrices at best: what the arithmetic of a loop is held against."""

from __future__ import annotations

import json
import time

import torch

SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 384, 1536), (1024, 1536, 384))
"""Rows, inner and outer sizes of the products tried: two squares, and a batch through both halves of a FFN."""


def matmul_peak(seconds: float = 0.4, dtype: torch.dtype = torch.float32) -> float:
    """Returns the largest rate in FLOP per CPU second over `SIZES`, with the threads that torch uses now.

    Args:
        seconds: CPU seconds spent on each size.
        dtype: Type of both factors.
    """
    return max(_rate(size, seconds, dtype) for size in SIZES)


def _rate(size: tuple[int, int, int], seconds: float, dtype: torch.dtype) -> float:
    rows, inner, outer = size
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, outer, dtype=dtype)
    out = left @ right
    best, began = 0.0, time.process_time()
    while time.process_time() - began < seconds:
        start = time.process_time()
        for _ in range(3):
            torch.mm(left, right, out=out)
        best = max(best, 3 * 2 * rows * inner * outer / (time.process_time() - start))
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"peak": matmul_peak()}))
