"""Attach modules to real models: load, inject, eject, and the attention function that carries prefixes."""

from autopeft.backbones.attention import drop_unused_prefixes
from autopeft.backbones.inject import Injection, attach, backbone_in, inject, place_beside, shape_in, trained_parameters
from autopeft.backbones.load import load_backbone, load_tokenizer, runs_remote_code

__all__ = [
    "Injection",
    "attach",
    "backbone_in",
    "drop_unused_prefixes",
    "inject",
    "load_backbone",
    "load_tokenizer",
    "place_beside",
    "runs_remote_code",
    "shape_in",
    "trained_parameters",
]
