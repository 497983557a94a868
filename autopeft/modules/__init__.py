"""What can be inserted: PEFT modules. Specifications import no torch; layers are built on first use."""

from autopeft.modules.adapter.spec import ParallelAdapter, SerialAdapter
from autopeft.modules.base import (
    ParameterCount,
    PeftModule,
    module_from_dict,
    module_kinds,
    module_to_dict,
    register,
)
from autopeft.modules.full.spec import FullFineTuning
from autopeft.modules.lora.spec import LINEAR_SITES, Lora
from autopeft.modules.prefix.spec import Prefix
from autopeft.modules.selective.spec import NORM_SITES, BitFit, LayerNormTuning

__all__ = [
    "LINEAR_SITES",
    "NORM_SITES",
    "BitFit",
    "FullFineTuning",
    "LayerNormTuning",
    "Lora",
    "ParallelAdapter",
    "ParameterCount",
    "PeftModule",
    "Prefix",
    "SerialAdapter",
    "module_from_dict",
    "module_kinds",
    "module_to_dict",
    "register",
]
