"""The Ray executor: the contract of every executor, and what only a cluster can promise.

All tests but those that need one of their own share a cluster on this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import pytest

from autopeft.errors import InputError, MissingExtra, StudyError
from autopeft.search.halving import HalvingSearch
from autopeft.study.definition import StudyDefinition
from autopeft.study.executors import ray as ray_executor
from autopeft.study.executors.base import Event, Failed, Finished, Heartbeat, Lost, Resources, Started
from autopeft.study.executors.choice import make_executor
from autopeft.study.executors.cluster import _read_settings
from autopeft.study.executors.process import ProcessExecutor
from autopeft.study.executors.ray import RayExecutor
from autopeft.study.study import Study
from autopeft.trial import Failure, TrialStatus
from tests.contracts import stepwise_jobs
from tests.contracts import test_executors as contract
from tests.contracts.cheap_jobs import HERE, ROOT, some_job
from tests.contracts.cheap_studies import definition, table
from tests.contracts.cluster_jobs import SIGN
from tests.contracts.polling import PATIENCE, alive, collect, ending, failure, poll_for, result, wait_until

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'autopeft[ray]'")
STORE = 100 << 20
TOKEN = "0123456789abcdef" * 4
Make = Callable[..., RayExecutor]

# The tests of the contract, over the fixtures of this file.
globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


pytestmark = pytest.mark.xdist_group("ray")  # one process of a parallel run starts the cluster


@final
class Shared:
    """A cluster of two nodes with one CPU each, both on this machine; another takes its place where it fails."""

    def __init__(self) -> None:
        self._cluster: Any = None

    def answering(self) -> Any:
        """Returns a cluster to which this process is connected.

        A starved machine can lose a node of Ray's for good. That is no matter of the test which comes next.
        """
        if self._cluster is not None and ray.is_initialized():
            return self._cluster
        for attempt in range(3):
            if self._cluster is None:
                self._cluster = started()
            try:
                ray.init(self._cluster.address, log_to_driver=False, logging_level="ERROR")
                return self._cluster
            except ConnectionError as error:
                self.close()
                if attempt == 2:
                    raise
                warnings.warn(f"a new cluster for the tests: {error} ({error.__cause__})", stacklevel=1)
        raise AssertionError

    def close(self) -> None:
        ray.shutdown()
        if self._cluster is not None:
            self._cluster.shutdown()
        self._cluster = None


def started() -> Any:
    from ray.cluster_utils import Cluster

    _read_settings(ray)
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    # A node that does not answer is given up after 5 s here; Ray's own value is 15 s.
    made = Cluster(True, head_node_args={**head, "_system_config": {"health_check_period_ms": 1000}})
    made.add_node(num_cpus=1, object_store_memory=STORE)
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """What asks for a token and starts clusters that do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("CLUSTER_JOBS", str(tmp_path_factory.mktemp("cluster")))
        patch.delenv("RAY_ADDRESS", raising=False)
        with contextlib.closing(Shared()) as clusters:
            yield clusters


@pytest.fixture
def cluster(shared: Shared) -> Any:
    """The cluster, with a connection of this process to it."""
    return shared.answering()


@pytest.fixture
def folder(cluster: Any) -> Path:
    """What jobs share with the test; empty at first."""
    shared = Path(os.environ["CLUSTER_JOBS"])
    for file in shared.iterdir():
        file.unlink()
    return shared


@pytest.fixture
def make(cluster: Any) -> Iterator[Make]:
    """Makes executors that use a connection this process has, as a program of Ray's would."""
    yield from closing(lambda job, workers, options: RayExecutor(job, workers, **options))


@pytest.fixture
def connect(cluster: Any) -> Iterator[Make]:
    """Makes executors that connect and disconnect."""
    ray.shutdown()
    yield from closing(
        lambda reference, workers, options: RayExecutor(reference, workers, address=cluster.address, **options)
    )
    assert not ray.is_initialized()


def closing(new: Callable[[str, int, dict[str, Any]], RayExecutor]) -> Iterator[Make]:
    made: list[RayExecutor] = []

    def start(job: str, workers: int = 1, **options: Any) -> RayExecutor:
        made.append(new(job if ":" in job else f"{HERE}:{job}", workers, options))
        return made[-1]

    yield start
    for executor in made:
        executor.close()


make_elsewhere = make


