"""Faults of what lies on the disk: files cut short, bits flipped, a disk that is full or read-only."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from autopeft.errors import AutoPeftError, StudyError
from autopeft.study.repair import check, repair
from autopeft.study.study import Study
from autopeft.trial import TrialStatus
from tests.faults.program import TRIALS
from tests.faults.runs import (
    Run,
    Scene,
    Skipped,
    Tally,
    begun,
    files_of,
    finish,
    finish_here,
    finished_files,
    lost,
    reference,
    require_whole,
)

Harm = Callable[[Path, random.Random], str]


def flip(path: Path, draw: random.Random) -> str:
    """Flips some bits of one byte."""
    place, mask = draw.randrange(path.stat().st_size), draw.randrange(1, 256)
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)
    return f"byte {place} of {path.name} ^ {mask:#x}"


def cut(path: Path, draw: random.Random) -> str:
    """Cuts a file short."""
    size = draw.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    return f"{path.name} cut to {size} bytes"


def _killed_study(scene: Scene) -> Path:
    """A study killed in its midst: with a log, with a trial that has a checkpoint, with some that are finished."""
    folder = scene.place / "killed"
    for _ in range(20):
        run = Run(folder)
        run.wait_until(lambda: len(begun(folder)) > 6 and list(folder.glob("checkpoints/[0-9]*/state")))
        run.process.kill()
        run.end()
        if list(folder.glob("checkpoints/[0-9]*/state")) and (folder / "study.sqlite-wal").stat().st_size > 50_000:
            return folder
    raise AssertionError("no run was killed with a checkpoint")


def harmed(pattern: str, harm: Harm, closed: bool, scene: Scene) -> Tally:
    """Does harm to one file of many copies of a study; each is mended and goes on to its end."""
    tally = Tally()
    study = _killed_study(scene)
    if closed:  # so that there is no log that would cover the pages of the database
        with Study.open(study, trust_evaluate=True):
            pass
    before = finished_files(study)
    for k in range(scene.often(24, 3)):
        copy = Path(shutil.copytree(study, scene.place / f"copy{k}"))
        what = harm(scene.draw.choice(sorted(copy.glob(pattern))), scene.draw)
        with tally.attempt(what):
            _mended(copy, before, tally)
        shutil.rmtree(copy)
    return tally


def _mended(copy: Path, before: dict[str, bytes], tally: Tally) -> None:
    """Fails unless a damaged study can be mended and ended, says what it lost, and lost one record at most."""
    findings = [str(finding) for finding in check(copy).findings]
    told = bool(findings)
    try:
        Study.open(copy, trust_evaluate=True).close()
    except StudyError as error:
        require_one_line(error)
        tally.seen["refused until repaired"] += 1
    repair(copy)
    gone = lost(before, copy)
    tally.seen["named" if told else "nothing to see"] += 1
    finish_here(copy)
    gone = max(gone, lost(before, copy))
    tally.lost += gone
    assert gone <= 1, f"{gone} records lost"
    assert gone == 0 or told, "a record was lost without a word"
    with Study.open(copy, readonly=True) as study:
        finished = [t for t in study.trials if t.status is TrialStatus.COMPLETED]
        assert len(finished) == len({t.configuration.id for t in finished})
        # A trial whose record is lost is not counted; another one takes its place under a new number.
        assert len(finished) == TRIALS, f"{len(finished)} finished"
    if not gone:
        expected, found = reference()[0], files_of(copy)
        assert {n: c for n, c in found.items() if n in expected} == expected or told
    assert check(copy).healthy


def require_one_line(error: AutoPeftError) -> None:
    """Fails where a message is more than a person wants to read."""
    assert len(str(error).splitlines()) == 1, error


FILES = {
    "database": ("study.sqlite", True),
    "log": ("study.sqlite-wal", False),
    "trial.json": ("trials/[0-9]*/trial.json", True),
    "adapter": ("trials/[0-9]*/adapter.safetensors", True),
    "checkpoint": ("checkpoints/[0-9]*/*", True),
    "study.json": ("study.json", True),
}


def _named(fault: Callable[[Scene], Tally], text: str) -> Callable[[Scene], Tally]:
    fault.__doc__ = text
    return fault


# -- disks --


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """Mounts a disk of some bytes in memory; raises Skipped where that is not allowed."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Skipped(f"a small disk cannot be mounted here ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def full_disk(scene: Scene) -> Tally:
    """A small disk becomes full: the run stops with one line, and goes on once there is space."""
    tally = Tally()
    for k in range(scene.often(12, 1)):
        job, size = ("steady", 200_000) if k % 2 else ("heavy", 700_000)
        with small_disk(scene.place / f"disk{k}", scene.draw.randrange(90_000, size)) as disk:
            folder = disk / "study"
            with tally.attempt(f"disk {k}"):
                code, _, errors = Run(folder, "--job", job, "--workers", 1 + k // 2 % 2).end()
                assert code == 2, (code, errors)
                assert len(errors.splitlines()) == 1, errors
                assert "cannot be" in errors, errors
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                tally.seen[errors.split(" (")[0].split(": ")[-1]] += 1
                kept = finished_files(folder)
                finish(folder, "--job", job)
                gone = lost(kept, folder)
                tally.lost += gone
                assert gone == 0
                require_whole(folder, job=job)
    return tally


def filled_disk(scene: Scene) -> Tally:
    """Another program fills the disk while the study runs; it goes on once that file is gone."""
    tally = Tally()
    for k in range(scene.often(6, 1)):
        with small_disk(scene.place / f"filled{k}", 2_000_000) as disk:
            folder = disk / "study"
            with tally.attempt(f"filled {k}"):
                run = Run(folder, "--workers", 2)
                wanted = scene.draw.randrange(2, 12)
                run.wait_until(lambda folder=folder, n=wanted: len(begun(folder)) >= n)  # type: ignore[misc]
                with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
                    while True:
                        other.write(bytes(4096))
                code, _, errors = run.end()
                assert (code, len(errors.splitlines())) == (2, 1), (code, errors)
                (disk / "other").unlink()
                kept = finished_files(folder)
                finish(folder)
                tally.lost += lost(kept, folder)
                require_whole(folder)
    return tally


def read_only_disk(scene: Scene) -> Tally:
    """A finished study and a killed one on a read-only disk: each can be read, or says why not."""
    tally = Tally()
    done, killed = scene.place / "done", _killed_study(scene)
    finish(done)
    for folder in (done, killed):
        view = scene.place / f"{folder.name}-view"
        view.mkdir()
        bound = subprocess.run(["mount", "--bind", str(folder), str(view)], capture_output=True, text=True, check=False)
        if bound.returncode:
            raise Skipped(f"a folder cannot be mounted read-only here ({bound.stderr.strip()})")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(view)], check=True)
            with tally.attempt(view.name):
                try:
                    with Study.open(view, readonly=True) as study:
                        assert len(study.trials) > 3
                        assert len(study.front)
                        tally.seen[f"{folder.name} read"] += 1
                except AutoPeftError as error:
                    require_one_line(error)
                    tally.seen[f"{folder.name} refused"] += 1
                try:
                    Study.open(view, trust_evaluate=True).close()
                except AutoPeftError as error:
                    require_one_line(error)
                else:
                    raise AssertionError("it was opened for writing")
        finally:
            subprocess.run(["umount", "-l", str(view)], check=False)
    return tally


FAULTS = {
    **{
        f"{name}-{file}": _named(partial(harmed, pattern, harm, closed), text.format(file))
        for file, (pattern, closed) in FILES.items()
        for name, harm, text in (
            ("flip", flip, "Bits of one byte are flipped: {}."),
            ("cut", cut, "A file is cut short: {}."),
        )
    },
    "full-disk": full_disk,
    "filled-disk": filled_disk,
    "read-only-disk": read_only_disk,
}
