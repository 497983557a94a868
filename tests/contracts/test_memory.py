"""Memory of processes, machines and control groups, and what an executor does about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopeft.study.executors import memory
from autopeft.study.executors.admission import fits_beside
from autopeft.study.executors.base import Event, Finished, Progress, Resources, Started
from autopeft.study.executors.process import ProcessExecutor
from tests.contracts.cheap_jobs import HERE, ROOT, some_job
from tests.contracts.polling import collect, poll_for

MEMINFO = "MemTotal:       24684092 kB\nMemFree:        20000000 kB\nMemAvailable:   24228612 kB\nBuffers: 25704 kB\n"


def tree(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Writes files as the kernel shows them; returns what stands for /proc and /sys/fs/cgroup."""
    for name, text in {"proc/meminfo": MEMINFO, "cgroup/x": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "proc", root / "cgroup"


# Layouts as documented in the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
def test_version_2_limits_are_those_of_the_group_and_all_above(tmp_path: Path) -> None:
    where = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job_7\n",
            "cgroup/user.slice/memory.max": "4294967296\n",
            "cgroup/user.slice/memory.current": "3221225472\n",
            "cgroup/user.slice/memory.stat": "anon 2147483648\ninactive_file 536870912\n",
            "cgroup/user.slice/job_7/memory.max": "max\n",
            "cgroup/user.slice/job_7/memory.current": "1073741824\n",
            "cgroup/user.slice/job_7/memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
        },
    )
    assert memory.total(*where) == 4 << 30
    assert memory.available(*where) == (4 << 30) - (3 << 30) + (512 << 20)
    assert memory.oom_kills(*where) == 2


def test_version_1_limits_are_read_beside_other_controllers(tmp_path: Path) -> None:
    where = tree(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n5:cpu,cpuacct:/a\n4:memory:/batch/7\n0::/\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cgroup/memory/memory.usage_in_bytes": "334057472\n",
            "cgroup/memory/batch/7/memory.limit_in_bytes": "2147483648\n",
            "cgroup/memory/batch/7/memory.usage_in_bytes": "1610612736\n",
            "cgroup/memory/batch/7/memory.stat": "inactive_file 1\ntotal_inactive_file 536870912\n",
            "cgroup/memory/batch/7/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        },
    )
    assert memory.total(*where) == 2 << 30
    assert memory.available(*where) == (2 << 30) - (1 << 30)
    assert memory.oom_kills(*where) == 5


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    # /proc/self/cgroup names the path on the host, which does not exist inside.
    where = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/0123abcd\n",
            "cgroup/memory/memory.limit_in_bytes": "1073741824\n",
            "cgroup/memory/memory.usage_in_bytes": "73741824\n",
        },
    )
    assert memory.total(*where) == 1 << 30
    assert memory.available(*where) == 1_000_000_000


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    where = tree(tmp_path, {"proc/vmstat": "nr_free_pages 5\noom_kill 4\n"})
    assert memory.total(*where) == 24684092 * 1024
    assert memory.available(*where) == 24228612 * 1024
    assert memory.oom_kills(*where) == 4


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    where = (tmp_path / "proc", tmp_path / "cgroup")
    assert (memory.total(*where), memory.available(*where), memory.oom_kills(*where)) == (None, None, 0)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert memory.as_text(size) == text


# -- jobs that do not fit side by side --


def test_what_running_jobs_may_still_claim_is_not_given_away() -> None:
    free = memory.available()
    assert free is not None
    half = free // 2
    assert fits_beside(half, [])
    assert fits_beside(0, [(free, 0)])
    assert not fits_beside(half, [(free, 0)])
    assert fits_beside(half, [(free, free)])  # it has all it asked for: what is free is free
    assert not fits_beside(2 * free, [(0, 0)])
    assert fits_beside(2 * free, [(0, 0)], own=free + half)  # the worker that takes it has most of that already
    assert fits_beside(2 * free, [])  # waiting would free nothing


def test_a_job_that_does_not_fit_beside_another_waits_for_its_end() -> None:
    free = memory.available()
    assert free is not None
    executor = ProcessExecutor(f"{HERE}:until_stopped", workers=3)
    try:
        for number, share in enumerate((0.6, 0.6, 0.0)):
            executor.submit(some_job(number), Resources(memory=int(share * free)))
        events: list[Event] = []
        while sum(isinstance(e, Progress) for e in events) < 20:
            events += executor.poll(0.1)
        assert {e.number for e in events} == {0}  # and nobody overtakes the one that waits
        executor.stop(0)
        events = poll_for(executor, Started)
        while not {1, 2} <= {e.number for e in events if isinstance(e, Started)}:
            events += executor.poll(0.1)
    finally:
        executor.close()


def test_jobs_that_fit_run_side_by_side() -> None:
    executor = ProcessExecutor(f"{HERE}:until_stopped", workers=2)
    try:
        for number in range(2):
            executor.submit(some_job(number), Resources(memory=1 << 20))
        events: list[Event] = []
        while {e.number for e in events if isinstance(e, Started)} != {0, 1}:
            events += executor.poll(0.1)
        executor.stop(0)
        executor.stop(1)
        assert not any(isinstance(e, Finished) for e in collect(executor, 2))
    finally:
        executor.close()


# -- the kernel's own end of memory --


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 256 MiB that processes can be put into."""
    name = f"autopeft-test-{os.getpid()}"
    root = Path("/sys/fs/cgroup")
    first = (root / "memory" / "memory.limit_in_bytes").exists()
    group = root / "memory" / name if first else root / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(256 << 20))
            swap = group / ("memory.memsw.limit_in_bytes" if first else "memory.swap.max")
            if swap.exists():
                swap.write_text(str(256 << 20) if first else "0")
        except OSError as error:
            pytest.skip(f"memory of a control group cannot be limited: {error}")
        yield group
    finally:
        group.rmdir()


_DRIVER = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from autopeft.study.executors.process import ProcessExecutor
from tests.contracts.cheap_jobs import HERE, some_job
from tests.contracts.polling import collect
found = []
for job in sys.argv[2:]:
    executor = ProcessExecutor(f"{HERE}:{job}")
    executor.submit(some_job())
    ended = collect(executor, 1)[-1]
    executor.close()
    found.append([type(ended).__name__, ended.failure.kind if hasattr(ended, "failure") else "",
                  ended.failure.message if hasattr(ended, "failure") else getattr(ended, "reason", "")])
print(json.dumps(found))
"""


def test_the_kernel_s_kill_for_memory_is_told_from_anybody_s(small_group: Path) -> None:
    jobs = ("outgrow", "killed_from_outside", "formula")
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(small_group), *jobs],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    outgrown, killed, finished = json.loads(done.stdout)
    assert outgrown[:2] == ["Failed", "out_of_memory"]
    assert outgrown[2].startswith("the kernel killed the worker process since memory ran out")
    assert killed == ["Lost", "", "the worker process was killed (SIGKILL)"]
    assert finished[0] == "Finished"


def test_a_group_limits_what_is_admitted(small_group: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from autopeft.study.executors import memory\n"
        "Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "print(memory.total(), memory.available())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_group)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    total, available = (int(word) for word in done.stdout.split())
    assert total == 256 << 20
    assert 0 < available <= total
