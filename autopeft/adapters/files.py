"""An adapter on disk: one JSON file, one safetensors file, one model card; nothing else is read.

The folder is a PEFT checkpoint: after `import autopeft.peft`, `peft.PeftModel.from_pretrained(backbone, folder)`
loads it. Both ways apply the same checks (`require_safe_config`, `require_safe_weights`): a pickle is never opened, and
the configuration names nothing to import but the class of a transformers model.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from autopeft.errors import InputError
from autopeft.untrusted import read_json, require_form

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
CARD: Final = "README.md"
PEFT_TYPE: Final = "AUTOPEFT"
FORMAT: Final = 1
"""Version of the layout; a reader refuses a larger one."""
LONGEST: Final = 1 << 20
"""Most tokens a text may be cut to."""

OURS: Final = frozenset(
    {"backbone", "configuration", "format", "head", "labels", "max_length", "pairs", "provenance", "weights_sha256"}
)
PEFTS: Final = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type"}
)
"""Keys that peft writes of every method."""
_PICKLES: Final = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
# What peft writes when it saves an adapter of a model without a task: where the class of the model comes from.
_LIBRARY: Final = re.compile(r"transformers(\.models\.[a-z0-9_]+\.modeling_[a-z0-9_]+)?")
_CLASS: Final = re.compile(r"[A-Z][A-Za-z0-9]*")


def pack(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], card: str) -> dict[str, bytes]:
    """Returns the files of an adapter as bytes; equal adapters give equal bytes.

    Args:
        config: JSON content of the adapter's configuration file.
        tensors: Name to tensor; stored in order of name, on the CPU.
        card: Markdown of the model card.
    """
    ordered = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    weights = save_tensors(ordered, metadata={"format": "pt"})
    checked = {**config, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    return {
        CONFIG: (json.dumps(checked, indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: weights,
        CARD: card.encode(),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Reads and checks an adapter's configuration file.

    Raises:
        InputError: No such file, not JSON, not an adapter of ours, of a later format, or with a key that is not one of
            an adapter.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"the folder has no {CONFIG}", where=str(folder), cure="name the folder of a saved adapter")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != PEFT_TYPE:
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"peft_type is {kind!r}, not '{PEFT_TYPE}'", where=str(path), cure="load it with peft itself")
    require_safe_config(config, OURS | PEFTS, str(path))
    return config


def require_safe_config(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuses what an adapter's configuration does not hold: unknown keys and values of another type.

    peft passes the keys it does not know by with a warning, and imports what "auto_mapping" names
    (`AutoPeftModel.from_pretrained`; before 0.19 whatever that is). Here every key is one of a list, and "auto_mapping"
    may name a model class of transformers, as peft writes it, and nothing else.

    Args:
        config: Keys and values; absent ones are not missed here.
        known: The keys that may be there.
        where: What the message names.

    Raises:
        InputError: An unknown key, a value of the wrong type, a later format, or something to import.
    """
    for key in sorted(config.keys() - set(known), key=str):
        what = f"key {str(key)[:60]!r} is not one of an adapter's, and may name code to be run"
        raise InputError(what, where=where, cure="do not load it, or upgrade autopeft if a later release saved it")
    if config.get("format", FORMAT) not in range(1, FORMAT + 1) or isinstance(config.get("format"), bool):
        raise InputError(f"format {config.get('format')!r} is not known", where=where, cure="upgrade autopeft")
    mapping = config.get("auto_mapping")
    if mapping is not None and not _names_a_model(mapping):
        what = f"auto_mapping {str(mapping)[:120]!r} names something to import that is no model of transformers"
        raise InputError(what, where=where, cure="do not load it; what is meant there is not needed")
    try:
        require_form({key: value for key, value in config.items() if f"{key}?" in _FORM}, _FORM)
    except ValueError as error:
        raise InputError(str(error), where=where, cure=_AGAIN) from None
    if not 1 <= config.get("max_length", 1) <= LONGEST:
        raise InputError(f"'max_length' is not between 1 and {LONGEST}", where=where, cure=_AGAIN)


_AGAIN: Final = "save the adapter again"
_FORM: Final = {
    "backbone?": {"sha256?": str},
    "base_model_name_or_path?": (str, None),
    "configuration?": {str: object},
    "head?": (None, {"kind": str}),
    "inference_mode?": bool,
    "labels?": [str],
    "max_length?": int,
    "pairs?": bool,
    "provenance?": {
        "metric?": str,
        "scores?": {str: float},
        "counts?": {str: int},
        "data?": {"train": str, "sizes": {str: int}},
        "budget?": {str: (int, float, str, None)},
        "versions?": {str: str},
        ...: object,
    },
    "revision?": (str, None),
    "task_type?": (str, None),
    "weights_sha256?": (str, None),
}


def _names_a_model(mapping: object) -> bool:
    if not isinstance(mapping, Mapping) or set(mapping) != {"base_model_class", "parent_library"}:
        return False
    library, name = mapping["parent_library"], mapping["base_model_class"]
    plain = isinstance(library, str) and isinstance(name, str)
    return plain and bool(_LIBRARY.fullmatch(library)) and bool(_CLASS.fullmatch(name))


def require_safe_weights(folder: Path) -> None:
    """Refuses a folder whose weights are a pickle, which would run code where it is opened; it is not opened.

    Other files are of no concern: nothing but the configuration and the safetensors file is read.

    Args:
        folder: Folder of the adapter.

    Raises:
        InputError: A pickle stands beside the weights or in their place, or under their name.
    """
    weights = folder / WEIGHTS
    stem = weights.stem
    for path in sorted(folder.iterdir()):
        pickled = path.suffix.lower() in _PICKLES
        if pickled and (path.stem == stem or not weights.exists()):
            what = f"'{path.name}' is a pickle, which can run any code when it is opened; it was not opened"
            cure = f"ask for {WEIGHTS}, or delete the pickle if the weights are there too"
            raise InputError(what, where=str(folder), cure=cure)
    if weights.is_file():
        with weights.open("rb") as stream:
            start = stream.read(9)
        # A safetensors file begins with the length of its header, at most 100 MB, in 8 bytes, and the header's "{".
        # A pickle begins with 0x80 and its protocol; torch.save puts one into a zip file.
        pickled = re.match(rb"\x80[\x00-\x05]|PK\x03\x04", start) is not None
        if pickled and (start[4:8], start[8:]) != (b"\0\0\0\0", b"{"):
            what = "this is a pickle under the name of safetensors; it was not opened"
            raise InputError(what, where=str(weights), cure="do not trust the folder it came with")


def read_tensors(folder: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """Reads an adapter's tensors; safetensors only.

    Args:
        folder: Folder of the adapter.
        sha256: What the configuration says of the file, or None where it says nothing (saved again by peft).

    Raises:
        InputError: The file is absent, truncated, not safetensors, a pickle, or not the one that was saved.
    """
    path = folder / WEIGHTS
    require_safe_weights(folder)
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        content = path.read_bytes()
        tensors: dict[str, torch.Tensor] = load_tensors(content)
    except (OSError, SafetensorError, ValueError, struct.error) as error:
        raise InputError(
            f"weights cannot be read ({type(error).__name__}: {error})", where=str(path), cure="save the adapter again"
        ) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError("weights are not those that were saved", where=str(path), cure="save the adapter again")
    return tensors
