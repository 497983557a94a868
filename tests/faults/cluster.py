"""Faults of a Ray cluster: an actor dies, a node dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from autopeft.study.study import Study
from tests.faults.runs import Run, Scene, Skipped, Tally, begun, log_of, require_whole


def actor_killed(scene: Scene) -> Tally:
    """A Ray actor is killed while it runs a trial: the trial is run again elsewhere, from its checkpoint."""
    _require_ray()
    tally, folder = Tally(), scene.place / "actor"
    kills: set[int] = set()
    with tally.attempt("killed actor", times=0):
        run = Run(folder, "--executor", "ray", "--workers", 2)
        run.wait_until(lambda: begun(folder))
        while run.process.poll() is None and len(kills) < scene.often(6, 1):
            for number, process in begun(folder)[-1:]:
                if number not in kills:
                    with contextlib.suppress(OSError, ProcessLookupError):
                        os.kill(_parent(process), signal.SIGKILL)
                        kills.add(number)
            time.sleep(scene.draw.uniform(0.5, 1.5))
        code, told, errors = run.end()
        tally.tried += len(kills)
        assert (code, told.get("stopped")) == (0, "finished"), (code, told, errors[-500:])
        _require_same(folder, len(kills), tally)
    return tally


def node_killed(scene: Scene) -> Tally:
    """A node of a Ray cluster dies with what ran on it: its trials are run again on another node."""
    ray = _require_ray()
    from ray.cluster_utils import Cluster

    tally, folder = Tally(), scene.place / "node"
    settings = {"RAY_AUTH_MODE": "disabled", "CHEAP_JOBS_LOG": str(log_of(folder)), "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in (*settings, "RAY_ADDRESS")}
    os.environ.update(settings)
    head = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(True, head_node_args={**head, "_system_config": {"health_check_period_ms": 1000}})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
        os.environ["RAY_ADDRESS"] = cluster.address
        with tally.attempt("killed node"):
            run = Run(folder, "--executor", "ray", "--workers", 2)
            run.wait_until(lambda: len(begun(folder)) > 5)
            cluster.remove_node(nodes[1], allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
            code, told, errors = run.end()
            assert (code, told.get("stopped")) == (0, "finished"), (code, told, errors[-500:])
            _require_same(folder, 2, tally)
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return tally


def _require_same(folder: Path, most: int, tally: Tally) -> None:
    require_whole(folder)
    with Study.open(folder, readonly=True) as study:
        again = {e.trial for e in study.events if e.kind == "interrupted" and e.detail.get("lost")}
    assert again, "no trial was lost, so nothing was tried"
    assert len(again) <= most, again
    tally.seen["run again"] += len(again)


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _require_ray():  # type: ignore[no-untyped-def]
    try:
        import ray
    except ImportError:
        raise Skipped("Ray is not installed") from None
    return ray


FAULTS = {"ray-actor-killed": actor_killed, "ray-node-killed": node_killed}
