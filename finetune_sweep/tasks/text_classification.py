"""Text classification: one text in, or two that belong together; one of at least two classes out, or any number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_sweep.tasks import texts
from finetune_sweep.tasks.arrays import Encoded
from finetune_sweep.tasks.choosing import Classification
from finetune_sweep.tasks.processors import load_tokenizer, pad_token_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.processors import Processor


@dataclass(frozen=True)
class TextClassification(Classification):
    """`text-classification`, and with `several` `text-tagging`."""

    of = "text"
    inputs = texts.PAIR
    auto_model = "AutoModelForSequenceClassification"
    packs = True  # its head reads one token of a text

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:
        """Returns what `texts.encoded` does, and `labels`.

        Raises:
            UserError: A row has a label that is not among the classes.
        """
        columns = texts.encoded(rows, processor, max_length)
        return Encoded({**columns, "labels": self.labels(rows, classes)})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns what `texts.collated` does, and `labels` of these rows, int64 on the CPU."""
        return {
            **texts.collated(encoded, rows, pad_token_id),
            "labels": texts.taken(encoded, "labels", rows),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a class; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        model, new = super().build_model(folder, classes)
        model.config.pad_token_id = pad_token_id(load_tokenizer(folder))
        return model, new

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["The parser fails on long sentences."]
