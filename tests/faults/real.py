"""Runs a small real study, with a tiny BERT that is really trained: the program that is killed within its training.

    python -m tests.faults.real FOLDER [--trials 3] [--workers 1] [--epochs 30] [--absurd]

Backbone and data are made beside FOLDER, from a seed, where they are missing. --absurd adds two baselines whose
learning rates no number withstands.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from autopeft import spaces, tasks
from autopeft.errors import AutoPeftError
from autopeft.presets import preset
from autopeft.setting import Recipe, describe_backbone
from autopeft.study.limits import Terms
from autopeft.study.study import Study
from autopeft.trial import Budget


def materials(place: Path) -> tuple[str, str]:
    """Returns a backbone's folder and a file of 120 labelled texts; makes them where they are missing."""
    backbone, data = place / "backbone", place / "train.csv"
    if not data.exists():
        _make(place / "backbone.new")
        (place / "backbone.new").rename(backbone)
        from tests.e2e.conftest import lines, write_csv

        write_csv(data, lines(120))
    return str(backbone), str(data)


def _make(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from tests import models
    from tests.e2e.conftest import BAD, GOOD, OTHER

    models.tiny_model("bert", torch.float32).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *GOOD, *BAD, *OTHER))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--absurd", action="store_true")
    given = parser.parse_args()
    reference, data = materials(given.folder.parent)
    backbone = describe_backbone(reference)
    absurd = [(f"absurd {rate:g}", preset("lora", backbone.shape, rate)) for rate in (1e30, 1e36)]
    try:
        with Study.create(
            given.folder,
            backbone=backbone,
            task=tasks.load(data, text="text", label="label"),
            space=spaces.autopeft(lora=(0, 2), serial=(0, 4), parallel=False, prefix=(0, 2)),
            trials=given.trials,
            recipe=replace(Recipe(), batch_size=8, max_length=32),
            budget=Budget(0, given.epochs),
            searcher="random",
            baselines=absurd if given.absurd else (),
        ) as study:
            report = study.run(given.workers, terms=Terms(checkpoint_seconds=0.2))
    except AutoPeftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps({"stopped": report.stopped, "completed": report.completed, "failed": report.failed}))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
