"""What the executor is told that a trial needs. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.configuration import Configuration
from autopeft.estimate import memory_of
from autopeft.lengths import Texts
from autopeft.setting import Setting
from autopeft.study.executors.base import Resources


def resources_of(
    setting: Setting, texts: Texts, devices: int = 1, *, accelerated: bool = False
) -> Callable[[Configuration], Resources]:
    """Returns the function that says what a trial of a configuration needs: `Terms.resources` takes it.

    The executor refuses what no device or machine of its own can ever hold, and keeps waiting what does not fit now.

    Args:
        setting: The study's setting.
        texts: Lengths of its texts (`autopeft.lengths.lengths_of`), counted once.
        devices: Accelerators of one trial, where the executor has any.
        accelerated: Whether it has: then the memory is that on the device, which is not measured.

    Example:
        >>> study.run(terms=Terms(resources=resources_of(setting, texts)))  # doctest: +SKIP
    """

    def needed(configuration: Configuration) -> Resources:
        memory = memory_of(setting, texts, configuration)
        return Resources(devices, memory.accelerator if accelerated else memory.total)

    return needed
