"""Text classification: one text in, one of at least two classes out, or any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading, texts
from finetune_sweep.tasks.contract import Column, Encoded, Ragged, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_sweep.tasks.contract import Batch, Mode, Output, Predictions, Processor, Said


@dataclass(frozen=True)
class TextClassification(Task):
    """`text-classification`, and with `several` `text-tagging`, on the sequence classifiers of transformers.

    Args:
        several: Whether a text may have any number of classes, instead of one.
    """

    several: bool = False

    @property
    def name(self) -> str:
        """What a sweep file calls it."""
        return "text-tagging" if self.several else "text-classification"

    @property
    def pipeline(self) -> str:
        """What `transformers.pipeline` calls it."""
        return "text-classification"

    @property
    def auto_model(self) -> str:
        """The class of transformers that loads a model of it."""
        return "AutoModelForSequenceClassification"

    @property
    def packs(self) -> bool:
        """Its head reads one token of a text."""
        return True

    @property
    def columns(self) -> tuple[Column, ...]:
        """`text` and `label`, or `labels`."""
        text = Column("text", required=True, description="the text")
        if self.several:
            return text, Column("labels", True, "a list of its classes, which may be empty", "labels", True)
        return text, Column("label", True, "its class", "class", target=True)

    @property
    def metrics(self) -> Mapping[str, Mode]:
        """See `classes.score_one` and `classes.score_several`."""
        return answers.ANY_OF if self.several else answers.ONE_OF

    def classes(self, train: Dataset) -> tuple[str, ...]:
        """Returns the labels of the training rows, sorted; in numeric order if all are whole numbers.

        Raises:
            UserError: There are fewer than two.
        """
        if self.several:
            return answers.ordered(name for of_row in train["labels"] for name in of_row)
        return answers.ordered(str(label) for label in train.unique("label"))

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:
        """Returns `input_ids` (ragged, with the tokenizer's special tokens) and `labels`.

        `labels` is of shape `(rows,)`, the index of the class, or `(rows, classes)`, 1 for those that a row has.

        Raises:
            UserError: A row has a label that is not among the classes.
        """
        tokenizer = cast("PreTrainedTokenizerBase", processor)
        tokens = texts.token_ids(tokenizer, rows["text"], max_length)
        find = answers.marks if self.several else answers.indices
        labels = find(rows[self.columns[-1].name], classes)
        return Encoded({"input_ids": Ragged.of(tokens), "labels": labels})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns `input_ids` and `attention_mask` of shape `(batch, longest)`, and `labels` of these rows.

        All are int64 on the CPU; padding stands on the right, with mask 0.
        """
        import torch

        labels = cast("NDArray[np.int64]", encoded.columns["labels"])
        return {
            "input_ids": texts.padded(encoded, "input_ids", rows, pad_token_id),
            "attention_mask": texts.attention_mask(encoded, rows),
            "labels": torch.from_numpy(np.array(labels[rows], dtype=np.int64)),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a class; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        problem = f"{'multi' if self.several else 'single'}_label_classification"
        model, new = loading.load_model(folder, self.auto_model, classes, problem)
        model.config.pad_token_id = loading.pad_token_id(loading.load_processor(folder))
        return model, new

    def losses(self, output: Output, batch: Batch) -> torch.Tensor:
        """Returns the cross-entropy of each row in nats, shape `(batch,)`, float32."""
        return answers.losses(output, batch)

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns the logits, shape `(batch, classes)`, float32, with labels and losses."""
        return answers.predict(output, batch, losses)

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns the metrics of a split; see `classes.score_one` and `classes.score_several`."""
        if self.several:
            return answers.score_several(predictions)
        return answers.score_one(predictions, classes)

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64] | None:
        """Returns right and wrong answers as 1 and 0 for the parts of right rows, the losses for `loss`."""
        return answers.row_scores(predictions, metric)

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["The parser fails on long sentences."]
