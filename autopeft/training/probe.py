"""The frozen probe: with nothing inserted the features are constant, so the head is fitted to convergence.

Every table contains it: a PEFT method that does not beat it has learnt nothing about the task's inputs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from autopeft.heads.layer import HeadLayer
from autopeft.training.batches import by_length
from autopeft.training.loop import loss_of
from autopeft.training.sources import Source

PENALTIES: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""L2 penalties tried; the one with the lowest loss on a held-back fifth of the training data is taken."""


@torch.no_grad()
def features(source: Source, head: HeadLayer, size: int = 64) -> torch.Tensor:
    """Returns what the head's output Linear reads for every text, shape (n, width), float64.

    Cost: one forward pass over the split.
    """
    source.model.eval()
    found = torch.zeros(len(source.tokens), head.output.in_features, dtype=torch.float64)
    for rows in by_length(source.tokens, size):
        hidden = source.hidden(rows)
        found[torch.from_numpy(rows)] = head.features(hidden.last, hidden.mask).double().cpu()
    return found


def fit_probe(head: HeadLayer, inputs: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
    """Fits the head's output Linear to convergence with L-BFGS, in place.

    Args:
        head: The head; only its output Linear changes.
        inputs: Features, shape (n, width).
        targets: Class indices or numbers, shape (n,).
        seed: Controls which fifth of the data chooses the L2 penalty.

    Returns:
        The mean training loss, without the penalty.
    """
    order = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(len(inputs)))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    outputs = head.output.out_features
    chosen = PENALTIES[-1]
    if len(held):
        losses = {}
        for penalty in PENALTIES:
            weight, bias = _solve(inputs[kept], targets[kept], outputs, penalty)
            losses[penalty] = float(loss_of(inputs[held] @ weight.T + bias, targets[held]))
        chosen = min(losses, key=lambda penalty: losses[penalty])
    weight, bias = _solve(inputs, targets, outputs, chosen)
    with torch.no_grad():
        head.output.weight.copy_(weight)
        head.output.bias.copy_(bias)
    return float(loss_of(inputs @ weight.T + bias, targets))


def _solve(
    inputs: torch.Tensor, targets: torch.Tensor, outputs: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimises mean loss + penalty |W|^2; convex, so the start does not matter."""
    weight = torch.zeros(outputs, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        value = loss_of(inputs @ weight.T + bias, targets) + penalty * weight.square().sum()
        torch.autograd.backward(value)
        return value

    solver.step(objective)
    return weight.detach(), bias.detach()
