"""The short form of the fault campaign (`make test-faults`): harm to real studies, resumed and compared byte for byte.

What other tests do with less, such as signals and flipped bytes, is left to the long form.
"""

from __future__ import annotations

import pytest

from tests.faults import campaign

SHORT = (
    "kill-9",
    "clock-jump",
    "two-writers",
    "copied-while-running",
    "full-disk",
    "kernel-out-of-memory",
    "worker-killed",
)


@pytest.mark.parametrize("name", SHORT)
def test_a_harmed_study_ends_as_if_nothing_had_happened(name: str) -> None:
    row = campaign.tried(name, short=True)
    if row["skipped"]:
        pytest.skip(row["reason"])
    assert row["reason"] == ""
    assert (row["survived"], row["lost_records"]) == (row["tried"], 0)
    assert row["tried"] > 0
