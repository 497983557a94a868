"""What the modules of K configurations compute at one slot, as batched products over a leading dimension K."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import nn
from torch.nn import functional

from autopeft.backbones.stacked_weights import EVERYTHING, Piece, Place, Weights
from autopeft.errors import InputError
from autopeft.heads.layer import HeadLayer
from autopeft.modules.adapter.layer import ParallelLayer, SerialLayer
from autopeft.modules.layers import ModuleLayer
from autopeft.modules.lora.layer import LoraLayer
from autopeft.modules.prefix.layer import FlatPrefix, MlpPrefix, PrefixMlp


class Plan:
    """Where the weights of all modules and heads lie, while that is being decided.

    Args:
        configurations: By position: the trained parameters by name, and every PrefixMlp.
    """

    def __init__(self, trained: Sequence[Mapping[str, nn.Parameter]], built: Sequence[Sequence[ModuleLayer]]) -> None:
        self._names = {id(parameter): name for own in trained for name, parameter in own.items()}
        self.mlps: list[PrefixMlp | None] = []
        for layers in built:
            mlps = {id(layer.shared): layer.shared for layer in layers if isinstance(layer, MlpPrefix)}
            if len(mlps) > 1:
                what = "prefixes of two reparameterised groups cannot be trained beside other configurations"
                raise InputError(what, where="prefix.mlp", cure="put them into one group, or train it alone")
            self.mlps.append(next(iter(mlps.values()), None))
        self.places: list[Place] = []
        self._shared: dict[str, int] = {}
        self.weights: Weights | None = None

    def add(
        self,
        owners: Sequence[Any],
        tensor_of: Callable[[Any], nn.Parameter],
        rows_of: Callable[[Any], slice] | None = None,
    ) -> int:
        """Adds the place of one tensor of every owner and returns its index.

        Args:
            owners: By position of the configuration; None where it has no such tensor.
            tensor_of: Gives the tensor of an owner.
            rows_of: Gives the rows of it that lie here, where the rest lies elsewhere.
        """
        pieces: list[Piece | None] = []
        for owner in owners:
            if owner is None:
                pieces.append(None)
                continue
            parameter = tensor_of(owner)
            pieces.append(Piece(self._names[id(parameter)], parameter, rows_of(owner) if rows_of else EVERYTHING))
        self.places.append(Place.of(pieces))
        return len(self.places) - 1

    def add_once(self, key: str, tensor_of: Callable[[Any], nn.Parameter]) -> int:
        """Adds the place of one tensor of every configuration's PrefixMlp; a second call gives the same place."""
        if key not in self._shared:
            self._shared[key] = self.add(self.mlps, tensor_of)
        return self._shared[key]

    def weight(self, index: int) -> torch.Tensor:
        """Returns the weights of a place in this forward pass, shape (K, ...)."""
        assert self.weights is not None
        return self.weights.views[index]


