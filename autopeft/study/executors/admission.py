"""Which jobs may begin: what can never run is refused, what does not fit now waits. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from autopeft.study.executors import memory
from autopeft.study.executors.base import Device, Resources
from autopeft.study.executors.memory import as_text


def refusal(resources: Resources, devices: Sequence[Device], memory_limit: int | None = None) -> str | None:
    """Says why a job can never run here, with the numbers; None where it can.

    Args:
        resources: What it asks for.
        devices: What the executor has; empty where it looks after none.
        memory_limit: Bytes one worker process may have, or None.
    """
    wanted = resources.memory
    if devices and resources.devices:
        if resources.devices > len(devices):
            return f"it asks for {resources.devices} devices and there are {len(devices)}"
        large = [device for device in devices if _holds(device, wanted)]
        if len(large) < resources.devices:
            most = max(device.memory for device in devices)
            beside = f" on each of {resources.devices} devices" if resources.devices > 1 else " on a device"
            return f"it needs {as_text(wanted)}{beside}; the largest of {len(devices)} has {as_text(most)}, and " + (
                f"{len(large)} {'is' if len(large) == 1 else 'are'} large enough" if large else "none is large enough"
            )
        return None
    if memory_limit is not None and wanted > memory_limit:
        return f"it needs {as_text(wanted)} of memory, and a worker may use {as_text(memory_limit)}"
    most_of_all = memory.total() if wanted else None
    if most_of_all is not None and wanted > most_of_all:
        return f"it needs {as_text(wanted)} of memory, and this machine offers {as_text(most_of_all)}"
    return None


def choose(resources: Resources, free: Sequence[Device]) -> tuple[Device, ...] | None:
    """Returns the devices for a job out of the free ones, the smallest that suffice; None where they do not."""
    suitable = [device for device in free if _holds(device, resources.memory)]
    if len(suitable) < resources.devices:
        return None
    return tuple(sorted(suitable, key=lambda device: device.memory)[: resources.devices])


def suits(resources: Resources, held: Sequence[Device]) -> bool:
    """Says whether a worker that holds these devices can take the job."""
    return len(held) == resources.devices and all(_holds(device, resources.memory) for device in held)


def fits_beside(wanted: int, claims: Collection[tuple[int, int]], own: int = 0) -> bool:
    """Says whether a job fits in the memory of the machine beside those that run.

    With none beside it, it does: waiting would free nothing.

    Args:
        wanted: Bytes it needs; 0 where unknown, which always fits.
        claims: (bytes asked for, bytes it has now) of each job that runs.
        own: Bytes that the worker which takes it has already.
    """
    if not wanted or not claims:
        return True
    free = memory.available()
    if free is None:
        return True
    return wanted - own <= free - sum(max(0, asked - has) for asked, has in claims)


def _holds(device: Device, wanted: int) -> bool:
    return not device.memory or wanted <= device.memory
