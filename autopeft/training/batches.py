"""Texts tokenised once, and batches cut from them by length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from autopeft.tasks.base import Examples


@dataclass(frozen=True)
class Tokens:
    """One split, tokenised: all texts end to end in contiguous tensors.

    Attributes:
        ids: Token ids, shape (total,).
        types: Token type ids, shape (total,), or None where the backbone takes none.
        starts: Offset of each text and the total, shape (n + 1,).
        targets: Shape (n,): class indices (int64) or numbers (float32).
        pad: Id of the padding token.
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    starts: NDArray[np.int64]
    targets: torch.Tensor
    pad: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, shape (n,)."""
        return np.diff(self.starts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what a backbone reads of the texts, the targets left out; about 1 ms per 100,000 tokens, once."""
        digest = hashlib.sha256(f"{self.pad} {self.types is not None}".encode())
        for part in (self.starts, self.ids.numpy(), *([] if self.types is None else [self.types.numpy()])):
            digest.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Returns the texts at `rows` padded to the longest: keyword arguments of the backbone, each (batch, tokens).

        "attention_mask" is among them.
        """
        places, mask = self.places(rows)
        found = {"input_ids": self.ids[places].masked_fill_(~mask, self.pad), "attention_mask": mask.long()}
        if self.types is not None:
            found["token_type_ids"] = self.types[places].masked_fill_(~mask, 0)
        return found

    def places(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns where the tokens of a padded batch lie in the split, and which of them are no padding.

        Args:
            rows: Texts of the batch, in order.

        Returns:
            Offsets into `ids`, int64, shape (batch, tokens), at padding those of some other token; and a mask, bool, of
            the same shape.
        """
        lengths = self.lengths[rows]
        steps = np.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        places = np.where(mask, self.starts[rows][:, None] + steps, 0)
        return torch.from_numpy(places), torch.from_numpy(mask)


def tokenise(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> Tokens:
    """Tokenises one split; texts longer than `max_length` tokens are cut.

    Args:
        tokenizer: The backbone's tokenizer.
        examples: The split.
        max_length: Tokens kept per text or pair.
    """
    pairs = list(examples.pairs) if examples.pairs is not None else None
    encoded = tokenizer(list(examples.texts), pairs, truncation=True, max_length=max_length)
    rows: Sequence[Sequence[int]] = encoded["input_ids"]
    kinds: Sequence[Sequence[int]] | None = None
    if "token_type_ids" in tokenizer.model_input_names:
        kinds = encoded["token_type_ids"]
    whole = np.issubdtype(examples.targets.dtype, np.integer)
    return Tokens(
        ids=torch.tensor([i for row in rows for i in row]),
        types=None if kinds is None else torch.tensor([i for row in kinds for i in row]),
        starts=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        targets=torch.as_tensor(examples.targets, dtype=torch.long if whole else torch.float32),
        pad=int(tokenizer.pad_token_id or 0),
    )


def by_length(tokens: Tokens, size: int) -> list[NDArray[np.int64]]:
    """Returns the rows of every batch of an evaluation: all texts, sorted by length so that padding is small."""
    order = np.argsort(tokens.lengths, kind="stable").astype(np.int64)
    return [order[i : i + size] for i in range(0, len(order), size)]


def bucketed(
    tokens: Tokens, rows: NDArray[np.int64], size: int, rng: np.random.Generator, pool: int = 8
) -> list[NDArray[np.int64]]:
    """Returns the batches of one epoch: random order, with texts of similar length together.

    Rows are shuffled, sorted by length within pools of `pool` batches, cut into batches, and the batches shuffled, so
    that padding is small and every epoch differs.

    Args:
        tokens: The tokenised split.
        rows: Rows to use.
        size: Rows per batch.
        rng: Controls the order.
        pool: Batches sorted together; 1 gives plain shuffling.
    """
    order = rng.permutation(rows)
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), size * pool):
        chunk = order[start : start + size * pool]
        chunk = chunk[np.argsort(tokens.lengths[chunk], kind="stable")]
        batches.extend(chunk[i : i + size] for i in range(0, len(chunk), size))
    return [batches[i] for i in rng.permutation(len(batches))]
