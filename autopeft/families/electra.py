"""ELECTRA: BERT's layers behind a narrower embedding, without a pooler. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autopeft.families.base import StockHead, encoder_shape, register_family
from autopeft.families.bert import BERT
from autopeft.shapes import BackboneShape


def _shape(config: Mapping[str, Any]) -> BackboneShape:
    d, e = config["hidden_size"], config["embedding_size"]
    tables = config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"]
    return encoder_shape(
        "electra",
        width=d,
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn=config["intermediate_size"],
        outside_layers=tables * e + 2 * e + (e * d + d if e != d else 0),
        positions=config["max_position_embeddings"],
        embedding=e,
    )


register_family(
    replace(
        BERT,
        name="electra",
        model_types=("electra",),
        stock_head=StockHead("classifier.dense", "classifier.out_proj", "gelu"),
        defaults={
            "vocab_size": 30522,
            "embedding_size": 128,
            "hidden_size": 256,
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
        },
        shape=_shape,
    )
)
