"""DistilBERT: the FFN is a module of its own, the layer adds and normalises. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.families.base import Family, FfnSeam, StockHead, encoder_shape, register_family
from autopeft.shapes import BackboneShape


def _shape(config: Mapping[str, Any]) -> BackboneShape:
    d = config["dim"]
    return encoder_shape(
        "distilbert",
        width=d,
        layers=config["n_layers"],
        heads=config["n_heads"],
        ffn=config["hidden_dim"],
        outside_layers=(config["vocab_size"] + config["max_position_embeddings"]) * d + 2 * d,
        positions=config["max_position_embeddings"],
    )


register_family(
    Family(
        name="distilbert",
        model_types=("distilbert",),
        stacks={"encoder": "transformer.layer"},
        attention="attention",
        linears={
            "attention.query": "attention.q_lin",
            "attention.key": "attention.k_lin",
            "attention.value": "attention.v_lin",
            "attention.output": "attention.out_lin",
            "ffn.up": "ffn.lin1",
            "ffn.down": "ffn.lin2",
        },
        ffn=FfnSeam("ffn", "block", "output_layer_norm"),
        stock_head=StockHead("pre_classifier", "classifier", "relu"),
        defaults={
            "vocab_size": 30522,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "max_position_embeddings": 512,
        },
        shape=_shape,
        norms={"norm1": "sa_layer_norm", "norm2": "output_layer_norm"},
        embeddings={"norm": "embeddings.LayerNorm"},
        narrowed="sa_layer_norm",
    )
)
