"""A small adapter that is sound, and a pickle that is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from autopeft.adapters import Adapter, build_head
from autopeft.backbones import inject
from autopeft.configuration import Configuration, Placement
from autopeft.heads import Head
from autopeft.modules import Prefix
from autopeft.setting import describe_backbone
from autopeft.shapes import Slot
from tests import models

SMALL = Configuration((Placement(Slot("encoder", 0, "attention"), Prefix(4)),))


class Malicious:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def save_backbone(folder: Path) -> Path:
    """Writes a random BERT of 3 layers, 32 wide, without a tokenizer."""
    models.tiny_model("bert", torch.float32).save_pretrained(folder)
    return folder


def small_adapter(backbone: Path) -> Adapter:
    """Returns an untrained adapter of that BERT: one prefix, two classes."""
    model = models.tiny_model("bert", torch.float32)
    injection, head = inject(model, SMALL), build_head(Head(), model, 2)
    return Adapter(
        configuration=SMALL,
        head=Head(),
        labels=("bad", "good"),
        reference=str(backbone),
        revision=None,
        sha256=describe_backbone(str(backbone)).sha256,
        max_length=16,
        pairs=False,
        tensors={**injection.stored_state(), **{f"head.{k}": v for k, v in head.state_dict().items()}},
        provenance={"metric": "accuracy", "scores": {"validation": 0.5}, "counts": {"stored": 384}},
    )
