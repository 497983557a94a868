"""Running one job in this process: every exception becomes a failure with its kind. Torch-free."""

from __future__ import annotations

import errno
import traceback

from autopeft.errors import AutoPeftError, InputError, MissingExtra, TrainingError
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from autopeft.redaction import redacted
from autopeft.study.executors.base import Ending, Evaluate, Failed, Finished, Lost, named
from autopeft.study.executors.memory import measure
from autopeft.trial import Failure

# torch tells that memory ran out by a plain RuntimeError on a CPU; these are its words, and those of CUDA.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")


def perform(evaluate: Evaluate | str, job: Job, report: Report = SILENT) -> Ending:
    """Runs a job and returns how it ended; raises nothing but what asks the process itself to stop.

    What has ended badly carries its cost: CPU and wall time, and the peak of this process's memory meanwhile.

    Args:
        evaluate: The function, or its name as "package.module:function".
        job: The job.
        report: Told where the job is; may ask it to stop.
    """
    cost = measure()
    try:
        outcome = (named(evaluate) if isinstance(evaluate, str) else evaluate)(job, report)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"evaluate returned {type(outcome).__name__}, not an Outcome")
    except JobStopped:
        return Lost(job.number, "it was asked to stop", stopped=True, cost=cost())
    except (Exception, SystemExit) as error:
        return Failed(job.number, failure_of(error), cost())
    return Finished(job.number, outcome)


def failure_of(error: BaseException) -> Failure:
    """Returns the record of an exception, without secrets: its kind, its first line and its traceback.

    Example:
        >>> failure_of(MemoryError()).kind
        'out_of_memory'
    """
    name, text = type(error).__name__, str(error)
    memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
    memory = memory or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if isinstance(error, TrainingError):
        kind, message = error.kind, text
    elif isinstance(error, InputError | MissingExtra | OSError) and not memory:
        # What the job was given is not there or cannot be used; no configuration is to blame.
        kind, message = "refused", text if isinstance(error, AutoPeftError) else f"{name}: {text}"
    else:
        memory = memory or (isinstance(error, RuntimeError) and any(words in text.lower() for words in NO_MEMORY))
        kind, message = "out_of_memory" if memory else "error", f"{name}: {text}" if text else name
    first = next(iter(redacted(message).splitlines()), name)
    return Failure(kind, first[:500], redacted("".join(traceback.format_exception(error))))
