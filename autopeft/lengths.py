"""How long the texts are, in tokens of the backbone: what time and memory of a trial depend on. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from autopeft.families import locate
from autopeft.setting import Setting
from autopeft.tasks import Task

EVALUATED: Final = 64
"""Texts of a batch that is scored."""
EXACT_TEXTS: Final = 256
"""How many of a split's texts are tokenised: evenly spaced ones for the mean, and as many with the most characters."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a split's texts, after cutting: what time and memory depend on.

    Attributes:
        texts: How many.
        mean: Tokens of a text on average.
        longest: Tokens of the longest.
        widest: Tokens of the widest scored batch, padding included: the texts sorted by length and cut into batches of
            `EVALUATED`.
        widest_length: Tokens of a text in that batch, padding included.
    """

    texts: int
    mean: float
    longest: int
    widest: int
    widest_length: int

    @staticmethod
    def of(lengths: Sequence[int]) -> Lengths:
        """Returns the summary of all lengths of a split; zeros for none.

        Example:
            >>> Lengths.of([3, 5, 4])
            Lengths(texts=3, mean=4.0, longest=5, widest=15, widest_length=5)
        """
        ordered = sorted(lengths)
        batches = [ordered[i : i + EVALUATED] for i in range(0, len(ordered), EVALUATED)]
        size, length = max(((len(b) * b[-1], b[-1]) for b in batches), default=(0, 0))
        mean = float(np.mean(ordered)) if ordered else 0.0
        return Lengths(len(ordered), mean, ordered[-1] if ordered else 0, size, length)


Texts = Mapping[str, Lengths]
"""Lengths by split."""


def lengths_of(setting: Setting, task: Task) -> dict[str, Lengths]:
    """Returns the lengths of the training and validation texts, counted by the backbone's own tokenizer.

    Of a large split the mean is that of `EXACT_TEXTS` evenly spaced texts, and the longest are looked for among as many
    with the most characters. Where the backbone has no `tokenizer.json`: four tokens for three words.

    Args:
        setting: The backbone, and where texts are cut.
        task: The loaded data.

    Cost: 50 ms or so.
    """
    count = _counter(setting)
    return {name: _lengths(setting, task, name, count) for name in ("train", "validation") if name in task.splits}


def _lengths(setting: Setting, task: Task, split: str, count: Callable[[list[str]], list[int]]) -> Lengths:
    examples, most = task.splits[split], setting.recipe.max_length
    pairs = examples.pairs or ("",) * len(examples)
    texts = [f"{text} {pair}" if pair else text for text, pair in zip(examples.texts, pairs, strict=True)]
    if len(texts) <= 2 * EXACT_TEXTS:
        return Lengths.of([min(n, most) for n in count(texts)])
    spaced = [min(n, most) for n in count([texts[i] for i in np.linspace(0, len(texts) - 1, EXACT_TEXTS).astype(int)])]
    longest = sorted(min(n, most) for n in count(sorted(texts, key=len)[-EXACT_TEXTS:]))
    size = len(texts) % EVALUATED or EVALUATED
    # Sorted by length, the last batch holds the longest texts, and a full one comes before it.
    widths = [(size * longest[-1], longest[-1]), (EVALUATED * longest[-1 - size], longest[-1 - size])]
    return Lengths(len(texts), float(np.mean(spaced)), max(*longest, *spaced), *max(widths))


def _counter(setting: Setting) -> Callable[[list[str]], list[int]]:
    special = 3 if setting.source.text_pair is not None else 2
    try:
        from tokenizers import Tokenizer

        folder = locate(setting.backbone.reference, setting.backbone.revision)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception:  # the library raises bare exceptions for files it does not know; the backbone may be elsewhere
        return lambda texts: [round(4 / 3 * len(text.split())) + special for text in texts]
    return lambda texts: [len(encoding.ids) + special - 2 for encoding in tokenizer.encode_batch(texts)]
