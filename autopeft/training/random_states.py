"""Every random number generator a training step may draw from, as one value."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autopeft.errors import StudyError

_CURE = "begin the trial anew"


@dataclass(frozen=True)
class RandomStates:
    """The states of the global generators. The order of the data has a generator of its own: see `State.order`.

    Attributes:
        torch: State of torch's CPU generator, uint8, shape (5056,).
        cuda: States of the CUDA generators, one per device, uint8; empty where CUDA was not in use.
        python: What `random.getstate()` gives, as a JSON-able list.
        numpy: State of numpy's global generator, JSON-able.
    """

    torch: torch.Tensor
    cuda: tuple[torch.Tensor, ...]
    python: Sequence[Any]
    numpy: Mapping[str, Any]


def seed_all(seed: int) -> None:
    """Seeds every global generator, so that what a run draws depends on nothing before it.

    Our own parts draw from torch's alone; a backbone may draw from the others too.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the one that others draw from


def random_states() -> RandomStates:
    """Returns the present states of all global generators."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    state["state"] = {"key": state["state"]["key"].tolist(), "pos": state["state"]["pos"]}
    # Asking for the states would start CUDA on every device; before its start nothing has been drawn there.
    cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
    return RandomStates(torch.get_rng_state(), cuda, [version, list(words), gauss], state)


def set_random_states(states: RandomStates) -> None:
    """Puts all global generators into these states, which `require_random_states` has accepted."""
    torch.set_rng_state(states.torch)
    if states.cuda:
        torch.cuda.set_rng_state_all(states.cuda)
    random.setstate(_of_python(states.python))
    np.random.set_state(_of_numpy(states.numpy))  # noqa: NPY002


def require_random_states(states: RandomStates) -> None:
    """Tries the states on generators made for that.

    Raises:
        StudyError: One of them is no state of its generator, or there are other devices than when they were taken.
    """
    try:
        torch.Generator().set_state(states.torch)
        if states.cuda and len(states.cuda) != torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise StudyError(f"{len(states.cuda)} CUDA devices, here are {found}", where="generators", cure=_CURE)
        for index, state in enumerate(states.cuda):
            torch.Generator(f"cuda:{index}").set_state(state)
        random.Random().setstate(_of_python(states.python))
        np.random.RandomState().set_state(_of_numpy(states.numpy))
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise StudyError(f"not the state of a generator: {error}", where="generators", cure=_CURE) from None


def require_order(order: Mapping[str, Any]) -> None:
    """Tries the state of the generator that orders the data; raises StudyError where it is none."""
    try:
        np.random.default_rng(0).bit_generator.state = dict(order)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise StudyError(f"not the state of a generator: {error}", where="order", cure=_CURE) from None


def _of_python(state: Sequence[Any]) -> tuple[Any, ...]:
    version, words, gauss = state
    if gauss is not None and not isinstance(gauss, float):
        raise TypeError("the kept number is no number")
    return version, tuple(words), gauss


def _of_numpy(state: Mapping[str, Any]) -> dict[str, Any]:
    inner = state["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    if key.shape != (624,) or not 0 <= inner["pos"] <= 624:  # numpy itself would read beyond the key
        raise ValueError("no key of 624 words and position in it")
    return {**state, "state": {"key": key, "pos": inner["pos"]}}
