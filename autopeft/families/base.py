"""A family of backbones as data: where its parts are and how wide they are. Torch-free.

Adding a family is one file in this folder: a `Family` and a function from the model's `config.json` to a
`BackboneShape`. The torch side (`autopeft.backbones`) reads the map and knows no family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.errors import InputError
from autopeft.shapes import BackboneShape, Slot, SlotShape


@dataclass(frozen=True)
class FfnSeam:
    """Where a module reads the FFN's input x and adds to its output h.

    Attributes:
        module: Path inside a layer.
        form: "output_block": the module computes LN(dropout(dense(z)) + x) from (z, x), as BERT's output block does;
            "block": the module computes h from x alone, and the layer adds x and normalises.
        norm: Path of the LayerNorm that follows, inside a layer.
    """

    module: str
    form: Literal["output_block", "block"]
    norm: str


@dataclass(frozen=True)
class StockHead:
    """The family's own classification head: first token -> dense -> activation -> output.

    Attributes:
        dense: Path of the dense Linear in `AutoModelForSequenceClassification`.
        output: Path of the output Linear there.
        activation: "tanh", "relu" or "gelu".
        pretrained_dense: Path of that dense Linear in the bare backbone where it is pretrained, or "".
    """

    dense: str
    output: str
    activation: Literal["tanh", "relu", "gelu"]
    pretrained_dense: str = ""


@dataclass(frozen=True)
class Family:
    """The declarative map of one family.

    Attributes:
        name: Name of the family, equal to the first model type.
        model_types: Values of `model_type` in `config.json` it serves.
        stacks: Stack name to the path of its list of layers in the bare backbone.
        attention: Path, inside a layer, of the module that calls the attention interface.
        linears: Site to path, inside a layer, of the Linears LoRA may sit on.
        ffn: The seam around the feed-forward block.
        stock_head: The family's classification head.
        defaults: Values `config.json` leaves out when they equal the class defaults.
        shape: Builds the shape from the completed configuration.
        norms: Site to path, inside a layer, of its LayerNorms: "norm1" after the attention, "norm2" after the FFN.
        embeddings: Site to path, in the bare backbone, of what can be trained below the first layer: "norm".
        narrowed: Path, inside a layer, of the module after whose input no position reads another, all of whose
            arguments have the shape (batch, tokens, width); "" where there is none.
    """

    name: str
    model_types: tuple[str, ...]
    stacks: Mapping[str, str]
    attention: str
    linears: Mapping[str, str]
    ffn: FfnSeam
    stock_head: StockHead
    defaults: Mapping[str, int]
    shape: Callable[[Mapping[str, Any]], BackboneShape]
    norms: Mapping[str, str]
    embeddings: Mapping[str, str]
    narrowed: str = ""


FAMILIES: dict[str, Family] = {}
MOST_LAYERS = 1000


def register_family(family: Family) -> Family:
    """Registers a family under each of its model types."""
    for model_type in family.model_types:
        FAMILIES[model_type] = family
    return family


def family_of(model_type: str) -> Family:
    """Returns the family of a `model_type`; raises InputError listing the known families."""
    if model_type not in FAMILIES:
        raise InputError(
            f"model family '{model_type}' is not supported", cure=f"known families: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def encoder_shape(
    family: str,
    *,
    width: int,
    layers: int,
    heads: int,
    ffn: int,
    outside_layers: int,
    positions: int,
    embedding: int = 0,
) -> BackboneShape:
    """Returns the shape of a post-LN encoder whose layers hold 4 d^2 + 4 d, 2 d f + f + d and two LayerNorms.

    Args:
        family: Name of the family.
        width: Hidden width d.
        layers: Number of layers.
        heads: Attention heads; their width is d / heads.
        ffn: FFN width f.
        outside_layers: Parameters outside the layers: embeddings and pooler.
        positions: Longest text in tokens.
        embedding: Width of the embeddings where it is another one.

    Raises:
        InputError: More layers than any model has: the slots of each are listed.
    """
    if layers > MOST_LAYERS:
        raise InputError(f"{layers} layers are not credible", where="config.json", cure="name another model's folder")
    square = SlotShape(width, width)
    sites = {
        "ffn": square,
        "attention": SlotShape(width, width, heads=heads, kv_heads=heads, head_dim=width // heads),
        **{f"attention.{part}": square for part in ("query", "key", "value", "output")},
        "ffn.up": SlotShape(width, ffn),
        "ffn.down": SlotShape(ffn, width),
    }
    per_layer = 4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width
    total = outside_layers + layers * per_layer
    slots = {Slot("encoder", i, site): shape for i in range(layers) for site, shape in sites.items()}
    slots[Slot("backbone", 0, "all")] = SlotShape(width, width, parameters=total)
    norms = {Slot("encoder", i, site): width for i in range(layers) for site in ("norm1", "norm2")}
    norms[Slot("embeddings", 0, "norm")] = embedding or width
    return BackboneShape(family, slots, total, width, positions, norms)
