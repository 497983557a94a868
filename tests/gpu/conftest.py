"""Every test of this folder needs a CUDA device.

AUTOPEFT_GPU_TESTS=cpu runs those that only compare two devices on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
REASON = "no CUDA device is visible; make test-gpu runs it where there is one"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    tried = os.environ.get("AUTOPEFT_GPU_TESTS") == "cpu"
    for item in items:
        if item.path.is_relative_to(HERE) and not (tried and not item.get_closest_marker("gpu")):
            item.add_marker(pytest.mark.skip(reason=REASON))
