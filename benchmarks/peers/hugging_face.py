"""The Trainer of transformers, set up for one configuration as its documentation does it.

https://huggingface.co/docs/transformers/tasks/sequence_classification: a tokenizer that cuts, a collator that pads to
the longest text of a batch, `TrainingArguments`, `compute_metrics`. What the sweeps ask for beyond that page is the
freezing of blocks, the same in every peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import DatasetDict, load_from_disk
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.peers.recipe import Point, Recipe, Setting

if TYPE_CHECKING:
    from torch import nn

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear"}


def load_rows(recipe: Recipe) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
    """The tokenised splits, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.model)

    def tokenize(batch: dict[str, list[str]]) -> Any:  # noqa: ANN401 - what a tokenizer returns
        return tokenizer(batch["text"], truncation=True, max_length=recipe.max_length)

    rows = load_from_disk(recipe.rows)
    return rows.map(tokenize, batched=True, keep_in_memory=True), tokenizer


def build_model(recipe: Recipe, freeze_depth: Setting) -> PreTrainedModel:
    """The pretrained model with a new head, frozen to a depth."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        recipe.model, num_labels=recipe.classes, dtype=torch.float32
    )
    for module in frozen_modules(model, freeze_depth):
        module.requires_grad_(False)
    return model


def frozen_modules(model: nn.Module, freeze_depth: Setting) -> list[nn.Module]:
    """The embeddings and the first blocks of a BERT; nothing at depth 0, all blocks at `all`."""
    if freeze_depth == 0:
        return []
    embeddings, *blocks = parts(model)
    count = len(blocks) if freeze_depth == "all" else int(freeze_depth)
    return [embeddings, *blocks[:count]]


def parts(model: nn.Module) -> list[nn.Module]:
    """The embeddings of a BERT and its blocks, in order."""
    return [model.get_submodule("bert.embeddings"), *model.get_submodule("bert.encoder.layer").children()]


def arguments(recipe: Recipe, config: Mapping[str, Setting], folder: str) -> dict[str, Any]:
    """The arguments of `TrainingArguments` for a configuration of the grid."""
    settings = {**recipe.fixed, **config}
    return {
        "output_dir": folder,
        "learning_rate": settings["learning_rate"],
        "per_device_train_batch_size": settings["batch_size"],
        "per_device_eval_batch_size": 64,
        "num_train_epochs": settings["epochs"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "lr_scheduler_type": SCHEDULES[str(settings["lr_schedule"])],
        "warmup_steps": settings["warmup_steps"],
        "seed": recipe.seed,
        "bf16": recipe.bf16,
        "use_cpu": not recipe.gpu,
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,  # bounds the disk; what is written stays the same
        "report_to": "none",
        "disable_tqdm": True,
    }


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The accuracy."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def make_trainer(
    recipe: Recipe,
    config: Mapping[str, Setting],
    args: Mapping[str, Any],
    rows: tuple[DatasetDict, PreTrainedTokenizerBase],
    trainer_class: type[Trainer] = Trainer,
) -> Trainer:
    """A Trainer, ready to train a configuration."""
    splits, tokenizer = rows
    set_seed(recipe.seed)  # the weights of the head are drawn when the model is built
    return trainer_class(
        model=build_model(recipe, {**recipe.fixed, **config}["freeze_depth"]),
        args=TrainingArguments(**args),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def history(logs: list[dict[str, float]]) -> list[Point]:
    """The evaluations among what a Trainer has logged."""
    found = [entry for entry in logs if "eval_accuracy" in entry]
    return [Point(round(e["epoch"]), e["eval_accuracy"], e["eval_loss"]) for e in found]