def descendants(process: int) -> set[int]:
    """Process ids of all that a process has started, directly or not."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    level = {process}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return found


def listening(processes: set[int]) -> set[str]:
    """Local addresses, as /proc/net writes them, on which any of these processes waits for connections."""
    sockets = set()
    for process in processes:
        for handle in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(str(handle.readlink()))
    found = set()
    for table_of in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table_of}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


# 127.0.0.1 as such, and as an address of IPv6, in the byte order of a little-endian machine.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def noted(executor: RayExecutor, folder: Path, number: int) -> list[str]:
    """Waits for the note of `wait_for_sign`: its process, its supervisor, its devices."""
    deadline = time.monotonic() + PATIENCE
    while not (folder / str(number)).exists():
        assert time.monotonic() < deadline
        begun = executor.poll(0.05)
        assert all(isinstance(event, Started | Heartbeat) for event in begun), begun
    return (folder / str(number)).read_text().split(" ")


# -- what goes wrong on a node --


@pytest.mark.parametrize(
    ("job", "options", "kind", "message"),
    [
        ("fault", {}, "crashed", "the worker process died with signal SIGSEGV"),
        ("hang", {"time_limit": 0.3}, "timed_out", "took longer than 0.3 s"),
    ],
)
def test_a_failure_is_told_apart_as_on_one_machine(
    make: Make, job: str, options: dict[str, Any], kind: str, message: str
) -> None:
    assert failure(make(job, **options)) == (kind, message)


def test_a_killed_process_loses_its_job_and_its_supervisor_starts_another(make: Make) -> None:
    executor = make("killed_from_outside")
    assert isinstance(result(executor), Lost)
    lost = result(executor, some_job(1))
    assert isinstance(lost, Lost)
    assert lost.reason == "the worker process was killed (SIGKILL)"


def test_a_killed_actor_loses_its_job_and_the_next_one_gets_another(make: Make, folder: Path) -> None:
    executor = make("tests.contracts.cluster_jobs:wait_for_sign")
    executor.submit(some_job(0))
    process, supervisor = map(int, noted(executor, folder, 0)[:2])
    os.kill(supervisor, signal.SIGKILL)
    lost = ending(executor)
    assert isinstance(lost, Lost)
    assert lost.number == 0
    assert lost.reason.endswith("was killed")
    wait_until(lambda: not alive(process))
    (folder / SIGN).touch()
    assert isinstance(result(executor, some_job(1)), Finished)
    assert int(noted(executor, folder, 1)[1]) != supervisor


def test_an_actor_killed_between_jobs_is_replaced(make: Make) -> None:
    executor = make("tests.contracts.cluster_jobs:whereabouts")
    first = result(executor, some_job(0))
    assert isinstance(first, Finished)
    os.kill(first.outcome.detail["supervisor"], signal.SIGKILL)
    wait_until(lambda: not alive(first.outcome.detail["supervisor"]))
    executor.poll(0.5)
    second = result(executor, some_job(1))
    assert isinstance(second, Finished)
    assert second.outcome.detail["supervisor"] != first.outcome.detail["supervisor"]


def test_a_node_that_dies_loses_its_jobs_and_the_rest_goes_on(cluster: Any, make: Make, folder: Path) -> None:
    executor = make("tests.contracts.cluster_jobs:wait_for_sign", 2)
    for number in range(4):
        executor.submit(some_job(number))
    (victim,) = cluster.worker_nodes
    supervisors = {number: int(noted(executor, folder, number)[1]) for number in (0, 1)}
    there = descendants(victim.all_processes["raylet"][0].process.pid)
    (on_it,) = [number for number, supervisor in supervisors.items() if supervisor in there]
    cluster.remove_node(victim, allow_graceful=False)
    try:
        lost = ending(executor)
        assert isinstance(lost, Lost)
        assert lost.number == on_it
        assert "died or cannot be reached" in lost.reason
        (folder / SIGN).touch()
        events = collect(executor, 3)
        assert {event.number for event in events if isinstance(event, Finished)} == {0, 1, 2, 3} - {on_it}
        assert isinstance(result(executor, some_job(on_it)), Finished)
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)


def test_each_trial_has_a_device_of_its_own_and_none_begins_where_there_is_none(
    cluster: Any, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_LOOK_SECONDS", 0.0)
    node = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE)
    try:
        executor = make("tests.contracts.cluster_jobs:wait_for_sign", 2, devices=1, patience=0.0)
        executor.submit(some_job(0))
        executor.submit(some_job(1))
        assert {noted(executor, folder, number)[2] for number in (0, 1)} == {"0", "1"}
        executor.submit(some_job(2), Resources(devices=2))
        events = poll_for(executor, Failed)
        assert events[-1] == Failed(2, Failure("refused", "it asks for 2 devices; a worker has 1"))
    finally:
        cluster.remove_node(node, allow_graceful=False)
    assert {event.number for event in collect(executor, 2) if isinstance(event, Lost)} == {0, 1}
    executor.submit(some_job(3))
    with pytest.raises(StudyError, match="one worker needs 1 CPU, 1 GPU, and no node of the Ray cluster has that"):
        collect(executor, 1)


def test_a_killed_job_leaves_its_node_at_once(make: Make, folder: Path) -> None:
    executor = make("tests.contracts.cluster_jobs:wait_for_sign")
    executor.submit(some_job(0))
    process = int(noted(executor, folder, 0)[0])
    executor.kill(0)
    wait_until(lambda: not alive(process))
    (folder / SIGN).touch()
    assert [type(e) for e in collect_of(executor, 0)] == [Started, Finished]  # the same number, begun anew


def collect_of(executor: RayExecutor, number: int) -> list[Event]:
    executor.submit(some_job(number))
    return [event for event in collect(executor, 1) if isinstance(event, Started | Finished | Failed | Lost)]


# -- what is exchanged --


def test_files_come_back_as_bytes_from_a_worker_that_shares_no_folder(
    connect: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "driver").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    executor = connect("tests.contracts.cluster_jobs:whereabouts", runtime_env={"working_dir": str(tmp_path / "code")})
    study = Study.start(Path("study"), small("whereabouts"))  # a path that means nothing in the worker's directory
    study.run(executor=executor)
    trials = study.trials
    assert [trial.status for trial in trials] == 4 * [TrialStatus.COMPLETED]
    for trial in trials:
        worker = Path(trial.detail["folder"])
        assert not worker.is_relative_to(tmp_path)
        assert not (worker / "study").exists()
        (kept,) = Path("study").rglob(f"{trial.number:04d}*/**/weights")
        assert kept.read_bytes() == b"weights of %d" % trial.number


def small(job: str, trials: int = 4) -> StudyDefinition:
    return definition(trials=trials, evaluate=f"tests.contracts.cluster_jobs:{job}")


# -- studies --


def test_a_random_study_has_the_same_trials_as_with_processes(make: Make, tmp_path: Path) -> None:
    ours = Study.start(tmp_path / "ray", definition(trials=8))
    ours.run(executor=make("formula", 2))
    theirs = Study.start(tmp_path / "process", definition(trials=8))
    with contextlib.closing(ProcessExecutor(f"{HERE}:formula", workers=2)) as executor:
        theirs.run(executor=executor)
    assert all(trial.status is TrialStatus.COMPLETED for trial in ours.trials)
    assert by_configuration(ours) == by_configuration(theirs)


def test_the_state_of_a_rung_travels_to_its_promotion(make: Make, tmp_path: Path) -> None:
    with Study.start(tmp_path / "ray", definition(searcher=HalvingSearch(keep=0.5), trials=4)) as study:
        study.run(executor=make(f"{stepwise_jobs.HERE}:chained", 2))
        assert sum(t.scored for t in study.trials) == 2
        for trial in study.trials:
            if trial.scored:
                assert trial.detail["chain"] == stepwise_jobs.chain_of(trial.configuration)
        assert not list((tmp_path / "ray" / "checkpoints").iterdir())


def by_configuration(study: Study) -> dict[str, dict[str, Any]]:
    rows = {trial.configuration.id: row for trial, row in zip(study.trials, table(study.trials), strict=True)}
    assert len(rows) == len(study.trials)
    return {key: {k: v for k, v in row.items() if k not in ("number", "detail")} for key, row in rows.items()}


def test_a_killed_worker_loses_no_finished_trial_and_the_study_ends_complete(
    make: Make, folder: Path, tmp_path: Path
) -> None:
    executor = make("tests.contracts.cluster_jobs:kill_supervisor_once", 2)
    study = Study.start(tmp_path / "study", small("kill_supervisor_once", trials=8))
    seen: list[Event] = []
    report = study.run(executor=executor, progress=lambda event, trial: seen.append(event))
    assert (folder / "killed").exists()
    assert [event.number for event in seen if isinstance(event, Lost)] == [3]
    assert sorted(event.number for event in seen if isinstance(event, Finished)) == list(range(8))
    assert report.completed == 8
    assert [trial.status for trial in study.trials] == 8 * [TrialStatus.COMPLETED]


# -- clusters --


def test_a_cluster_of_our_own_is_private_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment, handler, before = dict(os.environ), signal.getsignal(signal.SIGTERM), descendants(os.getpid())
    executor = RayExecutor(f"{HERE}:formula", 2, object_store=STORE)
    session = Path(executor._ray._private.worker._global_node.get_session_dir_path())
    try:
        assert session.is_dir()
        assert session.parents[1].stat().st_mode & 0o077 == 0  # the sockets of its servers lie there
        assert isinstance(result(executor), Finished)
        started = descendants(os.getpid()) - before
        assert len(started) > 4  # the servers of Ray, the actors and what they look after
        assert listening(started | {os.getpid()}) <= LOOPBACK
        assert refused_without_token(executor)
    finally:
        executor.close()
    assert not any(map(alive, started))
    assert not session.parents[1].exists()
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGTERM) is handler


def refused_without_token(executor: RayExecutor) -> bool:
    address = executor._ray.get_runtime_context().gcs_address
    code = f"from autopeft.study.executors.cluster import Cluster; Cluster({address!r}, 1).close()"
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=stranger, capture_output=True, text=True)
    return "refuses us: the token is missing or wrong" in done.stderr


def agent(process: int) -> bool:
    """Says whether it is one of two idle processes of Ray that wait a minute for a killed node to come back."""
    return b"Agent" in Path(f"/proc/{process}/cmdline").read_bytes().partition(b"\0")[0]


@pytest.fixture
def short_folder() -> Iterator[str]:
    """A temporary directory whose path is short enough for the sockets of Ray."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        yield made


