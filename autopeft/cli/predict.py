"""`autopeft predict`: labels for texts from a saved adapter."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from autopeft.cli.arguments import Json, TrustRemoteCode


def run(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder or archive of a saved adapter.", show_default=False)
    ],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; else --file, else lines of standard input.")] = None,
    file: Annotated[str | None, typer.Option(help="Data file with the texts.", show_default=False)] = None,
    text: Annotated[str, typer.Option(help="Column of the text in --file.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column of the second text.", show_default=False)] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Predict labels, or numbers, for texts.

    Example: autopeft predict adapters/reviews "a fine film" "two hours I will not get back"

    Example: autopeft predict adapters/reviews --file new.csv --text review --json
    """
    from autopeft.cli.console import print_json, say
    from autopeft.errors import InputError

    given, pairs = list(texts or ()), None
    if file is not None and given:
        raise InputError("texts and a file are given", where="--file", cure="give one of them")
    if file is not None:
        given, pairs = _read(file, text, text_pair)
    elif text_pair is not None:
        raise InputError("pairs are read from a file only", where="--text-pair", cure="give --file")
    elif not given and not sys.stdin.isatty():
        given = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not given:
        raise InputError("there is no text to predict", where="TEXTS", cure="give texts, or --file FILE --text COLUMN")

    from transformers.utils import logging

    from autopeft.adapters import load

    logging.disable_progress_bar()
    loaded = load(adapter)
    if loaded.pairs and pairs is None:
        cure = "give --file FILE --text COLUMN --text-pair COLUMN"
        raise InputError("the adapter was trained on pairs of texts", where=adapter, cure=cure)
    if pairs is not None and not loaded.pairs:
        raise InputError("the adapter was trained on single texts", where=adapter, cure="leave out --text-pair")
    found = loaded.predict(given, pairs, backbone=loaded.load_backbone(trust_remote_code=trust_remote_code))
    if as_json:
        print_json([_record(t, loaded.labels, found.labels[i : i + 1], found.outputs[i]) for i, t in enumerate(given)])
        return
    for i, one in enumerate(given):
        value = f"{found.labels[i]}\t{found.outputs[i].max():.3f}" if found.labels else f"{found.outputs[i][0]:.4f}"
        say(f"{value}\t{one}")


def _read(file: str, text: str, text_pair: str | None) -> tuple[list[str], list[str] | None]:
    from autopeft.tasks.columns import texts_of
    from autopeft.tasks.readers import read

    table = read(file, [text] if text_pair is None else [text, text_pair])
    return list(texts_of(table, text)), None if text_pair is None else list(texts_of(table, text_pair))


def _record(text: str, classes: tuple[str, ...], label: tuple[str, ...], outputs: object) -> dict[str, object]:
    numbers = [float(x) for x in outputs]  # type: ignore[attr-defined]
    if not classes:
        return {"text": text, "value": numbers[0]}
    return {"text": text, "label": label[0], "probabilities": dict(zip(classes, numbers, strict=True))}
