"""The model card of an adapter: what it is, what it was trained on, how it was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from autopeft.configuration import Configuration, describe


def _public(reference: str) -> str:
    """Drops the folder of a local path: cards leave the house and must not carry paths."""
    local = PurePath(reference).is_absolute() or reference.startswith((".", "~"))
    return PurePath(reference).name if local else reference


def model_card(configuration: Configuration, config: Mapping[str, Any]) -> str:
    """Returns the card in Markdown, with the metadata block the hub expects.

    Args:
        configuration: The adapter's configuration.
        config: JSON content of the adapter's configuration file.
    """
    found = config["provenance"]
    counts = found.get("counts", {})
    scores = found.get("scores", {})
    reference = _public(str(config["base_model_name_or_path"]))
    lines = [
        "---",
        f"base_model: {json.dumps(reference)}",
        "library_name: peft",
        "tags: [autopeft, peft]",
        "---",
        "",
        f"# Adapter for {reference}",
        "",
        "| | |",
        "|---|---|",
        f"| configuration | {describe(configuration)} (`{configuration.id}`) |",
        f"| backbone | {reference}, weights SHA-256 `{config['backbone']['sha256']}` |",
        f"| head | {config['head']['kind']} |",
        f"| labels | {', '.join(map(str, config['labels'])) or 'a number'} |",
        f"| parameters | stored {counts.get('stored', 0):,}, trained {counts.get('trained', 0):,}, "
        f"active {counts.get('active', 0):,}; head {counts.get('head', 0):,} |",
    ]
    lines += [f"| {found.get('metric', 'score')} on {split} | {value:.4f} |" for split, value in scores.items()]
    origin = ("trial", "seed", "budget", "task_fingerprint", "versions")
    lines += [f"| {key} | {found[key]} |" for key in origin if key in found]
    lines += [
        "",
        "Scores are of this one training run (its seed is above); the spread over seeds is in the study's report.",
        "",
        "## Use",
        "",
        "```python",
        "import autopeft.adapters",
        "",
        'adapter = autopeft.adapters.load("THIS_FOLDER")',
        'print(adapter.predict(["a text"]).labels)',
        "```",
        "",
        "With peft (the import registers the type; without it peft raises `KeyError`):",
        "",
        "```python",
        "import autopeft.peft",
        "from peft import PeftModel",
        "from transformers import AutoModel",
        "",
        f"backbone = AutoModel.from_pretrained({json.dumps(reference)})",
        'model = PeftModel.from_pretrained(backbone, "THIS_FOLDER")',
        "```",
        "",
    ]
    return "\n".join(lines)
