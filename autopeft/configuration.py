"""A configuration: which modules sit where, with which sizes, and its learning rate. A value, torch-free."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from autopeft.errors import InputError, nearest
from autopeft.modules import ParameterCount, PeftModule, module_from_dict, module_to_dict
from autopeft.shapes import BackboneShape, Slot


@dataclass(frozen=True)
class Placement:
    """One module at one slot.

    Attributes:
        slot: Where it sits.
        module: What sits there.
        group: Placements of one group share weights (a prefix MLP); "" shares nothing.
    """

    slot: Slot
    module: PeftModule
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form."""
        return {"slot": str(self.slot), "module": module_to_dict(self.module), "group": self.group}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Placement:
        """Inverse of `to_dict`; raises InputError for an unknown slot, kind or field."""
        require_keys(data, {"slot", "module", "group"}, "placement", needed=("slot", "module"))
        require_keys(data["module"], None, "placement.module")
        return Placement(Slot.parse(str(data["slot"])), module_from_dict(data["module"]), str(data.get("group", "")))


@dataclass(frozen=True)
class Training:
    """How a configuration's parameters are fitted, as far as a search may vary it.

    Attributes:
        learning_rate: Peak rate of the inserted modules.
        head_learning_rate: Peak rate of the head; None takes `learning_rate`, but at least 1e-3, since a fresh head
            does not learn at a backbone's rate.

    Example:
        >>> Training(3e-4).rate_of_head
        0.001
    """

    learning_rate: float = 1e-3
    head_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate"):
            value = getattr(self, name)
            if value is None and name == "head_learning_rate":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0.0 < value < float("inf"):
                raise InputError(f"{value!r} is not a learning rate", where=name, cure="use a number above 0")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one value with one id

    @property
    def rate_of_head(self) -> float:
        """The head's peak learning rate after the default is applied."""
        return max(self.learning_rate, 1e-3) if self.head_learning_rate is None else self.head_learning_rate


@dataclass(frozen=True)
class Configuration:
    """Which modules sit at which slots, and how they are trained; knows nothing of search.

    Placements are sorted on construction, so equal configurations are equal values whatever their order. Without
    placements it is the frozen probe: only the head is trained.

    Attributes:
        placements: The modules; one kind at most once per slot.
        training: Learning rates.

    Example:
        >>> Configuration((Placement(Slot("encoder", 0, "ffn"), SerialAdapter(48)),)).id  # doctest: +SKIP
        '1f0c6a...'
    """

    placements: tuple[Placement, ...] = ()
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.placements, key=lambda p: (p.slot, p.module.kind)))
        object.__setattr__(self, "placements", ordered)
        for left, right in pairwise(ordered):
            if (left.slot, left.module.kind) == (right.slot, right.module.kind):
                raise InputError(f"two modules of kind '{left.module.kind}'", where=str(left.slot), cure="keep one")

    @cached_property
    def id(self) -> str:
        """Content hash: the first 16 hexadecimal digits of the SHA-256 of the canonical JSON form."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def groups(self) -> tuple[tuple[Placement, ...], ...]:
        """Placements that are built and counted together: equal non-empty group, or one alone."""
        shared: dict[tuple[str, ...], list[Placement]] = defaultdict(list)
        for p in self.placements:
            shared[(p.group,) if p.group else ("", str(p.slot), p.module.kind)].append(p)
        return tuple(tuple(members) for members in shared.values())

    def check(self, shape: BackboneShape) -> None:
        """Raises InputError, naming the slot and the cure, where the configuration does not fit the backbone."""
        for p in self.placements:
            if p.slot.site not in p.module.sites:
                allowed = ", ".join(sorted(p.module.sites))
                raise InputError(
                    f"{p.module.kind} cannot sit here", where=str(p.slot), cure=f"its sites are: {allowed}"
                )
            try:
                p.module.check(shape.at(p.slot))
            except InputError as refusal:
                raise InputError(refusal.what, where=refusal.where or str(p.slot), cure=refusal.cure) from None
        _require_one_owner(self.placements)
        for members in self.groups:
            if any(p.module != members[0].module for p in members):
                raise InputError("modules of one group differ", where=members[0].group, cure="give them equal fields")

    def count(self, shape: BackboneShape) -> ParameterCount:
        """Counts the inserted parameters, without the head; equal to the real count for every valid configuration."""
        total = ParameterCount.same(0)
        for members in self.groups:
            total += members[0].module.count([shape.at(p.slot) for p in members])
        return total

    def stored_form(self) -> Configuration:
        """The configuration of what is saved: reparameterisations dropped (a prefix MLP becomes a flat prefix)."""
        stored = tuple(
            p if (form := p.module.stored_form()) == p.module else Placement(p.slot, form) for p in self.placements
        )
        return replace(self, placements=stored)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form; `from_dict` restores an equal value."""
        return {"placements": [p.to_dict() for p in self.placements], "training": dict(vars(self.training))}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Configuration:
        """Inverse of `to_dict`; raises InputError for unknown slots, kinds or fields."""
        require_keys(data, {"placements", "training"}, "configuration")
        given = data.get("placements", [])
        if not isinstance(given, list | tuple):
            raise InputError("placements is not a list", where="configuration.placements", cure="give a list")
        training = data.get("training", {})
        require_keys(training, {"learning_rate", "head_learning_rate"}, "configuration.training")
        return Configuration(tuple(Placement.from_dict(p) for p in given), Training(**training))


