"""The short form of the fuzzing: the same few inputs for every reader each time; `make fuzz` is the long one."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.errors import InputError
from tests.fuzz import campaign
from tests.fuzz.mutations import mutated_bytes, mutated_json
from tests.fuzz.readers import Reader, Readers, prepare

# Inputs per reader in CI; those that copy a study or start a verb cost 50 ms each, the others 5.
COSTLY = {
    **dict.fromkeys(("repair_verb", "study_database", "study_json", "study_records", "study_verbs"), 5),
    **dict.fromkeys(("backbone_weights", "predict_verb", "study_archive", "study_checkpoint", "settings"), 10),
}
USUAL = 25
NAMES = sorted(name for name in vars(Readers) if not name.startswith("_"))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {reader.name: reader for reader in Readers(prepare(tmp_path_factory.mktemp("originals"))).all}


@pytest.mark.parametrize("name", NAMES)
def test_what_others_wrote_is_read_or_refused(readers: dict[str, Reader], tmp_path: Path, name: str) -> None:
    numbers = itertools.count()

    @settings(
        max_examples=COSTLY.get(name, USUAL),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def read(rng: Random) -> None:
        campaign.tried(readers[name], rng, tmp_path / f"{next(numbers)}")

    with campaign.bounded():
        read()
    assert next(numbers) > 4


def test_every_reader_accepts_what_is_not_mutated(
    readers: dict[str, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a reader that refuses everything would pass.
    for name in ("mutated_json", "mutated_bytes", "_mutated_pages", "_mutated_safetensors"):
        monkeypatch.setattr(f"tests.fuzz.readers.{name}", lambda content, rng: content)
    for k, (name, reader) in enumerate(readers.items()):
        accepted = [campaign.tried(reader, Random(f"{name} {i}"), tmp_path / f"{k}-{i}") for i in range(6)]
        assert any(accepted), name


def test_a_fault_is_counted_and_can_be_repeated(tmp_path: Path) -> None:
    def attempt(place: Path, rng: Random) -> None:
        draw = rng.random()
        if draw < 0.2:
            raise InputError("refused")
        if draw < 0.4:
            raise KeyError("a fault")

    row = campaign.run(Reader("one", attempt), 0.2, tmp_path, lambda number: None)
    assert min(row["accepted"], row["refused"], row["tracebacks"]) > 0
    assert row["accepted"] + row["refused"] + row["tracebacks"] == row["inputs"]
    ((kind, (number, _)),) = row["faults"].items()
    assert kind.startswith("KeyError at test_fuzz.py:attempt")
    with pytest.raises(KeyError, match="a fault"):
        attempt(tmp_path, campaign.seeded(Reader("one", attempt), number))


def test_what_takes_too_much_memory_is_a_fault(tmp_path: Path) -> None:
    def attempt(place: Path, rng: Random) -> None:
        bytearray(2 * campaign.MOST_MEMORY)

    with campaign.bounded(), pytest.raises(MemoryError):
        campaign.tried(Reader("large", attempt), Random(0), tmp_path / "x")
    bytearray(1 << 20)


def test_a_crash_ends_one_reader_only(tmp_path: Path) -> None:
    row = campaign.in_a_process(
        Reader("crash", lambda place, rng: os.kill(os.getpid(), signal.SIGKILL)), 1.0, tmp_path / "x"
    )
    assert row["tracebacks"] == 1
    assert row["faults"] == {"the process died with SIGKILL": [0, ""]}


def test_what_takes_too_long_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(place: Path, rng: Random) -> None:
        while True:
            pass

    monkeypatch.setattr(campaign, "LONGEST", 1)
    row = campaign.run(Reader("endless", attempt), 0.01, tmp_path, lambda number: None)
    assert list(row["faults"]) == ["TookTooLong at campaign.py:_too_long"]


def test_mutations_change_what_they_are_given_and_repeat() -> None:
    content, value = bytes(range(256)) * 4, {"a": [1, {"b": "text"}], "c": None}
    for n in range(200):
        assert mutated_bytes(content, Random(n)) == mutated_bytes(content, Random(n))
        assert repr(mutated_json(value, Random(n))) == repr(mutated_json(value, Random(n)))
    assert len({mutated_bytes(content, Random(n)) for n in range(200)}) > 180
    assert len({repr(mutated_json(value, Random(n))) for n in range(200)}) > 120
    assert value == {"a": [1, {"b": "text"}], "c": None}


def test_the_committed_campaign_tried_every_reader_and_found_no_fault() -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz" / "results" / "fuzz.json"
    rows = json.loads(path.read_text())["rows"]
    assert [row["id"] for row in rows] == NAMES
    assert all(row["tracebacks"] == 0 and row["inputs"] > 50 for row in rows)
