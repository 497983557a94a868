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


def load_backbone(
    backbone: Backbone, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Loads the bare model, frozen and in evaluation mode, after checking that its weights are the described ones.

    Args:
        backbone: The described backbone.
        dtype: Type of its parameters.
        trust_remote_code: Whether Python files that come with it may run; without, transformers' own class is used.

    Raises:
        InputError: The weights on disk have another fingerprint, weights other than a pooler's are missing, or trusted
            code cannot be used.
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
        try:
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
        except (AttributeError, ImportError, OSError, ValueError) as error:
            if not trust_remote_code:
                raise
            raise InputError(
                f"its code cannot be used ({type(error).__name__}: {error})".splitlines()[0],
                where=backbone.reference,
                cure="put its Python files into the folder, or do without them",
            ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} weights, the first is '{missing[0]}'",
            where=backbone.reference,
            cure="save the whole model again",
        )
    return model.eval().requires_grad_(False)


def runs_remote_code(model: PreTrainedModel) -> bool:
    """Says whether a loaded model is made of classes that came with its weights."""
    # transformers imports such files into a package of this name.
    return any(type(module).__module__.startswith("transformers_modules.") for module in model.modules())


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
    """Loads the backbone's tokenizer; code that comes with it is never run."""
    folder = locate(backbone.reference, backbone.revision)
    # Not said, transformers would ask at the terminal.
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer
