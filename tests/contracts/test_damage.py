"""Flipped bytes anywhere on disk: a study is read intact or its damage is named; repaired, it lost at most a record."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import StudyError
from autopeft.study.database import DATABASE
from autopeft.study.folders import TrialFolders
from autopeft.study.repair import check, repair
from autopeft.study.salvage import lost_with, page_size_of
from autopeft.study.store import DEFINITION, Store
from autopeft.study.wal import frames_of, header_is_sound
from autopeft.trial import Trial, TrialStatus
from tests.contracts.test_store import DEFINED, completed, finish, queued

TRIALS = 12
LOG = f"{DATABASE}-wal"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose process was killed: half of its transactions are in the log only."""
    folder, killed = tmp_path_factory.mktemp("damage") / "study", tmp_path_factory.mktemp("damage") / "killed"
    with Store.create(folder, DEFINED) as store:
        fill(store, range(TRIALS // 2))
    with Store.open(folder) as store:
        fill(store, range(TRIALS // 2, TRIALS))
        shutil.copytree(folder, killed, ignore=shutil.ignore_patterns("*-shm"))
    assert (killed / LOG).stat().st_size > 50_000
    return killed


def fill(store: Store, numbers: range) -> None:
    """Every third trial stays queued, so that it is in the database alone."""
    for number in numbers:
        store.add([queued(number)])
        if number % 3:
            finish(store, number)


Held = tuple[dict[int, Trial], list[tuple[str, int | None, float]], dict[str, object]]


def found(folder: Path) -> Held:
    with Store.open(folder, readonly=True) as store:
        assert not store.damaged, [str(d) for d in store.damaged]
        events = [(e.kind, e.trial, e.time) for e in store.events()]
        return {t.number: t for t in store.trials()}, events, store.definition()


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ mask]))


def outcome(folder: Path, wanted: Held) -> str:
    """Opens a damaged study, mends it, and says what came of it; fails where damage went unnoticed or spread."""
    if check(folder).healthy:
        # It changed nothing that is read, or it cut off the very last transaction, as a power cut would.
        trials, events, definition = found(folder)
        if (trials, events, definition) == wanted:
            return "intact"
        assert events == wanted[1][: len(events)]
        assert len(wanted[1]) - len(events) <= 2
        return "last transaction dropped"
    try:
        Store.open(folder, readonly=True).close()
    except StudyError as error:
        advice = str(error)
        assert "; autopeft repair " in advice or advice.endswith("damaged: autopeft repair")
    repair(folder)
    with Store.open(folder) as store:
        trials = {t.number: t for t in store.trials()}
        lost = wanted[0].keys() - trials.keys()
        assert all(trials[n] == wanted[0][n] for n in trials)
        assert len(lost) <= 1
        kept = {(e.kind, e.trial, e.time) for e in store.events()}
        assert len(set(wanted[1]) - kept) <= 1
        assert store.definition() == wanted[2]
        assert store.next_number() == TRIALS
    assert check(folder).healthy
    return "a trial lost" if lost else "mended"


def campaign(study: Path, tmp_path: Path, name: Callable[[random.Random], str], tries: int, seed: int) -> Counter[str]:
    """Flips random bits of one random byte at a time, each in a fresh copy."""
    wanted, draw, counts = found(study), random.Random(seed), Counter[str]()
    for k in range(tries):
        copy = Path(shutil.copytree(study, tmp_path / str(k)))
        path = copy / name(draw)
        place, mask = draw.randrange(path.stat().st_size), draw.randrange(1, 256)
        flip(path, place, mask)
        try:
            counts[outcome(copy, wanted)] += 1
        except Exception as error:
            raise AssertionError(f"byte {place} of {path.name} ^ {mask:#x}: {error!r}") from error
        shutil.rmtree(copy)
    return counts


def test_a_byte_of_the_log(study: Path, tmp_path: Path) -> None:
    counts = campaign(study, tmp_path, lambda _: LOG, 40, 1)
    assert counts["mended"] + counts["a trial lost"] > 20, counts


def test_a_byte_of_the_database(study: Path, tmp_path: Path) -> None:
    """Without a log, which would cover its pages."""
    whole = Path(shutil.copytree(study, tmp_path / "whole"))
    Store.open(whole).close()
    counts = campaign(whole, tmp_path, lambda _: DATABASE, 40, 2)
    assert counts["last transaction dropped"] == 0
    assert counts["mended"] + counts["a trial lost"] > 10, counts


def test_a_byte_of_any_other_file(study: Path, tmp_path: Path) -> None:
    names = [str(p.relative_to(study)) for p in sorted(study.rglob("*")) if p.is_file() and ".lock" not in p.name]
    others = [name for name in names if not name.startswith(DATABASE)]
    assert DEFINITION in others
    counts = campaign(study, tmp_path, lambda draw: draw.choice(others), 20, 3)
    # Trials are never lost by a folder; a flip that leaves JSON the same, such as in white space, may be none.
    assert set(counts) <= {"intact", "mended"}
    assert counts["mended"] > 12, counts


def test_every_byte_of_a_row_is_guarded(study: Path, tmp_path: Path) -> None:
    """Not at random: each byte of one queued trial, which is in the database alone."""
    whole = Path(shutil.copytree(study, tmp_path / "whole"))
    with Store.open(whole) as store:
        trial = store.trial(0)
        assert trial.status is TrialStatus.QUEUED
    content = (whole / DATABASE).read_bytes()
    begin = content.index(b'"k":0')
    for place in range(begin - 3, begin + 8):
        copy = Path(shutil.copytree(whole, tmp_path / "copy"))
        flip(copy / DATABASE, place, 1)
        with Store.open(copy, readonly=True) as store:
            assert [str(d) for d in store.damaged] == ["trial 0: does not match its checksum"]
        shutil.rmtree(copy)


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "name", [DATABASE, LOG, DEFINITION, "trials/0001/trial.json", "trials/0004/adapter.safetensors"]
)
def test_a_truncated_file(study: Path, tmp_path: Path, name: str, part: float) -> None:
    copy, wanted = Path(shutil.copytree(study, tmp_path / "copy")), found(study)
    if name != LOG:
        Store.open(copy).close()  # without a log, which would cover the pages of the database
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(len(content) * part)])
    if name == LOG:
        # Nothing tells a log that was cut from one that ended there: what was finished comes back from its folders.
        with Store.open(copy) as store:
            kept = {t.number: t for t in store.trials()}
            done = {n for n, t in wanted[0].items() if t.status.final}
            assert {n for n, t in kept.items() if t.status.final} == done
            assert all(kept[n] == wanted[0][n] for n in done)
            assert store.next_number() == TRIALS
        return
    assert not check(copy).healthy
    repair(copy)
    with Store.open(copy) as store:
        kept = {t.number: t for t in store.trials()}
        assert {n for n, t in wanted[0].items() if t.status.final} <= kept.keys()
        assert all(kept[n] == wanted[0][n] for n in kept)
        if name != DATABASE:
            assert kept == wanted[0]
    assert check(copy).healthy


