"""The contract of a PEFT module's specification, and the registry of kinds. Torch-free."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from autopeft.errors import InputError, nearest
from autopeft.shapes import SlotShape


@dataclass(frozen=True)
class ParameterCount:
    """Three counts that are easily confused; every table says which one it shows.

    Attributes:
        stored: Numbers in the saved adapter: the parameter objective.
        trained: Numbers that receive gradients (a prefix MLP is trained, then discarded).
        active: Numbers an inference pass reads.
    """

    stored: int
    trained: int
    active: int

    def __add__(self, other: ParameterCount) -> ParameterCount:
        return ParameterCount(self.stored + other.stored, self.trained + other.trained, self.active + other.active)

    @staticmethod
    def same(count: int) -> ParameterCount:
        """The count of a module whose stored, trained and active parameters coincide."""
        return ParameterCount(count, count, count)


class PeftModule(ABC):
    """Specification of one insertable trainable part: a frozen dataclass of JSON values.

    Subclasses live in `modules/<family>/spec.py`, are frozen dataclasses, register with `@register`, and name the
    file that builds their torch side in `layer`.

    `trains_own` names the backbone's own parameters at the slot that the module trains in private copies ("weight",
    "bias"; "*" for every one of the backbone): no two modules may train the same one.
    """

    kind: ClassVar[str]
    sites: ClassVar[frozenset[str]]
    layer: ClassVar[str]
    identity_at_start: ClassVar[bool] = True
    trains_own: ClassVar[frozenset[str]] = frozenset()
    stackable: ClassVar[bool] = False
    """Whether `autopeft.backbones.stacked` can train it beside modules of other configurations in one batch."""

    @abstractmethod
    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        """Counts parameters of all placements of one group at once (they may share weights)."""

    @abstractmethod
    def check(self, shape: SlotShape) -> None:
        """Raises InputError where the module cannot sit at a slot of this shape."""

    def stored_form(self) -> PeftModule:
        """The specification of what is saved: itself, unless training uses a reparameterisation."""
        return self


KINDS: dict[str, type[PeftModule]] = {}
_M = TypeVar("_M", bound=PeftModule)


def register(kind: str) -> Callable[[type[_M]], type[_M]]:
    """Registers a module specification under `kind`, the name used in JSON; a kind is registered once."""

    def add(cls: type[_M]) -> type[_M]:
        if kind in KINDS and KINDS[kind].__qualname__ != cls.__qualname__:
            raise ValueError(f"module kind '{kind}' is already registered by {KINDS[kind]!r}")
        cls.kind = kind
        KINDS[kind] = cls
        return cls

    return add


def module_kinds() -> dict[str, type[PeftModule]]:
    """Returns every registered kind, third parties' (entry point group "autopeft.modules") included."""
    _import_third_parties()
    return KINDS


@functools.cache
def _import_third_parties() -> None:
    # Once: the scan of all installed packages takes 5 ms, and reading one trial asks for the kinds several times.
    for entry in importlib.metadata.entry_points(group="autopeft.modules"):
        if entry.name not in KINDS:
            importlib.import_module(entry.module)


def module_to_dict(module: PeftModule) -> dict[str, Any]:
    """Returns the JSON form of a specification: its kind and its fields.

    Example:
        >>> module_to_dict(Lora(rank=8))["rank"]  # doctest: +SKIP
        8
    """
    return {"kind": module.kind, **asdict(module)}  # type: ignore[call-overload]


def module_from_dict(data: Mapping[str, Any]) -> PeftModule:
    """Inverse of `module_to_dict`; raises InputError for an unknown kind or field."""
    known = module_kinds()
    kind = data.get("kind", "")
    if not isinstance(kind, str) or kind not in known:
        raise InputError(f"unknown module kind '{kind}'", where="module.kind", cure=nearest(str(kind), known))
    names = {f.name for f in fields(known[kind])}  # type: ignore[arg-type]
    given = {k: v for k, v in data.items() if k != "kind"}
    for name in given.keys() - names:
        raise InputError(f"{kind} has no field '{name}'", where=f"module.{name}", cure=nearest(str(name), names))
    try:
        return known[kind](**given)
    except TypeError as error:
        raise InputError(f"{kind}: {error}", where="module", cure="give every size") from None


def as_floats(module: PeftModule, *names: str) -> None:
    """Turns fields of a frozen specification into floats, so that 4 and 4.0 are one value with one id."""
    for name in names:
        value = getattr(module, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{value!r} is not a number", where=f"{module.kind}.{name}", cure="use a number")
        object.__setattr__(module, name, float(value))


def require_at_least_one(value: int, what: str) -> None:
    """Raises InputError unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{what} must be an integer of at least 1, got {value!r}", cure="leave the module out for 0")
