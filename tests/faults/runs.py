"""Starting the program that is harmed, and looking at the study that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.repair import check
from autopeft.study.study import Study
from autopeft.trial import TrialStatus
from tests.faults import jobs
from tests.faults.program import TRIALS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
MARK = "AUTOPEFT_FAULT"
"""Environment variable that tells the processes of one run from all others, workers included."""

Files = dict[str, bytes]


class Skipped(Exception):  # noqa: N818 - it is no error
    """Raised by a fault that cannot be tried here; says why."""


@dataclass
class Tally:
    """What came of one kind of fault.

    Attributes:
        tried: How often harm was done.
        lost: Finished trials, with their files, that were not as before afterwards.
        wrong: What was not as it should be, one line for each harm that did not end well.
        seen: Further counts, such as of exit codes.
    """

    tried: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    @contextlib.contextmanager
    def attempt(self, what: str, times: int = 1) -> Iterator[None]:
        """Counts `times` attempts; what is raised within makes them fail."""
        self.tried += times
        try:
            yield
        except (AssertionError, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
            self.wrong.append(f"{what}: {type(error).__name__} in {where}: {str(error)[:600]}")


@dataclass(frozen=True)
class Scene:
    """Where and how hard a fault is tried.

    Attributes:
        place: An empty folder.
        draw: Randomness, seeded by the fault's name.
        short: Whether a few tries must do.
    """

    place: Path
    draw: random.Random
    short: bool = False

    def often(self, times: int, short: int) -> int:
        """Returns how often to try."""
        return short if self.short else times


class Run:
    """One start of a program in a session of its own.

    Args:
        folder: The study.
        options: Further options of the program.
        module: The program.
        before: Called in the new process before the program begins.
    """

    def __init__(
        self,
        folder: Path,
        *options: object,
        module: str = "tests.faults.program",
        before: Callable[[], None] | None = None,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder), *map(str, options)],
            cwd=ROOT,
            env={**os.environ, MARK: self.mark, "CHEAP_JOBS_LOG": str(log_of(folder)), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Waits for its end; returns exit code, what it told, and its errors. Nothing of it may run on."""
        try:
            output, errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.require_gone()
        line = output.splitlines()[-1] if output.startswith("{") else "{}"
        return self.process.returncode, json.loads(line), errors

    def require_gone(self) -> None:
        """Fails where a process of this run is left a while after its end."""
        deadline = time.monotonic() + 20.0
        while left := self.left():
            assert time.monotonic() < deadline, f"processes are left: {left}"
            time.sleep(0.01)

    def left(self) -> list[int]:
        """Process ids of what runs of it."""
        found, wanted = [], f"{MARK}={self.mark}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and self.process.poll() is None:
            assert time.monotonic() < deadline, "the study does not get on"
            time.sleep(0.002)


def log_of(folder: Path) -> Path:
    """Where jobs leave their marks."""
    return folder.with_name(f"{folder.name}.log")


def begun(folder: Path) -> list[tuple[int, int]]:
    """Number of the trial and process of every job begun so far."""
    log = log_of(folder)
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [(int(a), int(b)) for a, b in (line.split() for line in lines if line.endswith("\n"))]


def finish(folder: Path, *options: object) -> dict[str, Any]:
    """Goes on with a study to its end."""
    code, told, errors = Run(folder, *options).end()
    assert (code, errors) == (0, ""), (code, errors)
    assert told["stopped"] == "finished"
    return told


def finish_here(folder: Path) -> None:
    """Goes on with a study to its end in this process, at once."""
    with Study.open(folder, trust_evaluate=True) as study:
        assert study.run(executor=InlineExecutor(jobs.quick)).stopped == "finished"


def files_of(folder: Path) -> Files:
    """The trial folders: name to content."""
    found = {}
    for path in sorted(folder.glob("trials/[0-9]*/*")):
        with contextlib.suppress(FileNotFoundError):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def finished_files(folder: Path) -> Files:
    """The files of those trials that the study says are finished; none where there is no study yet."""
    if not (folder / "study.json").exists():
        return {}
    with Study.open(folder, readonly=True) as study:
        numbers = {f"{t.number:04d}" for t in study.trials if t.status.final}
    return {name: content for name, content in files_of(folder).items() if name.split("/")[1] in numbers}


@cache
def reference(job: str = "steady") -> tuple[Files, float, int]:
    """Files of a study that nothing happened to, its seconds, and its number of moments."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder, began = Path(place) / "study", time.monotonic()
        told = finish(folder, "--job", job)
        return files_of(folder), time.monotonic() - began, int(told["moments"])


def lost(before: Files, folder: Path) -> int:
    """Number of trials among those with these files that are not as they were."""
    after = files_of(folder)
    return len({name.split("/")[1] for name, content in before.items() if not _same(name, content, after.get(name))})


def _same(name: str, before: bytes, after: bytes | None) -> bool:
    """Says whether a file is as it was; a record that was written anew may have its keys in another order."""
    if before == after or after is None or not name.endswith(".json"):
        return before == after
    return bool(json.loads(before) == json.loads(after))


def require_whole(folder: Path, states: dict[int, str] | None = None, job: str = "steady") -> None:
    """Fails unless a finished study is as if nothing had happened, byte for byte.

    Args:
        folder: The study.
        states: Number to kind of failure of the trials that failed, and rightly so.
        job: What the others ran, or a job with the same results.
    """
    failed = states or {}
    with Study.open(folder, readonly=True) as study:
        assert study.damaged == (), [str(d) for d in study.damaged]
        assert [t.number for t in study.trials] == list(range(TRIALS))
        assert len({t.configuration.id for t in study.trials}) == TRIALS
        kinds = {t.number: t.failure.kind for t in study.trials if t.failure}
        assert kinds == failed, {t.number: t.failure.message for t in study.trials if t.failure}
        assert {t.status for t in study.trials if t.number not in failed} == {TrialStatus.COMPLETED}
        ended = Counter(e.trial for e in study.events if e.kind in ("completed", "failed"))
        assert set(ended.values()) == {1}, ended
    healthy = check(folder)
    assert healthy.healthy, [str(f) for f in healthy.findings]
    assert healthy.checkpoints == 0
    assert not list((folder / "trials").glob(".*")), "drafts are left"
    expected, found = reference(job)[0], files_of(folder)
    gone = {f"trials/{number:04d}" for number in failed}
    assert {n: c for n, c in found.items() if n[:11] not in gone} == {
        n: c for n, c in expected.items() if n[:11] not in gone
    }, "the files differ"
