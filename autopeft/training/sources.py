"""Where the last hidden states of a batch come from: from the texts, or from what was computed of them before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from autopeft.training.batches import Tokens


@dataclass(frozen=True)
class Hidden:
    """What a head reads of one batch.

    Attributes:
        last: Last hidden states, shape (batch, tokens, width).
        mask: 1 at real tokens, 0 at padding, shape (batch, tokens).
    """

    last: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Source(ABC):
    """One split, read through a backbone with its modules.

    Attributes:
        model: The backbone.
        tokens: The tokenised split.
    """

    model: PreTrainedModel
    tokens: Tokens

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.model.device

    @abstractmethod
    def hidden(self, rows: NDArray[np.int64]) -> Hidden:
        """Returns the last hidden states of the texts at `rows`; a gradient flows to whatever is trained."""


@final
@dataclass(frozen=True)
class Texts(Source):
    """Runs the whole backbone.

    Example:
        >>> Texts(model, tokens).hidden(np.arange(4)).last.shape  # doctest: +SKIP
        torch.Size([4, 17, 384])
    """

    def hidden(self, rows: NDArray[np.int64]) -> Hidden:
        """See `Source.hidden`."""
        inputs = {name: tensor.to(self.device) for name, tensor in self.tokens.inputs(rows).items()}
        return Hidden(self.model(**inputs).last_hidden_state, inputs["attention_mask"])