class Together:
    """What one kind of module computes at one slot for all configurations; those without it contribute nothing.

    Args:
        layers: By position of the configuration; None where it has no such module here.
        plan: Makes room for the weights, and gives them.
    """

    def __init__(self, layers: Sequence[ModuleLayer | None], plan: Plan) -> None:
        self.layers, self._plan = list(layers), plan

    def weight(self, index: int) -> torch.Tensor:
        """Returns the weights of a place, shape (K, ...)."""
        return self._plan.weight(index)

    def vector(self, number_of: Callable[[Any], float]) -> torch.Tensor:
        """Returns one number per configuration, shape (K, 1, 1), 0 where it has no such module."""
        numbers = [0.0 if layer is None else number_of(layer) for layer in self.layers]
        parameter = next(p for layer in self.layers if layer is not None for p in layer.parameters())
        return torch.tensor(numbers, dtype=parameter.dtype, device=parameter.device)[:, None, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all configurations but these."""
        self.layers = [self.layers[k] for k in rows]

    def add_to_ffn(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor | None:  # noqa: ARG002
        """Returns the terms of an FFN, shape of h, or None where the kind sits elsewhere."""
        return None

    def add_to_linear(self, x: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG002
        """Returns the terms of a Linear, or None where the kind sits elsewhere."""
        return None

    def prefix(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Returns keys and values (K, kv_heads, p, head_dim) and which of them are real, (K, p), or None."""
        return None


class _Bottlenecks(Together):
    """Serial or parallel adapters: relu of a padded column is 0, so padding adds nothing and learns nothing."""

    def __init__(self, layers: Sequence[ModuleLayer | None], plan: Plan) -> None:
        super().__init__(layers, plan)
        self._serial = any(isinstance(layer, SerialLayer) for layer in self.layers)
        self._down, self._down_bias = (
            plan.add(self.layers, lambda a: a.down.weight),
            plan.add(self.layers, lambda a: a.down.bias),
        )
        self._up, self._up_bias = (
            plan.add(self.layers, lambda a: a.up.weight),
            plan.add(self.layers, lambda a: a.up.bias),
        )
        self._scale = None if self._serial else self.vector(lambda a: a.scale)

    def add_to_ffn(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        given = _split(norm(h + x) if self._serial else x, len(self.layers))
        inner = functional.relu(_affine(given, self.weight(self._down), self.weight(self._down_bias)))
        term = _affine(inner, self.weight(self._up), self.weight(self._up_bias))
        return (term if self._scale is None else self._scale * term).view(h.shape)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._scale = None if self._scale is None else self._scale[list(rows)]


class _LowRanks(Together):
    """LoRA, each with its own scaling."""

    def __init__(self, layers: Sequence[ModuleLayer | None], plan: Plan) -> None:
        super().__init__(layers, plan)
        self._a, self._b = plan.add(self.layers, lambda lora: lora.a), plan.add(self.layers, lambda lora: lora.b)
        self._scaling = self.vector(lambda lora: lora.scaling)

    def add_to_linear(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.bmm(_split(x, len(self.layers)), self.weight(self._a).mT)
        term = torch.bmm(inner, self.weight(self._b).mT) * self._scaling
        return term.view(*x.shape[:-1], -1)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._scaling = self._scaling[list(rows)]


class _Prefixes(Together, ABC):
    """Prefixes padded to the longest; what is padded is hidden by the mask."""

    def __init__(self, layers: Sequence[ModuleLayer | None], plan: Plan) -> None:
        super().__init__(layers, plan)
        present = [layer for layer in self.layers if layer is not None]
        self._heads = int(cast(Any, present[0]).heads)
        lengths = [0 if layer is None else self._length(layer) for layer in self.layers]
        steps = torch.arange(max(lengths))
        device = next(present[0].parameters()).device
        self._real = (steps < torch.tensor(lengths)[:, None]).to(device)

    def _length(self, layer: Any) -> int:
        return int(layer.key.shape[0])

    def prefix(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        key, value = (flat.unflatten(-1, (self._heads, -1)).transpose(1, 2) for flat in self._flat())
        return key, value, self._real

    @abstractmethod
    def _flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values, each (K, p, kv_heads * head_dim)."""

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._real = self._real[list(rows)]


class _FlatPrefixes(_Prefixes):
    """Keys and values as they are, each (K, p, kv_heads * head_dim)."""

    def __init__(self, layers: Sequence[ModuleLayer | None], plan: Plan) -> None:
        super().__init__(layers, plan)
        self._key, self._value = (
            plan.add(self.layers, lambda prefix: prefix.key),
            plan.add(self.layers, lambda prefix: prefix.value),
        )

    def _flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight(self._key), self.weight(self._value)


class _MlpPrefixes(_Prefixes):
    """Keys and values out of each configuration's MLP.

    Its inner part is shared by the slots of a configuration and has one place; the outer Linear is cut by slots.
    """

    def __init__(self, layers: Sequence[ModuleLayer | None], plan: Plan) -> None:
        super().__init__(layers, plan)
        rows: Callable[[Any], slice] = lambda prefix: slice(prefix.start, prefix.start + 2 * prefix.width)  # noqa: E731
        self._embedding = plan.add_once("embedding", lambda mlp: mlp.embedding)
        self._inner = plan.add_once("inner", lambda mlp: mlp.inner.weight)
        self._inner_bias = plan.add_once("inner bias", lambda mlp: mlp.inner.bias)
        self._outer = plan.add(self.layers, lambda prefix: prefix.shared.outer.weight, rows)
        self._outer_bias = plan.add(self.layers, lambda prefix: prefix.shared.outer.bias, rows)

    def _length(self, layer: Any) -> int:
        return int(layer.shared.embedding.shape[0])

    def _flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        # The place is as long as the longest prefix of all slots, which need not be here.
        embedding = self.weight(self._embedding)[:, : self._real.shape[1]]
        inner = _affine(embedding, self.weight(self._inner), self.weight(self._inner_bias))
        both = _affine(torch.tanh(inner), self.weight(self._outer), self.weight(self._outer_bias))
        key, value = both.chunk(2, dim=-1)
        return key, value


TOGETHER: Final[Mapping[type[ModuleLayer], type[Together]]] = {
    SerialLayer: _Bottlenecks,
    ParallelLayer: _Bottlenecks,
    LoraLayer: _LowRanks,
    FlatPrefix: _FlatPrefixes,
    MlpPrefix: _MlpPrefixes,
}
"""Class of a layer to what computes several of them."""


class HeadsTogether:
    """All heads at once."""

    def __init__(self, heads: Sequence[HeadLayer], plan: Plan) -> None:
        self._first, self._plan = heads[0], plan
        self._dense = None
        if heads[0].dense is not None:
            self._dense = plan.add(heads, lambda h: h.dense.weight), plan.add(heads, lambda h: h.dense.bias)
        self._output = plan.add(heads, lambda h: h.output.weight), plan.add(heads, lambda h: h.output.bias)

    def __call__(self, last: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weight = self._plan.weight
        pooled = self._first.pooled(last, mask)
        pooled = pooled.view(weight(self._output[0]).shape[0], -1, pooled.shape[-1])
        if self._dense is not None:
            pooled = self._first.activate(_affine(pooled, *map(weight, self._dense)))
        return _affine(pooled, *map(weight, self._output))


def _split(x: torch.Tensor, count: int) -> torch.Tensor:
    """(K B, ..., d) -> (K, B ..., d)."""
    return x.reshape(count, -1, x.shape[-1])


def _affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """K Linears at once: x (K, n, d_in), weight (K, d_out, d_in), bias (K, d_out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
