"""Text regression: a number for a text, or for two that belong together, such as how alike they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading, texts
from finetune_sweep.tasks.arrays import Encoded, Said
from finetune_sweep.tasks.contract import Column, Task
from finetune_sweep.tasks.processors import load_tokenizer, pad_token_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch, Predictions
    from finetune_sweep.tasks.contract import Mode, Output
    from finetune_sweep.tasks.processors import Processor

_METRICS: Final[Mapping[str, Mode]] = {
    "pearson": "max",
    "spearman": "max",
    "r2": "max",
    "mean_absolute_error": "min",
    "loss": "min",
}


@dataclass(frozen=True)
class TextRegression(Task):
    """The task `text-regression`, on the sequence classifiers of transformers with one output.

    Numbers are learned as they are: those far from 0 and 1 are better brought near first.
    """

    name = "text-regression"
    pipeline = "text-classification"
    auto_model = "AutoModelForSequenceClassification"
    packs = True  # its head reads one token of a text
    columns = (*texts.PAIR, Column("number", True, "the number that belongs to it", "number", target=True))
    metrics = _METRICS

    def classes(self, train: Dataset) -> tuple[str, ...]:  # noqa: ARG002
        """Returns `number`: what a model calls its output."""
        return ("number",)

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:  # noqa: ARG002
        """Returns what `texts.encoded` does, and `labels`, the numbers, shape `(rows,)`, float32."""
        numbers = np.array(rows["number"], dtype=np.float32)
        return Encoded({**texts.encoded(rows, processor, max_length), "labels": numbers})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns what `texts.collated` does, and `labels` of these rows, float32 on the CPU."""
        return {
            **texts.collated(encoded, rows, pad_token_id),
            "labels": texts.taken(encoded, "labels", rows),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one output; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        model, new = loading.load_model(folder, self.auto_model, classes, "regression")
        model.config.pad_token_id = pad_token_id(load_tokenizer(folder))
        return model, new

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:  # noqa: ARG002
        """Returns the squared error of each row, shape `(batch,)`, float32."""
        return (output.logits.float().squeeze(-1) - batch["labels"]).square()

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns the numbers, shape `(batch,)`, float32, with labels and losses."""
        return Said(output.logits.detach().float().squeeze(-1), batch["labels"], losses.detach())

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:  # noqa: ARG002
        """Returns the metrics of a split, all finite; all NaN when a number or a loss is not.

        pearson, spearman: The correlation of the numbers, and of their ranks; 0 where one side is constant.
        r2: 1 minus the squared error over that of the mean of the right numbers; 0 where these are constant.
        mean_absolute_error: In the units of the numbers.
        loss: The mean squared error.
        """
        if not answers.is_finite(predictions):
            return dict.fromkeys(self.metrics, float("nan"))
        said, right = (
            np.asarray(side, dtype=np.float64) for side in (predictions.values, predictions.labels)
        )
        spread = float(np.square(right - right.mean()).sum())
        error = float(np.square(said - right).sum())
        return {
            "pearson": _correlation(said, right),
            "spearman": _correlation(answers.ranks(said), answers.ranks(right)),
            "r2": 1 - error / spread if spread > 0 else 0.0,
            "mean_absolute_error": float(np.abs(said - right).mean()),
            "loss": float(np.asarray(predictions.losses, dtype=np.float64).mean()),
        }

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64] | None:
        """Returns the errors for `mean_absolute_error`, their squares for `loss`."""
        if metric == "mean_absolute_error":
            said, right = (np.asarray(s, dtype=np.float64) for s in (predictions.values, predictions.labels))
            return np.abs(said - right)
        return np.asarray(predictions.losses, dtype=np.float64) if metric == "loss" else None

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["The parser fails on long sentences."]


def _correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    one, other = left - left.mean(), right - right.mean()
    spread = np.sqrt(np.square(one).sum() * np.square(other).sum())
    return float((one @ other) / spread) if spread > 0 else 0.0
