"""BERT and RoBERTa: post-LN encoders that share one layout. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autopeft.families.base import Family, FfnSeam, StockHead, encoder_shape, register_family
from autopeft.shapes import BackboneShape

_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def _shape(config: Mapping[str, Any]) -> BackboneShape:
    # RoBERTa counts positions from the padding id on: the first pad + 1 rows of its table serve no text.
    pad = config.get("pad_token_id", 1)
    unused = (pad if isinstance(pad, int) and 0 <= pad < config["max_position_embeddings"] else 1) + 1
    unused = unused if config["model_type"] == "roberta" else 0
    d = config["hidden_size"]
    tables = config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"]
    return encoder_shape(
        config["model_type"],
        width=d,
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn=config["intermediate_size"],
        outside_layers=tables * d + 2 * d + (d * d + d),
        positions=config["max_position_embeddings"] - unused,
    )


BERT = register_family(
    Family(
        name="bert",
        model_types=("bert",),
        stacks={"encoder": "encoder.layer"},
        attention="attention.self",
        linears={
            "attention.query": "attention.self.query",
            "attention.key": "attention.self.key",
            "attention.value": "attention.self.value",
            "attention.output": "attention.output.dense",
            "ffn.up": "intermediate.dense",
            "ffn.down": "output.dense",
        },
        ffn=FfnSeam("output", "output_block", "output.LayerNorm"),
        stock_head=StockHead("bert.pooler.dense", "classifier", "tanh", pretrained_dense="pooler.dense"),
        defaults=_DEFAULTS,
        shape=_shape,
        norms={"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"},
        embeddings={"norm": "embeddings.LayerNorm"},
        narrowed="attention.output",
    )
)
ROBERTA = register_family(
    replace(
        BERT,
        name="roberta",
        model_types=("roberta",),
        stock_head=StockHead("classifier.dense", "classifier.out_proj", "tanh"),
        defaults={**_DEFAULTS, "vocab_size": 50265},
    )
)
