"""Token classification: a class for each word of a text, as in named-entity recognition and tagging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import entities, loading, texts
from finetune_sweep.tasks.arrays import IGNORED, Encoded, Ragged, Said
from finetune_sweep.tasks.contract import Column, Task
from finetune_sweep.tasks.processors import tokenizer_of

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
    "f1": "max",
    "precision": "max",
    "recall": "max",
    "accuracy": "max",
    "loss": "min",
}


@dataclass(frozen=True)
class TokenClassification(Task):
    """The task `token-classification`. Tags are plain, or of IOB, IOE, IOBES or BILOU form."""

    name = "token-classification"
    pipeline = "token-classification"
    auto_model = "AutoModelForTokenClassification"
    packs = False  # its head reads all tokens
    columns = (
        Column("tokens", required=True, description="a list of words", kind="tokens"),
        Column("tags", required=True, description="a list of their classes", kind="tags", target=True),
    )
    metrics = _METRICS

    def classes(self, train: Dataset) -> tuple[str, ...]:
        """Returns the tags of the training rows, sorted.

        Raises:
            UserError: There are fewer than two.
        """
        return answers.ordered(tag for tags in train["tags"] for tag in tags)

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:
        """Returns `input_ids` and `labels`, both ragged and equally long.

        The first sub-word of a word has the label of the word; later ones and special tokens have `IGNORED`.
        Words beyond `max_length` tokens are not seen, neither in training nor by the metrics.

        Raises:
            UserError: A row has a tag that is not among the classes.
        """
        tokenizer = tokenizer_of(processor)
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        for place, (tokens, tags) in enumerate(zip(rows["tokens"], rows["tags"], strict=True), 1):
            of_word = answers.indices(tags, classes, place)
            encoding = tokenizer(tokens, is_split_into_words=True, truncation=True, max_length=max_length)
            words = encoding.word_ids()
            ids.append(encoding["input_ids"])
            labels.append(
                [
                    IGNORED if word is None or word == before else int(of_word[word])
                    for before, word in zip([None, *words[:-1]], words, strict=True)
                ]
            )
        return Encoded({"input_ids": Ragged.of(ids), "labels": Ragged.of(labels)})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns `input_ids`, `attention_mask` and `labels`, each of shape `(batch, longest)`, int64 on the CPU."""
        return {
            "input_ids": texts.padded(encoded, "input_ids", rows, pad_token_id),
            "attention_mask": texts.attention_mask(encoded, rows),
            "labels": texts.padded(encoded, "labels", rows, IGNORED),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a tag; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        return loading.load_model(folder, self.auto_model, classes)

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the mean cross-entropy of the words of each row in nats, shape `(batch,)`, float32."""
        return texts.token_losses(output.logits, batch["labels"], label_smoothing)

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns the likeliest class of each word, shape `(batch, longest)`; `IGNORED` beside the labels."""
        labels = batch["labels"]
        guesses = output.logits.detach().argmax(dim=-1).masked_fill(labels == IGNORED, IGNORED)
        return Said(guesses, labels, losses.detach())

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns the metrics of a split, all finite; all NaN when a loss is not finite.

        f1, precision, recall: Over entities, which count when both their ends and their class are right
            (Tjong Kim Sang and De Meulder 2003); 0 without any.
        accuracy: The part of the words with the right tag.
        loss: The mean over the rows of their mean cross-entropy in nats.
        """
        if not answers.is_finite(predictions):
            return dict.fromkeys(self.metrics, float("nan"))
        labels = np.asarray(predictions.labels, dtype=np.int64)
        guesses = np.asarray(predictions.values, dtype=np.int64)
        known = labels != IGNORED
        names = np.array(classes)
        pairs = [
            (names[of_row[mask]].tolist(), names[said[mask]].tolist())
            for of_row, said, mask in zip(labels, guesses, known, strict=True)
        ]
        return {
            **entities.score(pairs),
            "accuracy": float((labels == guesses)[known].mean()) if known.any() else 0.0,
            "loss": predictions.loss,
        }

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["123 Main Street, Springfield"]
