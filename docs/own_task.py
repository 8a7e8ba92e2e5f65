"""Text counts: how many of something a text leads to, such as answers to a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading, texts
from finetune_sweep.tasks.arrays import Encoded, Said
from finetune_sweep.tasks.contract import Column, Task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch, Predictions
    from finetune_sweep.tasks.contract import Output
    from finetune_sweep.tasks.processors import Processor


@dataclass(frozen=True)
class TextCounts(Task):
    """The task `text-counts`: the model says the logarithm of the count that it expects (Poisson regression)."""

    name = "text-counts"
    pipeline = "text-classification"  # what transformers.pipeline calls it
    auto_model = "AutoModelForSequenceClassification"
    packs = True  # its head reads one token of a text
    columns = (
        Column("text", required=True, description="the text"),
        Column("count", required=True, description="how many", kind="number", target=True),
    )
    metrics = {"mean_absolute_error": "min", "loss": "min"}

    def classes(self, train: Dataset) -> tuple[str, ...]:
        """What the model's config calls its outputs; none for a task whose model writes texts."""
        return ("log_count",)

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:
        """From rows to numbers, once: `input_ids` (ragged), and `labels`, shape `(rows,)`."""
        counts = np.array(rows["count"], dtype=np.float32)
        return Encoded({**texts.encoded(rows, processor, max_length), "labels": counts})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """One batch: what the model is called with, and `labels`."""
        labels = texts.taken(encoded, "labels", rows)
        return {**texts.collated(encoded, rows, pad_token_id), "labels": labels}

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """The pretrained model with a head, and the names of the parameters that are new."""
        return loading.load_model(folder, self.auto_model, classes, "regression")

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """The loss of each row, shape `(batch,)`, float32."""
        log_count = output.logits.float().squeeze(-1)
        return log_count.exp() - batch["labels"] * log_count

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """What the metrics need of a batch, one row each: it is stored, and joined over batches."""
        return Said(output.logits.detach().float().squeeze(-1).exp(), batch["labels"], losses.detach())

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """All metrics of a split; NaN when what the model said is not finite."""
        if not answers.is_finite(predictions):
            return dict.fromkeys(self.metrics, float("nan"))
        return {name: float(self.row_scores(predictions, name).mean()) for name in self.metrics}

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64]:
        """What each row adds to a metric that is a mean over rows; None for any other."""
        if metric == "loss":
            return np.asarray(predictions.losses, dtype=np.float64)
        return np.abs(np.asarray(predictions.values, dtype=np.float64) - predictions.labels)

    def input_example(self) -> list[str]:
        """What a served model takes."""
        return ["How do I freeze the first layers?"]
