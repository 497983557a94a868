"""Where a worker computes, and what must not make it wait there."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device_of_worker() -> torch.device:
    """Returns the device a job runs on: the first that its process may see, or the CPU where there is none.

    An executor says which a worker may see, through CUDA_VISIBLE_DEVICES.

    Example:
        >>> device_of_worker().type in ("cuda", "cpu")
        True
    """
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def reading(values: torch.Tensor) -> Callable[[], list[float]]:
    """Begins to read numbers, shape (n,); the result gives them.

    On CUDA that waits only for what was launched before this call: launch the backward pass in between, and the device
    is never idle. On a CPU they are read at once.

    Example:
        >>> reading(torch.tensor([0.5]))()
        [0.5]
    """
    if values.device.type != "cuda":
        found: list[float] = values.detach().tolist()
        return lambda: found
    kept = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    kept.copy_(values.detach(), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        event.synchronize()
        numbers: list[float] = kept.tolist()
        return numbers

    return read


def begin_device_peak(device: torch.device) -> None:
    """Measures the peak of the device's memory from now on; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak_bytes(device: torch.device) -> int:
    """Returns the most bytes that tensors had on the device since `begin_device_peak`; 0 for a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
