"""Load a described backbone and its tokenizer from disk or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from autopeft.errors import InputError
from autopeft.families import fingerprint, locate
from autopeft.setting import Backbone


def load_backbone(backbone: Backbone, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Loads the bare model, frozen and in evaluation mode, after checking that its weights are the described ones.

    Args:
        backbone: The described backbone.
        dtype: Type of its parameters.

    Raises:
        InputError: The weights on disk have another fingerprint, or weights other than a pooler's are missing.
    """
    folder = locate(backbone.reference, backbone.revision)
    found = fingerprint(folder)
    if found != backbone.sha256:
        raise InputError(
            f"weights have SHA-256 {found[:12]}..., expected {backbone.sha256[:12]}...",
            where=backbone.reference,
            cure="use the backbone the study was made with",
        )
    # A pooler that the checkpoint lacks is drawn anew: with a fixed seed, so that every worker draws the same.
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, report = AutoModel.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} weights, the first is '{missing[0]}'",
            where=backbone.reference,
            cure="save the whole model again",
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from drawing bars and reporting weights while a block runs; what matters is refused here."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase:
    """Loads the backbone's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(backbone.reference, backbone.revision))
    return tokenizer
