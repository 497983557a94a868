"""Faults that end or interrupt the process of the study."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from autopeft.study.study import Study
from autopeft.trial import TrialStatus
from tests.faults.runs import (
    Run,
    Scene,
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


def kill_9(scene: Scene) -> Tally:
    """kill -9 at random moments: from outside, after a time, around a step to the disk, within a commit."""
    tally, wanted = Tally(), scene.often(50, 5)
    number = 0
    while tally.tried < wanted and not tally.wrong:
        folder, workers = scene.place / f"kill{number}", 1 + number % 2
        kills = 0
        with tally.attempt(f"{folder.name} with {workers} workers", times=0):
            kept: dict[str, bytes] = {}
            for _ in range(5):
                how = _moment(scene)
                options = () if how[0] == "outside" else how
                if not _killed(Run(folder, "--workers", workers, *options), how):
                    break
                tally.seen[how[0] if not options else how[1].split(":")[0]] += 1
                kills += 1
                tally.tried += 1
                kept |= finished_files(folder)
            finish(folder, "--workers", workers)
            tally.lost += lost(kept, folder)
            assert tally.lost == 0, "finished trials were touched"
            require_whole(folder)
            shutil.rmtree(folder)
        number += 1
    return tally


def _moment(scene: Scene) -> tuple[str, ...]:
    """Draws options that make a run kill itself, or a time after which it is killed."""
    draw, (_, seconds, moments) = scene.draw, reference()
    kind = draw.choice(["any", "any", "commit", "after", "outside"])
    if kind == "any":
        return "--kill", f"any:{draw.randrange(1, moments // 3)}"
    if kind == "commit":
        return "--kill", f"commit:{draw.randrange(1, 30)}:{draw.uniform(0.0, 0.002):.6f}"
    if kind == "after":
        return "--kill", f"after:{draw.uniform(0.0, seconds / 3):.4f}"
    return "outside", f"{draw.uniform(0.0, seconds / 2):.4f}"


def _killed(run: Run, how: tuple[str, ...]) -> bool:
    """Waits for the kill; False where the run was faster."""
    if how[0] == "outside":
        time.sleep(float(how[1]))
        run.process.kill()
    code, _, errors = run.end()
    assert code in (-signal.SIGKILL, 0), errors
    return code != 0


def _at_random(scene: Scene) -> float:
    return scene.draw.uniform(0.2, reference()[1] * 0.9)


def _signalled(scene: Scene, tally: Tally, name: str, signals: list[int], codes: dict[int, str], times: int) -> None:
    """Sends signals at random moments; `codes` are the exit codes that may follow, and how the run then stopped."""
    for k in range(scene.often(times, 2)):
        folder, workers = scene.place / f"{name}{k}", 1 + k % 2
        with tally.attempt(f"{name} {k}"):
            run = Run(folder, "--workers", workers)
            run.wait_until(lambda folder=folder: len(begun(folder)) > 1)  # type: ignore[misc]
            time.sleep(scene.draw.uniform(0.0, reference()[1] * 0.5))
            for number in signals:
                os.killpg(run.process.pid, number)
                time.sleep(0.05)
            code, told, errors = run.end()
            assert code in codes, (code, errors)
            tally.seen[f"exit {code}"] += 1
            assert code < 0 or told["stopped"] == codes[code], told
            with Study.open(folder, readonly=True) as study:
                assert TrialStatus.RUNNING not in {t.status for t in study.trials}
            kept = finished_files(folder)
            finish(folder, "--workers", workers)
            tally.lost += lost(kept, folder)
            require_whole(folder)


def sigterm(scene: Scene) -> Tally:
    """SIGTERM at random moments, as machines that are taken away get it: checkpoints are kept, exit code 143."""
    tally = Tally()
    _signalled(scene, tally, "term", [signal.SIGTERM], {143: "terminated", 0: "finished"}, 10)
    return tally


def ctrl_c_once(scene: Scene) -> Tally:
    """Ctrl-C once: the running trials are finished, exit code 130."""
    tally = Tally()
    _signalled(scene, tally, "once", [signal.SIGINT], {130: "interrupted", 0: "finished"}, 6)
    return tally


def ctrl_c_twice(scene: Scene) -> Tally:
    """Ctrl-C twice: stops now, exit code 130."""
    # Where the second comes after the run has ended, it ends the interpreter on its way out: -2, which shells call 130.
    tally = Tally()
    _signalled(scene, tally, "twice", [signal.SIGINT, signal.SIGINT], {130: "interrupted", 0: "finished", -2: ""}, 6)
    return tally


def stop_file(scene: Scene) -> Tally:
    """A file `stop` in the folder: the running trials are finished, exit code 0."""
    tally = Tally()
    for k in range(scene.often(5, 1)):
        folder = scene.place / f"stop{k}"
        with tally.attempt(f"stop file {k}"):
            run = Run(folder)
            run.wait_until(lambda folder=folder: begun(folder))  # type: ignore[misc]
            time.sleep(scene.draw.uniform(0.0, reference()[1] * 0.3))
            (folder / "stop").touch()
            code, told, _ = run.end()
            assert (code, told["stopped"]) == (0, "stop file"), told
            kept = finished_files(folder)
            (folder / "stop").unlink()
            finish(folder)
            tally.lost += lost(kept, folder)
            require_whole(folder)
    return tally


def five_interruptions(scene: Scene) -> Tally:
    """One worker, stopped 5 times in as many ways: the same trials in the same order, the same front."""
    tally = Tally()
    for k in range(scene.often(3, 1)):
        folder = scene.place / f"five{k}"
        with tally.attempt(f"five interruptions {k}", times=5):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
                run, before = Run(folder), len(begun(folder))
                run.wait_until(lambda folder=folder, n=before: len(begun(folder)) > n + 1)  # type: ignore[misc]
                time.sleep(scene.draw.uniform(0.0, 0.1))
                os.killpg(run.process.pid, number)
                run.end()
            finish(folder)
            require_whole(folder)
            with Study.open(folder, readonly=True) as study:
                order = [e.trial for e in study.events if e.kind == "completed"]
                assert order == sorted(t.number for t in study.trials)
                assert len(study.front)
    return tally


def clock(scene: Scene) -> Tally:
    """The clock jumps by a day, forward and back, all the time."""
    tally = Tally()
    for k in range(scene.often(3, 1)):
        folder = scene.place / f"clock{k}"
        with tally.attempt(f"clock {k}"):
            finish(folder, "--clock", "--workers", 2, "--time-limit", 60, "--silence", 60)
            require_whole(folder)
            with Study.open(folder, readonly=True) as study:
                assert max(abs(a.time - b.time) for a in study.events for b in study.events) > 80_000
                spent = [e.detail["seconds"] for e in study.events if "seconds" in e.detail]
                assert all(0.0 <= seconds < PATIENT for seconds in spent), spent
    return tally


PATIENT = 60.0


def two_writers(scene: Scene) -> Tally:
    """Several processes begin the same study at once: one runs it, the others are refused in a line."""
    tally = Tally()
    for k in range(scene.often(5, 1)):
        folder = scene.place / f"two{k}"
        with tally.attempt(f"writers {k}"):
            ends = [run.end() for run in [Run(folder) for _ in range(4)]]
            codes = sorted(code for code, _, _ in ends)
            assert set(codes) == {0, 2}, [errors for _, _, errors in ends]
            tally.seen["refused"] += codes.count(2)
            refused = [errors for code, _, errors in ends if code]
            assert all(len(errors.splitlines()) == 1 for errors in refused), refused
            assert all("is being written by process" in errors for errors in refused), refused
            assert sum(told.get("completed", 0) for _, told, _ in ends) == len({n[:11] for n in reference()[0]})
            require_whole(folder)
    return tally


def dead_owner(scene: Scene) -> Tally:
    """The owner of the lock is killed, and another run begins in the same instant."""
    tally = Tally()
    for k in range(scene.often(5, 1)):
        folder = scene.place / f"owner{k}"
        with tally.attempt(f"dead owner {k}"):
            first = Run(folder, "--workers", 2)
            first.wait_until(lambda folder=folder: len(begun(folder)) > 2)  # type: ignore[misc]
            first.process.kill()
            first.process.wait()
            finish(folder, "--workers", 2)
            first.end()
            require_whole(folder)
    return tally


def copied_while_running(scene: Scene) -> Tally:
    """The folder is copied file by file while it runs; the copy is opened, mended where need be, and goes on."""
    from autopeft.errors import StudyError
    from autopeft.study.repair import repair

    tally, wanted = Tally(), scene.often(12, 2)
    while tally.tried < wanted and not tally.wrong:
        folder = scene.place / f"copied{tally.tried}"
        run = Run(folder, "--workers", 2)
        run.wait_until(lambda folder=folder: len(begun(folder)) > 1)  # type: ignore[misc]
        copies = []
        while run.process.poll() is None and len(copies) < 4:
            copies.append(scene.place / f"{folder.name}-{len(copies)}")
            _copy(folder, copies[-1])
            time.sleep(scene.draw.uniform(0.0, 0.2))
        run.end()
        for copy in copies:
            with tally.attempt(copy.name):
                try:
                    Study.open(copy, trust_evaluate=True).close()
                except StudyError:
                    tally.seen["repaired"] += 1
                    repair(copy)
                finish_here(copy)
                assert files_of(copy) == reference()[0]
    return tally


def _copy(folder: Path, target: Path) -> None:
    """Copies a folder whose files come and go."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(path, target / path.relative_to(folder))
            except FileNotFoundError:
                continue


FAULTS = {
    "kill-9": kill_9,
    "sigterm": sigterm,
    "ctrl-c-once": ctrl_c_once,
    "ctrl-c-twice": ctrl_c_twice,
    "stop-file": stop_file,
    "five-interruptions": five_interruptions,
    "clock-jump": clock,
    "two-writers": two_writers,
    "lock-owner-dead": dead_owner,
    "copied-while-running": copied_while_running,
}
