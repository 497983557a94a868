"""AutoPEFT: the Pareto front of parameter-efficient fine-tuning configurations for a model, data and a budget.

`import autopeft` loads neither torch nor transformers nor peft: the names below are resolved on first use.

Example:
    >>> import autopeft
    >>> autopeft.__version__.count(".")
    2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autopeft.version import __version__

if TYPE_CHECKING:
    from autopeft import presets, spaces, tasks
    from autopeft.adapters import Adapter
    from autopeft.configuration import Configuration
    from autopeft.pareto import ParetoFront
    from autopeft.study.study import Study

__all__ = ["Adapter", "Configuration", "ParetoFront", "Study", "__version__", "presets", "spaces", "tasks"]

_CLASSES = {
    "Adapter": "autopeft.adapters",
    "Configuration": "autopeft.configuration",
    "ParetoFront": "autopeft.pareto",
    "Study": "autopeft.study.study",
}
_MODULES = {name: f"autopeft.{name}" for name in ("presets", "spaces", "tasks")}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'autopeft' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