# -- the log --


def test_the_log_is_read_as_sqlite_reads_it(study: Path) -> None:
    """Independent reference: SQLite itself, whose checksums are in the log."""
    log = (study / LOG).read_bytes()
    assert header_is_sound(log)
    frames = frames_of(log, 4096)
    assert len(frames) == (len(log) - 32) // (24 + 4096)
    assert all(frame.sound and frame.current for frame in frames)
    assert frames[-1].commits
    altered = log[:32] + bytes([log[32] ^ 1]) + log[33:]
    assert not any(frame.sound for frame in frames_of(altered, 4096))


def test_a_log_that_ends_in_the_midst_is_no_damage(study: Path) -> None:
    """As a killed process leaves it; what was being written was never committed."""
    log = (study / LOG).read_bytes()
    frames = frames_of(log, 4096)
    last = max(k for k, frame in enumerate(frames[:-1]) if frame.commits)
    torn = 32 + (last + 1) * 4120 + 24  # a header without its page
    assert not lost_with(log, 4096, 10**6)
    assert not lost_with(log[:torn], 4096, 0)
    assert not lost_with(log[:torn] + bytes(4096), 4096, 0)
    assert not lost_with(log[:32], 4096, 0)
    assert not lost_with(b"", 4096, 0)
    # The same place, where transactions follow.
    assert lost_with(log[:5000] + bytes([log[5000] ^ 1]) + log[5001:], 4096, 0)


def test_a_damaged_log_is_named_to_readers_and_refused_to_writers(study: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(study, tmp_path / "copy"))
    flip(copy / LOG, 5000, 1)
    with Store.open(copy, readonly=True) as store:
        assert [d.name for d in store.damaged] == [LOG]
    with pytest.raises(StudyError, match=r"log of the study's database is damaged.*autopeft repair"):
        Store.open(copy)
    assert (copy / LOG).stat().st_size == (study / LOG).stat().st_size


@pytest.mark.parametrize(("header", "size"), [(b"\x10\x00", 4096), (b"\x00\x01", 65536), (b"\x12\x34", 4096)])
def test_the_size_of_a_page_is_the_usual_one_where_the_header_does_not_tell(header: bytes, size: int) -> None:
    assert page_size_of(b"SQLite format 3\0" + header) == size
    assert page_size_of(b"") == 4096


def test_no_folder_has_two_trials(study: Path, tmp_path: Path) -> None:
    """A folder under another number is not taken for that trial."""
    copy = Path(shutil.copytree(study, tmp_path / "copy"))
    shutil.copytree(copy / "trials" / "0001", copy / "trials" / "0040")
    with pytest.raises(ValueError, match="belongs to trial 1"):
        TrialFolders(copy).read(40)
    (finding,) = repair(copy).findings
    assert (finding.name, finding.reason) == ("trials/0040", "belongs to trial 1")
    assert completed(1) == replace(found(copy)[0][1])
