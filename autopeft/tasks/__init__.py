"""Data of a task: read from files or the built-in demo, checked, split once, with its metric. Torch-free.

Example:
    >>> from autopeft import tasks
    >>> task = tasks.load("train.csv", text="review", label="stars")  # doctest: +SKIP
"""

from autopeft.tasks.base import Examples, SplitName, Task, TaskKind, TaskSource
from autopeft.tasks.load import demo, load, load_source
from autopeft.tasks.metrics import METRICS, Metric

__all__ = [
    "METRICS",
    "Examples",
    "Metric",
    "SplitName",
    "Task",
    "TaskKind",
    "TaskSource",
    "demo",
    "load",
    "load_source",
]
