"""Where a study's data and backbone lie: absolute, so that it goes on from any working directory. Torch-free."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from autopeft.setting import Setting
from autopeft.tasks.base import TaskSource
from autopeft.untrusted import is_file, is_folder

FILES = ("train", "validation", "selection", "test")


def located(setting: Setting) -> Setting:
    """Returns the setting with the paths of files and folders that exist made absolute.

    Names of the hub and "demo" stay as they are.

    Args:
        setting: Data and backbone, as the user named them.

    Example:
        >>> located(setting).source.train  # doctest: +SKIP
        '/home/ann/reviews.csv'
    """
    source = _located_source(setting.source)
    reference = setting.backbone.reference
    if reference != "demo" and is_folder(os.path.expanduser(reference)):  # noqa: PTH111
        reference = _absolute(reference)
    # The source stands in the task's own record too; both say the same.
    task = {**setting.task, "source": vars(source).copy()} if "source" in setting.task else setting.task
    return replace(setting, source=source, task=task, backbone=replace(setting.backbone, reference=reference))


def _located_source(source: TaskSource) -> TaskSource:
    def place(name: str) -> str:
        return _absolute(name) if name != "demo" and is_file(name) else name

    return replace(
        source,
        train=place(source.train),
        validation=source.validation and place(source.validation),
        selection=source.selection and place(source.selection),
        test=source.test and place(source.test),
    )


def _absolute(name: str) -> str:
    return os.path.abspath(Path(name).expanduser())  # noqa: PTH100 - a link stays a link, ".." goes