def _require_one_owner(placements: Iterable[Placement]) -> None:
    """Raises InputError where two modules would train the same parameters of the backbone."""
    own = [p for p in placements if p.module.trains_own]
    whole = next((p for p in own if "*" in p.module.trains_own), None)
    taken: dict[Slot, Placement] = {}
    for p in own:
        other = whole if whole not in (None, p) else taken.setdefault(p.slot, p)
        if other not in (None, p) and (other is whole or other.module.trains_own & p.module.trains_own):
            what = f"{p.module.kind} and {other.module.kind} would train the same parameters"
            raise InputError(what, where=str(p.slot), cure="keep one of them")


def require_keys(data: object, known: set[str] | None, where: str, needed: tuple[str, ...] = ()) -> None:
    """Raises InputError unless `data` is a mapping with known keys only, the needed ones among them.

    Args:
        data: What was read.
        known: Allowed keys, or None for any.
        where: Name for the message.
        needed: Keys that must be there.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{type(data).__name__} instead of an object", where=where, cure="give keys and values")
    for key in data if known is not None else ():
        if key not in (known or ()):
            raise InputError(f"unknown key '{key}'", where=where, cure=nearest(str(key), known or ()))
    for key in needed:
        if key not in data:
            raise InputError(f"'{key}' is missing", where=where, cure="add it")


def lowest_layer(configuration: Configuration, shape: BackboneShape) -> int:
    """Returns the lowest layer in which something is inserted or trained; the number of layers where nothing is.

    It is 0 where a module trains the backbone's own parameters wherever they are, sits outside the layers, or where the
    backbone has several stacks.

    Example:
        >>> lowest_layer(Configuration(), shape)  # doctest: +SKIP
        6
    """
    if len(shape.stacks) != 1:
        return 0
    (stack, layers), *_ = shape.stacks.items()
    return min((p.slot.index if p.slot.stack == stack else 0 for p in configuration.placements), default=layers)


def describe(configuration: Configuration) -> str:
    """Returns one line a person can read: kinds, sizes, layers and rate.

    Example:
        >>> describe(Configuration())
        'head only · lr 0.001'
    """
    layers: dict[str, list[str]] = defaultdict(list)
    for p in configuration.placements:
        size = next((f"{getattr(p.module, a)}" for a in ("bottleneck", "rank", "length") if a in vars(p.module)), "")
        site = "@" + p.slot.site.replace("attention.", "") if p.module.kind == "lora" else ""
        layer = "the whole backbone" if p.slot.stack == "backbone" else str(p.slot.index)
        layers[f"{p.module.kind.replace('_adapter', '')}{site} {size}".strip()].append(layer)
    merged: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, where in layers.items():
        merged[tuple(dict.fromkeys(where))].append(name)
    parts = [f"{', '.join(names)} in {' '.join(where)}" for where, names in merged.items()]
    return f"{'; '.join(parts) or 'head only'} · lr {configuration.training.learning_rate:g}"


def uniform(
    shape: BackboneShape, modules: Iterable[tuple[str, PeftModule]], training: Training, stack: str | None = None
) -> Configuration:
    """Puts the same modules at the same sites of every layer of a stack (default: the first stack).

    Args:
        shape: The backbone's shape.
        modules: Pairs of site and module.
        training: Learning rates.
        stack: Stack to fill.

    Example:
        >>> uniform(shape, [("ffn", SerialAdapter(48))], Training(1e-3))  # doctest: +SKIP
    """
    stack = stack or next(iter(shape.stacks))
    chosen = tuple(modules)
    placements = (
        Placement(Slot(stack, i, site), module) for i in range(shape.layers(stack)) for site, module in chosen
    )
    return Configuration(tuple(placements), training)
