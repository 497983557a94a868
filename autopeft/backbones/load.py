"""Load a described backbone and its tokenizer from disk or the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from autopeft.backbones.shared import read_through, share_weights
from autopeft.errors import AutoPeftError, InputError, MissingExtra
from autopeft.families import fingerprint, locate, read_config, shape_of
from autopeft.setting import Backbone

_AGAIN = "get the model's files again"
_PER_BYTE = 8
"""Most parameters a byte of weights could stand for: more than any quantisation packs."""


def load_backbone(
    backbone: Backbone,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
    four_bit: bool = False,
) -> PreTrainedModel:
    """Loads the bare model, frozen and in evaluation mode, after checking that its weights are the described ones.

    On a CPU the processes of one machine hold its weights in memory once (`autopeft.backbones.shared`).

    Args:
        backbone: The described backbone.
        dtype: Type of its parameters.
        trust_remote_code: Whether Python files that come with it may run; without, transformers' own class is used.
        device: Where it is put.
        four_bit: Whether the Linears of its layers are held in 4 bits, as normal floats with quantised constants
            (QLoRA, arXiv 2305.14314); everything else stays of type `dtype`. Needs a CUDA device.

    Raises:
        InputError: The weights on disk have another fingerprint, weights other than a pooler's are missing, files are
            damaged, trusted code cannot be used, or 4 bits are asked for without CUDA.
        MissingExtra: 4 bits are asked for and bitsandbytes is not installed.
    """
    device = torch.device(device)
    quantised = _in_four_bits(device) if four_bit else {}
    folder = locate(backbone.reference, backbone.revision)
    found = fingerprint(folder)
    if found != backbone.sha256:
        raise InputError(
            f"weights have SHA-256 {found[:12]}..., expected {backbone.sha256[:12]}...",
            where=backbone.reference,
            cure="use the backbone the study was made with",
        )
    _require_credible(folder, backbone.reference)
    # A pooler that the checkpoint lacks is drawn anew: with a fixed seed, so that every worker draws the same.
    what = "its code cannot be used" if trust_remote_code else "transformers cannot load it"
    cure = "put its Python files into the folder, or do without them" if trust_remote_code else _AGAIN
    with _quiet(), torch.random.fork_rng(devices=[]), _explained(what, backbone.reference, cure):
        torch.manual_seed(0)
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **quantised,
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} weights, the first is '{missing[0]}'",
            where=backbone.reference,
            cure="save the whole model again",
        )
    _place(model, device, f"{backbone.sha256}-{str(dtype).removeprefix('torch.')}", quantised=four_bit)
    return model.eval().requires_grad_(False)


def _place(model: PreTrainedModel, device: torch.device, key: str, *, quantised: bool) -> None:
    if device.type == "cpu":
        share_weights(model, key)
        read_through(model)
    elif not quantised:  # what is quantised lies there already and cannot be moved
        model.to(device)


def _in_four_bits(device: torch.device) -> dict[str, Any]:
    """Returns what transformers has to be told to quantise the Linears of the layers while it loads."""
    if device.type != "cuda":
        cure = "run it where there is a CUDA device, or set it to false"
        raise InputError("4-bit weights need a CUDA device, and none is in use", where="training.four_bit", cure=cure)
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra="four-bit")
    # The pooler is left as it is: a head may start from its numbers.
    chosen = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["pooler"],
    )
    return {"quantization_config": chosen, "device_map": {"": device}}


def _require_credible(folder: Path, reference: str) -> None:
    """Refuses a configuration of far more parameters than there are bytes of weights: memory is taken by it first."""
    described = shape_of(read_config(folder)).total_parameters
    present = sum(path.stat().st_size for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    if described > _PER_BYTE * present:
        what = f"config.json describes {described:,} parameters, and the weights are {present:,} bytes"
        raise InputError(what, where=reference, cure=_AGAIN)


@contextmanager
def _explained(what: str, reference: str, cure: str) -> Iterator[None]:
    """Turns what transformers and its parsers raise on damaged files, which is of any kind, into an InputError."""
    try:
        yield
    except (AutoPeftError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise
        first = next(iter(str(error).splitlines()), "")[:300]
        raise InputError(f"{what} ({type(error).__name__}: {first})", where=reference, cure=cure) from error


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
    """Loads the backbone's tokenizer; code that comes with it is never run. Raises InputError for damaged files."""
    folder = locate(backbone.reference, backbone.revision)
    with _explained("transformers cannot load its tokenizer", backbone.reference, _AGAIN):
        # Not said, transformers would ask at the terminal.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer
