"""An adapter on disk: one JSON file, one safetensors file, one model card; nothing else is read.

The folder is a PEFT checkpoint: after `import autopeft.peft`, `peft.PeftModel.from_pretrained(backbone, folder)`
loads it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from autopeft.errors import InputError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
CARD: Final = "README.md"
PEFT_TYPE: Final = "AUTOPEFT"
FORMAT: Final = 1
"""Version of the layout; a reader refuses a larger one."""


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
        InputError: No such file, not JSON, not an adapter of ours, or of a later format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"the folder has no {CONFIG}", where=str(folder), cure="name the folder of a saved adapter")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not JSON: {error}", where=str(path), cure="save the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != PEFT_TYPE:
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"peft_type is {kind!r}, not '{PEFT_TYPE}'", where=str(path), cure="load it with peft itself")
    if not isinstance(config.get("format"), int) or config["format"] > FORMAT:
        raise InputError(f"format {config.get('format')!r} is not known", where=str(path), cure="upgrade autopeft")
    return config


def read_tensors(folder: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """Reads an adapter's tensors; safetensors only.

    Args:
        folder: Folder of the adapter.
        sha256: What the configuration says of the file, or None where it says nothing (saved again by peft).

    Raises:
        InputError: The file is absent, truncated, not safetensors, or not the one that was saved.
    """
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
        tensors: dict[str, torch.Tensor] = load_tensors(content)
    except (OSError, SafetensorError, ValueError, struct.error) as error:
        raise InputError(
            f"weights cannot be read ({type(error).__name__}: {error})", where=str(path), cure="save the adapter again"
        ) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError("weights are not those that were saved", where=str(path), cure="save the adapter again")
    return tensors
