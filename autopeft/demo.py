"""The demo: a whole search on data of this machine, from nothing to a checked adapter. The driver loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopeft import spaces, tasks
from autopeft.errors import AutoPeftError, StudyError
from autopeft.job import predictions_digest
from autopeft.presets import baselines
from autopeft.report.html import write_report
from autopeft.setting import Recipe, describe_backbone
from autopeft.study.driver import RunReport, Watch
from autopeft.study.store import Store
from autopeft.study.study import Study
from autopeft.tasks import Task
from autopeft.trial import Trial, TrialStatus

TRIALS = 24
NOISE_SEEDS = 3
MAX_LENGTH = 48
"""Tokens a text is cut to; 15 on average, and the few long ones would take a fifth of the time."""
CHOSEN_SHARE = "1%"
"""The adapter that is saved is the front's best with at most this share of the backbone."""

BASELINES = {"probe": (1e-3,), "lora": (3e-3,), "lora_all_linear": (1e-3, 3e-3), "serial": (3e-3,), "full": (3e-4,)}
"""Preset and learning rates."""

NOISY = "lora"
"""The baseline that is repeated with fresh seeds, to measure what a seed is worth."""

_CLI = "import sys; sys.path[:] = {path!r}; from autopeft.cli import main; main()"


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind.

    Attributes:
        study: Directory of the study.
        report: The HTML report.
        adapter: The saved adapter.
        chosen: Number of its trial.
        texts: How many texts a fresh process predicted with it.
        identical: Whether those predictions were those of the process that trained it.
        example: A text to try it on.
    """

    study: Path
    report: Path
    adapter: Path
    chosen: int
    texts: int
    identical: bool
    example: str


class DemoStopped(AutoPeftError):  # noqa: N818
    """The demo was stopped before its end.

    Attributes:
        report: How the run ended.
    """

    def __init__(self, report: RunReport) -> None:
        failure = f": {report.failure.message}" if report.failure else ""
        super().__init__(f"the demo was stopped ({report.stopped}{failure})", cure="the same command goes on")
        self.report = report


def finished(out: Path, trials: int = TRIALS) -> DemoResult | None:
    """Returns the result of a demo that is complete in `out`, or None where there is something left to do."""
    marker = out / "demo.json"
    if not (marker.is_file() and Store.exists(out / "study")):
        return None
    stored = json.loads(marker.read_text(encoding="utf-8"))
    paths = {name: out / stored[name] for name in ("study", "report", "adapter")}
    if stored["trials"] < trials or not all(path.exists() for path in paths.values()):
        return None
    rest = {name: stored[name] for name in ("chosen", "texts", "identical", "example")}
    return DemoResult(**paths, **rest)


def definition_of(task: Task, out: Path, trials: int) -> Study:
    """Creates or continues the demo's study."""
    backbone = describe_backbone("demo")
    return Study.create(
        out / "study",
        backbone=backbone,
        task=task,
        space=spaces.autopeft(lora=True),
        trials=trials,
        recipe=Recipe(batch_size=16, max_length=MAX_LENGTH, threads=1),
        baselines=baselines(backbone.shape, BASELINES),
    )


def run(
    out: Path,
    *,
    trials: int = TRIALS,
    workers: int = 2,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Runs the demo, or what is left of it after a kill, and returns what it made.

    Searches with `trials` trials beside the baselines, repeats one baseline with fresh seeds, writes the report, saves
    the best adapter of at most `CHOSEN_SHARE` of the backbone, and has a fresh process predict with it.

    Args:
        out: Directory of everything.
        trials: Search trials.
        workers: Trials at once, one thread each.
        watch: Told of every event.
        say: Told what is being done, a line each.

    Raises:
        DemoStopped: Ctrl-C, SIGTERM, or trials that all failed alike.
        AutoPeftError: The saved adapter does not predict as it did while it was trained.
    """
    say("building the data: docstrings of this Python's standard library, labelled by what they document")
    task = tasks.demo()
    with definition_of(task, out, trials) as study:
        say(f"searching: {len(study.definition.baselines)} baselines, then {trials} trials, {workers} at once")
        ended = study.run(workers=workers, progress=watch)
        if ended.exit_code:
            raise DemoStopped(ended)
        say(f"repeating the baseline '{NOISY}' with {NOISE_SEEDS} fresh seeds, to see what a seed is worth")
        noisy = next(t for t in study.baselines if t.proposal.note["name"] == NOISY)
        study.train(noisy.number, seeds=NOISE_SEEDS, splits=("validation",), workers=workers, progress=watch)
        chosen = _chosen(study)
        adapter = _save(study, chosen, out / "adapter")
        say("predicting with the saved adapter in a fresh process")
        identical = check(adapter, chosen, task)
        report = write_report(study, out / "report.html")
    result = DemoResult(
        study=out / "study",
        report=report,
        adapter=adapter,
        chosen=chosen.number,
        texts=len(task.splits["validation"]),
        identical=identical,
        example="Return the number of bytes that were written.",
    )
    if not identical:
        raise StudyError("the saved adapter does not predict as it did while it was trained", where=str(adapter))
    kept = {name: getattr(result, name) for name in ("chosen", "texts", "identical", "example")}
    names = {"study": "study", "report": report.name, "adapter": adapter.name, "trials": trials}
    (out / "demo.json").write_text(json.dumps({**kept, **names}, indent=2) + "\n", encoding="utf-8")
    return result


def check(adapter: Path, trial: Trial, task: Task) -> bool:
    """Says whether a fresh process predicts with a saved adapter what the training process predicted.

    Args:
        adapter: Folder of the adapter.
        trial: The trial that trained it; its record holds a digest of the predictions on the validation split.
        task: The data.
    """
    texts = task.splits["validation"].texts
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        command = ["predict", str(adapter), "--file", str(file), "--text", "text", "--json"]
        fresh = [sys.executable, "-c", _CLI.format(path=sys.path), *command]
        done = subprocess.run(fresh, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StudyError(f"the saved adapter cannot be used ({done.stderr.strip()})", where=str(adapter))
    index = {label: i for i, label in enumerate(task.labels)}
    predicted = np.array([index[record["label"]] for record in json.loads(done.stdout)])
    return bool(predictions_digest(predicted) == trial.detail["predictions"]["validation"])


def _chosen(study: Study) -> Trial:
    """Returns the front's best trial within `CHOSEN_SHARE`, or its smallest where all are larger."""
    limit = float(CHOSEN_SHARE.rstrip("%")) / 100 * study.definition.setting.backbone.shape.total_parameters
    front = [t for t in study.front.trials if t.status is TrialStatus.COMPLETED]
    within = [t for t in front if t.objectives["parameters"] <= limit]
    return within[0] if within else front[-1]


def _save(study: Study, trial: Trial, folder: Path) -> Path:
    study.save(trial.number, folder)
    return folder
