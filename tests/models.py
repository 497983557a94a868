"""Tiny random models of every family, with the real classes of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

WIDTH, LAYERS, HEADS, FFN, VOCABULARY = 32, 3, 4, 48, 99

_NAMES = {
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": FFN},
    "electra": {"embedding_size": 16},
}
_BERT_NAMES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
}
FAMILIES = ("bert", "roberta", "distilbert", "electra")


def tiny_config(family: str, **changes: Any) -> Any:
    """Returns a configuration of 3 layers, 32 wide; dropout stays at its default of 0.1."""
    sizes = _NAMES[family] if family == "distilbert" else {**_BERT_NAMES, **_NAMES.get(family, {})}
    return AutoConfig.for_model(
        family, vocab_size=VOCABULARY, max_position_embeddings=40, pad_token_id=0, **{**sizes, **changes}
    )


def tiny_model(family: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> PreTrainedModel:
    """Returns a bare random model in evaluation mode; larger weights than usual, so that every part matters."""
    torch.manual_seed(1)
    config = tiny_config(family, initializer_range=0.3)
    model = AutoModel.from_config(config, attn_implementation=attention)
    return model.to(dtype).eval().requires_grad_(False)


def tiny_classifier(family: str, classes: int = 3) -> PreTrainedModel:
    """Returns a random model with the stock classification head, float32."""
    torch.manual_seed(2)
    return AutoModelForSequenceClassification.from_config(tiny_config(family, num_labels=classes)).eval()


def inputs() -> dict[str, torch.Tensor]:
    """Returns two texts of 7 and 4 tokens, the second padded."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}
