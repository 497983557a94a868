"""What the fresh process of `run.py` does: train one configuration, and say what memory each stage needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autopeft.configuration import Configuration
from autopeft.job import Job
from autopeft.setting import Setting
from autopeft.trial import Budget


def resident(key: str = "VmRSS") -> int:
    """Returns the resident bytes of this process: now ("VmRSS"), at its peak ("VmHWM"), or of files ("RssFile")."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def measure(file: str) -> None:
    """Reads a job from a file, trains it, and prints JSON.

    The job may be run several times, as a worker does that lives long.
    """
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    setting = Setting.from_dict(asked["setting"])
    configuration = Configuration.from_dict(asked["configuration"])
    found: dict[str, Any] = {"driver": resident()}
    from autopeft import worker

    found["imported"] = resident()
    loaded = worker.load_setting(setting)
    found["loaded"] = resident()
    train = loaded.split("train")
    found["tokenised"] = resident()
    found["lengths"] = {name: sorted(int(n) for n in loaded.split(name).lengths) for name in ("train", "validation")}
    found["tokens_bytes"] = train.ids.nbytes + (0 if train.types is None else train.types.nbytes)
    outcomes = [
        worker.evaluate(Job(0, configuration, Budget(**asked["budget"]), seed, setting, keep=False))
        for seed in range(asked["jobs"])
    ]
    found["peaks"] = [outcome.cost.peak_bytes for outcome in outcomes]
    found["cpu_seconds"] = [round(outcome.cost.cpu_seconds, 2) for outcome in outcomes]
    found["process_peak"] = resident("VmHWM")
    found["after"] = resident()
    found["after_files"] = resident("RssFile")
    print(json.dumps(found))
