"""Spaces: the finite sets of configurations a search may visit. Torch-free.

`spaces.autopeft()` and its siblings return a template; `.on(shape)` makes the space of a backbone.
"""

from autopeft.spaces.base import Dimension, Point, Points, Space, SpaceTemplate, dimension_table
from autopeft.spaces.layer_sizes import LayerSizesSpace
from autopeft.spaces.parts import Part, PartsSpace
from autopeft.spaces.presets import (
    LEARNING_RATES,
    RANKS,
    ModulesTemplate,
    autopeft,
    halvings,
    lora_only,
    paper,
    per_layer,
    space_from_dict,
    template_from_dict,
)
from autopeft.spaces.shared_sizes import SharedSizesSpace

__all__ = [
    "LEARNING_RATES",
    "RANKS",
    "Dimension",
    "LayerSizesSpace",
    "ModulesTemplate",
    "Part",
    "PartsSpace",
    "Point",
    "Points",
    "SharedSizesSpace",
    "Space",
    "SpaceTemplate",
    "autopeft",
    "dimension_table",
    "halvings",
    "lora_only",
    "paper",
    "per_layer",
    "space_from_dict",
    "template_from_dict",
]
