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
_UNSEEN: Final = -1
"""What is predicted of a word of which the model saw no token; as the last place of the names it stands for `O`."""


@dataclass(frozen=True)
class TokenClassification(Task):
    """The task `token-classification`. Tags are plain, or of IOB, IOE, IOBES or BILOU form."""

    name = "token-classification"
    pipeline = "token-classification"
    auto_model = "AutoModelForTokenClassification"
    packs = False  # its head reads all tokens
    cut = ("loss",)
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
        """Returns `input_ids` and `labels`, both ragged and equally long, and `unseen`, ragged.

        The words are tokenised as one text, with a space between them, which is what a pipeline is given. The first
        sub-word of a word has the label of the word; later ones and special tokens have `IGNORED`. `unseen` are the
        words without a token: those beyond `max_length`, and those of which the tokenizer makes nothing. Each is its
        place among the words times the number of classes, plus its label.

        Raises:
            UserError: A row has a tag that is not among the classes.
        """
        tokenizer = tokenizer_of(processor)
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        unseen: list[list[int]] = []
        for place, (tokens, tags) in enumerate(zip(rows["tokens"], rows["tags"], strict=True), 1):
            of_word = answers.indices(tags, classes, place).tolist()
            tokenised, words = texts.tokenised_words(tokenizer, tokens, max_length)
            ids.append(tokenised)
            labels.append(
                [
                    IGNORED if word is None or word == before else of_word[word]
                    for before, word in zip([None, *words[:-1]], words, strict=True)
                ]
            )
            missed = sorted(set(range(len(tokens))).difference(words))
            unseen.append([word * len(classes) + of_word[word] for word in missed])
        return Encoded(
            {"input_ids": Ragged.of(ids), "labels": Ragged.of(labels), "unseen": Ragged.of(unseen)}
        )

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns the batch, all int64 on the CPU.

        `input_ids` and `attention_mask` are `(batch, longest)`. `labels` is `(batch, longest + most)`: the labels of
        the tokens, and then the unseen words of each row, no more than `most`; filled with `IGNORED`.
        """
        import torch

        seen, unseen = (texts.padded(encoded, name, rows, IGNORED) for name in ("labels", "unseen"))
        return {
            "input_ids": texts.padded(encoded, "input_ids", rows, pad_token_id),
            "attention_mask": texts.attention_mask(encoded, rows),
            "labels": torch.cat([seen, unseen], dim=1),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a tag; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        return loading.load_model(folder, self.auto_model, classes)

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the mean cross-entropy of the seen words of each row in nats, shape `(batch,)`, float32."""
        labels = batch["labels"][:, : output.logits.shape[1]]
        return texts.token_losses(output.logits, labels, label_smoothing)

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns the likeliest class of each word, of the shape of the labels; `IGNORED` beside them.

        Of unseen words it is -1.
        """
        from torch.nn import functional

        labels = batch["labels"]
        guesses = output.logits.detach().argmax(dim=-1)
        guesses = functional.pad(guesses, (0, labels.shape[1] - guesses.shape[1]), value=_UNSEEN)
        return Said(guesses.masked_fill(labels == IGNORED, IGNORED), labels, losses.detach())

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns the metrics of a split, all finite; all NaN when a loss is not finite.

        An unseen word counts as one of which `O` was said, also where that is none of the classes: models that see
        more or less of the texts are measured by the same words.

        f1, precision, recall: Over entities, which count when both their ends and their class are right
            (Tjong Kim Sang and De Meulder 2003); 0 without any.
        accuracy: The part of the words with the right tag.
        loss: The mean over the rows of their mean cross-entropy in nats, of seen words alone.
        """
        if not answers.is_finite(predictions):
            return dict.fromkeys(self.metrics, float("nan"))
        labels = np.asarray(predictions.labels, dtype=np.int64)
        guesses = np.asarray(predictions.values, dtype=np.int64)
        known = labels != IGNORED
        pairs = [
            _tags(of_row[mask], said[mask], classes)
            for of_row, said, mask in zip(labels, guesses, known, strict=True)
        ]
        correct = sum(right == said for tags, found in pairs for right, said in zip(tags, found, strict=True))
        return {
            **entities.score(pairs),
            "accuracy": correct / int(known.sum()) if known.any() else 0.0,
            "loss": predictions.loss,
        }

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["123 Main Street, Springfield"]


def _tags(
    labels: NDArray[np.int64], guesses: NDArray[np.int64], classes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The right tags of all words of a row in their order, and those that were said."""
    names, seen = (*classes, entities.OUTSIDE), guesses != _UNSEEN
    right, said = ([names[tag] for tag in part[seen]] for part in (labels, guesses))
    for unseen in labels[~seen].tolist():
        place, tag = divmod(unseen, len(classes))
        right.insert(place, names[tag])
        said.insert(place, names[_UNSEEN])
    return right, said