def test_nothing_is_left_of_a_driver_that_is_killed(short_folder: str) -> None:
    code = (
        "from tests.contracts.cheap_jobs import HERE, some_job\n"
        "from autopeft.study.executors.ray import RayExecutor\n"
        f"executor = RayExecutor(f'{{HERE}}:hang', object_store={STORE})\n"
        "executor.submit(some_job())\n"
        "while True: print(*executor.poll(1.0), flush=True)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": short_folder},
        stdout=subprocess.PIPE,
    )
    assert driver.stdout is not None
    try:
        assert any(line.startswith(b"Started") for line in driver.stdout)
        started = {process for process in descendants(driver.pid) if not agent(process)}
        assert len(started) > 3
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
    wait_until(lambda: not any(map(alive, started)))


def test_more_workers_than_the_cluster_has_room_for_still_end(connect: Make) -> None:
    executor = connect("formula", 3)
    for number in range(5):
        executor.submit(some_job(number))
    assert {event.number for event in collect(executor, 5) if isinstance(event, Finished)} == set(range(5))


def test_a_worker_that_fits_on_no_node_is_refused_with_the_numbers(make: Make) -> None:
    offers = r"one worker needs 3 CPUs, and no node of the Ray cluster has that \(1 CPU; 1 CPU\)"
    with pytest.raises(InputError, match=offers):
        make("formula", threads=3)


def test_another_version_on_a_node_is_refused_with_both(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ray_executor.__version__
    monkeypatch.setattr(ray_executor, "__version__", "0.0.9")
    executor = make("formula", 2)
    executor.submit(some_job())
    with pytest.raises(StudyError, match=f"has autopeft {ours}, this one has 0.0.9; install one version everywhere"):
        collect(executor, 1)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "address: no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "which is not supported; give host:port"),
        ("head-node", '\'head-node\' is no address; use "auto" or "host:port"'),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, message: str) -> None:
    ray.shutdown()
    with pytest.raises(InputError, match=message):
        make_executor("ray", f"{HERE}:formula", 1, 1, address=address)


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"'ray' is not installed; pip install 'autopeft\[ray\]'"):
        make_executor("ray", f"{HERE}:formula", 1, 1)


def test_ray_is_imported_only_for_its_executor() -> None:
    code = "import sys, autopeft.study.study, autopeft.study.executors.ray; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_unknown_executor_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown executor 'rey'; did you mean 'ray'"):
        make_executor("rey", f"{HERE}:formula", 1, 1)
