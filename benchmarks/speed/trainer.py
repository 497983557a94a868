"""The loop that people write today, to be compared with: transformers' Trainer with peft, in two forms.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.trainer spec.json

"plain" is the script of transformers' guide to text classification (huggingface.co/docs/transformers, "Text
classification") with the model wrapped as peft's quick tour does it (huggingface.co/docs/peft, "Quicktour"): the model
is loaded for each trial, the texts are tokenised with truncation only, `DataCollatorWithPadding` pads each batch to its
longest text, batches are drawn at random, `AutoModelForSequenceClassification` keeps the dropout of its checkpoint
(0.1), and the validation texts are scored after each epoch. In its favour: no checkpoint is written, no progress bar
is drawn, and no report is sent anywhere.

"tuned" changes three things that a careful person would: `train_sampling_strategy="group_by_length"` (before
transformers 5 the flag `group_by_length`), dropout 0, and one evaluation, after the last epoch.

"tuned bfloat16" is "tuned" with the Trainer's `bf16=True`: products under torch's autocast.

What peft cannot express (serial and parallel adapters, prefixes in some layers only) is trained with this package's
modules, injected into the stock model, under the same Trainer: `configuration` in the trial. There the head is this
package's mean head and it learns at its own rate, so that both loops fit the same function.

The spec is JSON: `variant` (one of these names), `workload` (see `workloads.py`), `trials`: a list of {"configuration":
null for peft's LoRA or a configuration, "learning_rate", "rank", "seed"}. Prints one line of JSON per trial.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from autopeft.backbones import inject
from autopeft.configuration import Configuration
from autopeft.families import family_of
from autopeft.heads import Head
from autopeft.heads.layer import HeadLayer


class Classifier(nn.Module):
    """A backbone with injected modules and the mean head, in the form that the Trainer asks for."""

    def __init__(self, backbone: Any, labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        stock = family_of(backbone.config.model_type).stock_head
        self.head = HeadLayer(Head("mean"), backbone.config.hidden_size, labels, stock)

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns logits, and the loss where there are labels."""
        logits = self.head(self.backbone(**inputs).last_hidden_state, inputs["attention_mask"])
        return {"logits": logits} if labels is None else {"loss": functional.cross_entropy(logits, labels),
                                                          "logits": logits}  # fmt: skip


def tokenised(tokenizer: Any, path: str, max_length: int) -> list[dict[str, Any]]:
    """Returns one split, tokenised without padding: a list of features with "labels"."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    pairs = [row["pair"] for row in rows] if "pair" in rows[0] else None
    encoded = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=max_length)
    return [{**{k: encoded[k][i] for k in encoded}, "labels": row["label"]} for i, row in enumerate(rows)]


def peft_model(workload: Mapping[str, Any], trial: Mapping[str, Any], dropout: Mapping[str, float]) -> Any:
    """Returns the stock classifier with peft's LoRA on query and value."""
    model = AutoModelForSequenceClassification.from_pretrained(
        workload["backbone"], num_labels=workload["labels"], **dropout
    )
    asked = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=trial["rank"],
        lora_alpha=2 * trial["rank"],
        lora_dropout=0.0,
        target_modules=["query", "value"],
        layers_to_transform=trial.get("layers"),
    )
    return get_peft_model(model, asked)


def injected_model(workload: Mapping[str, Any], trial: Mapping[str, Any], dropout: Mapping[str, float]) -> Any:
    """Returns the stock backbone with a configuration of this package, and the optimiser with the rate of the head."""
    backbone = AutoModel.from_pretrained(workload["backbone"], **dropout)
    injection = inject(backbone, Configuration.from_dict(trial["configuration"]))
    model = Classifier(backbone, workload["labels"])
    rates = injection.configuration.training
    groups = [
        {"params": [p for _, p in injection.named_parameters()], "lr": rates.learning_rate},
        {"params": list(model.head.parameters()), "lr": rates.rate_of_head},
    ]
    return model, torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=workload["weight_decay"])


def arguments(
    variant: str, workload: Mapping[str, Any], trial: Mapping[str, Any], examples: int, folder: str
) -> TrainingArguments:
    """Returns the Trainer's settings."""
    batch, epochs = workload["batch_size"], workload["epochs"]
    steps = -(-examples // batch) * epochs
    more: dict[str, Any] = (
        {"eval_strategy": "epoch"}
        if variant == "plain"
        else {"eval_strategy": "no", "train_sampling_strategy": "group_by_length"}
    )
    more["bf16"] = variant.endswith("bfloat16")
    return TrainingArguments(
        output_dir=folder,
        learning_rate=trial["learning_rate"],
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        num_train_epochs=epochs,
        weight_decay=workload["weight_decay"],
        warmup_steps=max(1, round(0.1 * steps)),
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=not trial.get("configuration"),
        seed=trial["seed"],
        **more,
    )


def run(variant: str, workload: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one configuration from nothing, as a script would; returns quality and the CPU seconds of its stages."""
    began = time.process_time()
    set_seed(trial["seed"])
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    dropout = {} if variant == "plain" else off
    tokenizer = AutoTokenizer.from_pretrained(workload["backbone"])
    splits = {name: tokenised(tokenizer, workload[name], workload["max_length"]) for name in ("train", "validation")}
    optimizers: Any = (None, None)
    if trial.get("configuration"):
        model, optimizer = injected_model(workload, trial, dropout)
        optimizers = (optimizer, None)
    else:
        model = peft_model(workload, trial, dropout)

    def score(found: Any) -> dict[str, float]:
        return {"score": float((np.argmax(found.predictions, axis=-1) == found.label_ids).mean())}

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(variant, workload, trial, len(splits["train"]), folder),
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=score,
            optimizers=optimizers,
        )
        trainer.remove_callback(PrinterCallback)
        prepared = time.process_time()
        loss = trainer.train().training_loss
        trained = time.process_time()
        # With an evaluation per epoch the last one is that of the trained model.
        last = [row["eval_score"] for row in trainer.state.log_history if "eval_score" in row]
        quality = last[-1] if last else trainer.evaluate()["eval_score"]
    ended = time.process_time()
    return {
        "quality": quality,
        "loss": loss,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "cpu_seconds": ended - began,
        "prepare_seconds": prepared - began,
        "train_seconds": trained - prepared,
    }


def main() -> None:
    """Runs the trials of a spec."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    for trial in spec["trials"]:
        print(json.dumps(run(spec["variant"], spec["workload"], trial)), flush=True)


if __name__ == "__main__":
    main()
