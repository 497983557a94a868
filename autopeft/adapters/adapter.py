"""The trained artefact as a value: configuration, weights, head, backbone fingerprint, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autopeft.adapters.card import model_card
from autopeft.adapters.files import FORMAT, PEFT_TYPE, pack, read_config, read_tensors
from autopeft.archives import is_archive, unpacked
from autopeft.backbones import Injection, backbone_in, inject, load_backbone, load_tokenizer, place_beside, shape_in
from autopeft.configuration import Configuration
from autopeft.errors import InputError, nearest
from autopeft.families import family_of
from autopeft.heads.layer import HeadLayer
from autopeft.heads.spec import Head
from autopeft.setting import Backbone, Precision, describe_backbone
from autopeft.tasks.base import Examples
from autopeft.training import Texts, predict, tokenise
from autopeft.training.precision import computing


@dataclass(frozen=True)
class Predictions:
    """What an adapter says about texts.

    Attributes:
        labels: Predicted class names; empty for regression.
        outputs: Class probabilities, shape (n, classes), or numbers, shape (n, 1).
    """

    labels: tuple[str, ...]
    outputs: NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """A trained configuration, ready to be saved, attached and asked.

    Attributes:
        configuration: Its stored form: what `tensors` belongs to.
        head: The task head.
        labels: Class names in the order of the outputs; empty for regression.
        reference: The backbone as it was named: folder, hub name or "demo".
        revision: Hub revision, or None.
        sha256: SHA-256 of the backbone's weights.
        max_length: Tokens a text is cut to.
        pairs: Whether it was trained on pairs of texts.
        tensors: SLOT.KIND.TENSOR and head.TENSOR to weights.
        provenance: How it came about: scores, counts, seed, budget, versions; JSON.
    """

    configuration: Configuration
    head: Head
    labels: tuple[str, ...]
    reference: str
    revision: str | None
    sha256: str
    max_length: int
    pairs: bool
    tensors: Mapping[str, torch.Tensor]
    provenance: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """Returns the JSON content of the adapter's configuration file, a PEFT configuration."""
        return {
            "peft_type": PEFT_TYPE,
            "format": FORMAT,
            "task_type": None,
            "inference_mode": True,
            "base_model_name_or_path": self.reference,
            "revision": self.revision,
            "backbone": {"sha256": self.sha256},
            "configuration": self.configuration.to_dict(),
            "head": self.head.to_dict(),
            "labels": list(self.labels),
            "max_length": self.max_length,
            "pairs": self.pairs,
            "provenance": dict(self.provenance),
        }

    def files(self) -> dict[str, bytes]:
        """Returns the adapter's files as bytes, named as in the folder `save` writes."""
        config = self.config()
        return pack(config, self.tensors, model_card(self.configuration, config))

    def save(self, folder: str | Path) -> Path:
        """Writes the adapter as a PEFT checkpoint and returns the folder.

        Example:
            >>> adapter.save("adapters/reviews")  # doctest: +SKIP
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            written = path / f".{name}.writing"
            written.write_bytes(content)
            written.replace(path / name)  # no reader ever sees half a file
        return path

    @property
    def head_tensors(self) -> dict[str, torch.Tensor]:
        """The head's weights, without their prefix."""
        return {name.removeprefix("head."): t for name, t in self.tensors.items() if name.startswith("head.")}

    @property
    def module_tensors(self) -> dict[str, torch.Tensor]:
        """The inserted modules' weights."""
        return {name: t for name, t in self.tensors.items() if not name.startswith("head.")}

    def attach(self, model: PreTrainedModel, name: str = "default") -> tuple[Injection, HeadLayer]:
        """Inserts the modules into a loaded backbone and builds the head.

        Args:
            model: A transformers model of the backbone the adapter belongs to; its weights are not hashed here.
            name: Name of the layout.

        Returns:
            The injection (call `eject` to take the modules out again) and the head.

        Raises:
            InputError: The adapter does not fit the model, or its tensors are not those of its configuration.
        """
        head = build_head(self.head, backbone_in(model), len(self.labels) or 1, self.head_tensors)
        return inject(model, self.configuration, name=name, tensors=self.module_tensors), head

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        backbone: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
        precision: Precision = "float32",
    ) -> Predictions:
        """Predicts labels, or numbers, for texts.

        In float32 by default, which every machine can, also where the study computed in bfloat16: outputs then differ
        from those that were scored by rounding (docs/precision.md). In the precision of the study, `trained_in`, they
        are those.

        Args:
            texts: The texts.
            pairs: Second texts of pairs, same length, or None.
            backbone: A loaded model and its tokenizer; None loads the adapter's own and checks its fingerprint.
            precision: "bfloat16" computes the products of the backbone's Linears as a study in bfloat16 does, on any
                machine; without instructions for it that is slow.

        Raises:
            InputError: The backbone's weights are not the ones the adapter was trained on, second texts are missing or
                superfluous, or there is no such precision.

        Example:
            >>> adapter.predict(["a fine film"]).labels  # doctest: +SKIP
            ('positive',)
        """
        if precision not in ("float32", "bfloat16"):
            cure = nearest(precision, ("float32", "bfloat16"))
            raise InputError(f"unknown precision '{precision}'", where="precision", cure=cure)
        if (pairs is not None) != self.pairs:
            trained = "pairs of texts" if self.pairs else "single texts"
            raise InputError(f"the adapter was trained on {trained}", where="pairs", cure=f"give it {trained}")
        if not texts:
            return Predictions((), np.zeros((0, len(self.labels) or 1), dtype=np.float32))
        model, tokenizer = backbone or self.load_backbone()
        second = tuple(pairs) if pairs is not None else None
        if second is not None and len(second) != len(texts):
            raise InputError(f"{len(texts)} texts but {len(second)} second texts", cure="give one pair per text")
        examples = Examples(tuple(texts), second, np.zeros(len(texts), dtype=np.int64))
        with computing(model, precision), self.attached(model) as head:
            outputs = predict(Texts(model, tokenise(tokenizer, examples, self.max_length)), head)
        if not self.labels:
            return Predictions((), outputs)
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        return Predictions(tuple(self.labels[i] for i in probabilities.argmax(axis=1)), probabilities)

    @property
    def trained_in(self) -> Precision:
        """The precision in which it was trained and scored."""
        recipe = self.provenance.get("recipe")
        return "bfloat16" if isinstance(recipe, Mapping) and recipe.get("precision") == "bfloat16" else "float32"

    @contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[HeadLayer]:
        """Attaches the adapter for the duration of a block; yields the head."""
        injection, head = self.attach(model, name="predict")
        try:
            yield head
        finally:
            injection.eject()

    def load_backbone(self, *, trust_remote_code: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the adapter's backbone and tokenizer.

        Args:
            trust_remote_code: Whether code that comes with the backbone may run.

        Raises:
            InputError: The weights are other ones, or the adapter was trained with such code and it may not run.
        """
        if self.provenance.get("remote_code") and not trust_remote_code:
            raise InputError(
                "the adapter was trained with code that comes with its backbone",
                where=self.reference,
                cure="if you trust that code, load the backbone with trust_remote_code=True, or --trust-remote-code",
            )
        found = describe_backbone(self.reference, self.revision)
        own = Backbone(self.reference, self.sha256, found.shape, self.revision)
        return load_backbone(own, trust_remote_code=trust_remote_code), load_tokenizer(own)


def build_head(
    head: Head, backbone: PreTrainedModel, outputs: int, tensors: Mapping[str, torch.Tensor] | None = None
) -> HeadLayer:
    """Builds the head for a backbone; fresh weights come from torch's global generator unless tensors are given.

    Raises:
        InputError: The tensors are not those of this head.
    """
    stock = family_of(backbone.config.model_type).stock_head
    layer = HeadLayer(head, shape_in(backbone).width, outputs, stock)
    layer.start_from(backbone, stock)
    if tensors is not None:
        try:
            layer.load_state_dict(dict(tensors))
        except RuntimeError:
            raise InputError(
                f"the head's tensors do not fit {outputs} outputs of a '{head.kind}' head",
                where="head",
                cure="save the adapter again",
            ) from None
    place_beside(layer, next(backbone.parameters()))
    return layer


def load(folder: str | Path) -> Adapter:
    """Loads an adapter from the folder `Adapter.save` wrote, or from an archive of it.

    Nothing of it is executed, whoever made it: the weights are safetensors and the configuration is plain data.

    Args:
        folder: The folder, or a .tar, .tar.gz, .tgz or .zip file, which is unpacked to a temporary folder.

    Raises:
        InputError: Files are missing, damaged, of a later format, not an adapter of ours, or not safe to open.

    Example:
        >>> load("adapters/reviews").configuration.id  # doctest: +SKIP
    """
    path = Path(folder)
    if is_archive(path) and not path.is_dir():
        with unpacked(path) as inside:
            return _load(inside)
    return _load(path)


def _load(path: Path) -> Adapter:
    config = read_config(path)
    try:
        return Adapter(
            configuration=Configuration.from_dict(config["configuration"]),
            head=Head.from_dict(config["head"]),
            labels=tuple(config["labels"]),
            reference=str(config["base_model_name_or_path"]),
            revision=config.get("revision"),
            sha256=str(config["backbone"]["sha256"]),
            max_length=config["max_length"],
            pairs=config.get("pairs", False),
            tensors=read_tensors(path, config.get("weights_sha256")),
            provenance=dict(config["provenance"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"a field is missing or of the wrong type: {error}", where=str(path), cure="save the adapter again"
        ) from None
