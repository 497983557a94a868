"""A tiny backbone and a tiny data set on disk, and the command line in this process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from autopeft.cli import app
from tests import models

GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "awful")
OTHER = ("the", "film", "was", "very", "long", "a", "day", "in", "town")

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of 3 layers, 32 wide, with a WordPiece tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("backbone")
    models.tiny_model("bert", torch.float32).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *GOOD, *BAD, *OTHER))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return str(folder)


def lines(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Returns n different texts with their labels: one word decides."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < n:
        label = rng.choice(("pos", "neg"))
        words = [rng.choice(OTHER) for _ in range(6)] + [rng.choice(GOOD if label == "pos" else BAD)]
        rng.shuffle(words)
        found[" ".join(words)] = label
    return list(found.items())


def write_csv(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", lines(120))


@pytest.fixture(scope="session")
def cli() -> Run:
    """Runs a verb in this process."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="session")
def base(backbone: str, data: str) -> tuple[str, ...]:
    """The flags of a study small enough for a test: two sizes of two modules, one epoch."""
    return (
        *("--train", data, "--text", "text", "--label", "label", "--backbone", backbone),
        *(
            "--set",
            "space.serial=[0,4]",
            "--set",
            "space.prefix=[0,2]",
            "--no-parallel",
            "--learning-rate",
            "3e-3,1e-2",
        ),
        *("--epochs", "1", "--batch-size", "16", "--max-length", "32", "--searcher", "random"),
    )
