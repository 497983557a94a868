"""What every test shares: no network, one torch thread, and the public data sets where they are present."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before any test module imports numpy, torch or transformers: they read these once. Processes that tests start inherit
# them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Hidden states that tests keep are nobody else's; the folder goes with this process.
_STATES = tempfile.TemporaryDirectory(prefix="autopeft-states-")
os.environ["AUTOPEFT_CACHE"] = _STATES.name


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds `data` and `models`; absent data skips a test here, and fails it in CI."""
    folder = Path(os.environ.get("AUTOPEFT_DATA", ROOT.parent / "shared"))
    if (folder / "data").is_dir():
        return folder.resolve()
    reason = "the public data sets are absent: set AUTOPEFT_DATA to the folder that holds them"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)
