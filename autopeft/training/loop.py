"""The training loop: one flat function to read in one sitting. Events are yielded, there are no callbacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.backbones import Injection
from autopeft.errors import FailureKind, TrainingError
from autopeft.heads.layer import HeadLayer
from autopeft.setting import Recipe
from autopeft.training.batches import Tokens, bucketed, by_length


@dataclass(frozen=True)
class EpochDone:
    """One pass over the training examples.

    Attributes:
        epoch: Number of the pass, from 1.
        loss: Mean training loss over its examples.
        steps: Optimiser steps so far.
    """

    epoch: int
    loss: float
    steps: int


def train(
    model: PreTrainedModel,
    injection: Injection,
    head: HeadLayer,
    tokens: Tokens,
    recipe: Recipe,
    *,
    rows: NDArray[np.int64],
    epochs: int,
    seed: int,
) -> Iterator[EpochDone]:
    """Trains the injected modules and the head in place with AdamW, linear warm-up and linear decay.

    Args:
        model: The backbone the modules sit in.
        injection: The modules; their configuration gives the learning rates.
        head: The task head.
        tokens: The tokenised training split.
        recipe: Batch size, weight decay, warm-up, clipping, dropout.
        rows: Training rows to use.
        epochs: Passes over them.
        seed: Controls the order of the data (fresh weights were drawn before, dropout uses torch's generator).

    Yields:
        One event per epoch.

    Raises:
        TrainingError: The loss is NaN or infinite (kinds "nan" and "infinite"), at the step where it happens.
    """
    rng = np.random.default_rng([seed, 1])
    optimizer = _optimizer(injection, head, recipe)
    peaks = [group["lr"] for group in optimizer.param_groups]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    total = epochs * math.ceil(len(rows) / recipe.batch_size)
    warmup = max(1, round(recipe.warmup * total))
    step = 0
    model.train(recipe.dropout > 0)
    set_dropout(model, recipe.dropout)
    for epoch in range(1, epochs + 1):
        summed = 0.0
        for chosen in bucketed(tokens, rows, recipe.batch_size, rng):
            batch = tokens.batch(chosen)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share_of_peak(step, warmup, total)
            hidden = model(**batch.inputs).last_hidden_state
            loss = loss_of(head(hidden, batch.inputs["attention_mask"]), batch.targets)
            value = _finite(loss.item(), step, total)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimizer.step()
            step += 1
            summed += value * len(chosen)
        yield EpochDone(epoch, summed / len(rows), step)
    model.eval()


def share_of_peak(step: int, warmup: int, total: int) -> float:
    """Returns the learning rate at a step, from 0, as a share of its peak: linear up over `warmup` steps, then to 0.

    Example:
        >>> [round(share_of_peak(step, 2, 5), 2) for step in range(5)]
        [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    return min(1.0, (step + 1) / warmup, (total - step) / max(1, total - warmup + 1))


def _finite(loss: float, step: int, total: int) -> float:
    if math.isfinite(loss):
        return loss
    kind: FailureKind = "nan" if math.isnan(loss) else "infinite"
    raise TrainingError(f"loss is {loss} at step {step + 1} of {total}", kind=kind, cure="lower the learning rate")


def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss: cross-entropy for class indices, squared error for numbers.

    Args:
        outputs: Shape (batch, classes) or (batch, 1).
        targets: Shape (batch,); integers mean classes.
    """
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    if targets.is_floating_point():
        return functional.mse_loss(wide.squeeze(-1), targets.to(wide.dtype))
    return functional.cross_entropy(wide, targets)


@torch.inference_mode()
def predict(model: PreTrainedModel, head: HeadLayer, tokens: Tokens, size: int = 64) -> NDArray[np.float32]:
    """Returns the outputs for every text, shape (n, outputs), in the order of the split.

    Args:
        model: The backbone with its modules, in evaluation mode.
        head: The task head.
        tokens: The tokenised split.
        size: Texts per batch; batches are cut by length.
    """
    model.eval()
    outputs = np.zeros((len(tokens), head.output.out_features), dtype=np.float32)
    for rows in by_length(tokens, size):
        batch = tokens.batch(rows)
        hidden = model(**batch.inputs).last_hidden_state
        outputs[rows] = head(hidden, batch.inputs["attention_mask"]).float().numpy()
    return outputs


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout of the backbone, attention's included, to one probability."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def _optimizer(injection: Injection, head: HeadLayer, recipe: Recipe) -> torch.optim.AdamW:
    rates = injection.configuration.training
    groups = []
    for parameters, rate in (
        ([p for _, p in injection.named_parameters()], rates.learning_rate),
        (list(head.parameters()), rates.rate_of_head),
    ):
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": recipe.weight_decay if decays else 0.0})
    return torch.optim.AdamW(groups, fused=True)
