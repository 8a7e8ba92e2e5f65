"""Text classification: one text in, one of at least two classes out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from finetune_sweep.errors import UserError, nearest
from finetune_sweep.tasks.contract import Column, Encoded, Predictions, Ragged, load_tokenizer, quiet_loading

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_sweep.tasks.contract import Batch, Mode, Output

_TOKENIZED_AT_ONCE = 1000
_WHOLE_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class TextClassification:
    """The task `text-classification`, on the sequence-classification models of transformers."""

    @property
    def name(self) -> str:
        """`text-classification`."""
        return "text-classification"

    @property
    def columns(self) -> tuple[Column, ...]:
        """`text` and `label`."""
        return (
            Column("text", required=True, description="the text"),
            Column("label", required=True, description="its class", kind="class", target=True),
        )

    @property
    def metrics(self) -> Mapping[str, Mode]:
        """See `score`."""
        return {
            "accuracy": "max",
            "macro_f1": "max",
            "f1": "max",
            "mcc": "max",
            "auroc": "max",
            "loss": "min",
        }

    def classes(self, train: Dataset) -> tuple[str, ...]:
        """Returns the labels of the training rows, sorted; in numeric order if all are whole numbers.

        Raises:
            UserError: There are fewer than two.
        """
        names = {str(label) for label in train.unique("label")}
        if len(names) < 2:
            found = f"only {names.pop()!r}" if names else "none"
            raise UserError(f"classification needs at least two classes, the training rows have {found}")
        if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
            return tuple(sorted(names, key=lambda name: (int(name), name)))
        return tuple(sorted(names))

    def encode(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str], max_length: int
    ) -> Encoded:
        """Returns `input_ids` (ragged, with the tokenizer's special tokens) and `labels` of shape `(rows,)`.

        A text of no token at all, which tokenizers without special tokens make of an empty one, becomes a
        single padding token.

        Raises:
            UserError: A row has a label that is not among the classes.
        """
        index = {name: place for place, name in enumerate(classes)}
        labels: list[int] = []
        tokens: list[list[int]] = []
        for start in range(0, len(rows), _TOKENIZED_AT_ONCE):
            batch = cast("dict[str, list[str]]", rows[start : start + _TOKENIZED_AT_ONCE])
            for place, label in enumerate(batch["label"], start + 1):
                labels.append(_class_index(index, label, place))
            encoding = tokenizer(
                batch["text"],
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            tokens.extend(ids or [int(tokenizer.pad_token_id)] for ids in encoding["input_ids"])
        return Encoded({"input_ids": Ragged.of(tokens), "labels": np.array(labels, dtype=np.int64)})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns `input_ids` and `attention_mask` of shape `(batch, longest)`, and `labels` `(batch,)`.

        All are int64 on the CPU; padding stands on the right, with mask 0.
        """
        import torch

        ids = encoded.columns["input_ids"]
        texts = [ids[int(row)] for row in rows]
        lengths = np.array([len(text) for text in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(mask.shape, pad_token_id, dtype=np.int64)
        padded[mask] = np.concatenate(texts)
        labels = cast("NDArray[np.int64]", encoded.columns["labels"])
        return {
            "input_ids": torch.from_numpy(padded),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(np.array(labels[rows], dtype=np.int64)),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a class; a head of another size is replaced.

        Returns:
            The model, and the sorted names of the parameters that are new.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification

        try:
            with quiet_loading():
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    str(folder),
                    id2label=dict(enumerate(classes)),
                    label2id={name: place for place, name in enumerate(classes)},
                    problem_type="single_label_classification",
                    dtype=torch.float32,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{folder}: no text classifier can be made of this model: {reason}") from error
        absent = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
        new = tuple(sorted(absent & {name for name, _ in model.named_parameters()}))
        _check_body(folder, model.base_model_prefix, new)
        model.config.pad_token_id = load_tokenizer(folder).pad_token_id
        return model, new

    def losses(self, output: Output, batch: Batch) -> torch.Tensor:
        """Returns the cross-entropy of each row in nats, shape `(batch,)`, float32."""
        from torch.nn import functional

        return functional.cross_entropy(output.logits.float(), batch["labels"], reduction="none")

    def predict(self, output: Output, batch: Batch) -> Predictions:
        """Returns the logits, shape `(batch, classes)`, float32, with labels and losses."""
        return Predictions(
            values=output.logits.detach().float().cpu().numpy(),
            labels=batch["labels"].cpu().numpy(),
            losses=self.losses(output, batch).detach().cpu().numpy(),
        )

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns the metrics of a split, all finite; all NaN when a logit or a loss is not finite.

        accuracy: The part of the rows whose largest logit is that of their label (the first, if tied).
        macro_f1: The mean of F1 over the classes that occur among labels or predictions.
        f1: With two classes, F1 of the second; otherwise macro_f1.
        mcc: Matthews correlation (Gorodkin's R_K for more than two classes); 0 when all labels, or all
            predictions, are one class.
        auroc: With two classes, the area under the ROC curve of the second; otherwise the mean of one class
            against the rest, over the classes for which the split has rows of both sides. 0.5 without any.
        loss: The mean cross-entropy in nats.
        """
        logits = np.asarray(predictions.values, dtype=np.float64)
        labels = np.asarray(predictions.labels, dtype=np.int64)
        losses = np.asarray(predictions.losses, dtype=np.float64)
        if not (np.isfinite(logits).all() and np.isfinite(losses).all()):
            return dict.fromkeys(self.metrics, float("nan"))
        guesses = logits.argmax(axis=1)
        counts = np.zeros((len(classes), len(classes)))  # by label, by prediction
        np.add.at(counts, (labels, guesses), 1)
        f1 = _f1(counts)
        macro_f1 = float(f1[counts.sum(axis=0) + counts.sum(axis=1) > 0].mean())
        return {
            "accuracy": float((guesses == labels).mean()),
            "macro_f1": macro_f1,
            "f1": float(f1[1]) if len(classes) == 2 else macro_f1,
            "mcc": _mcc(counts),
            "auroc": _auroc(logits, labels),
            "loss": float(losses.mean()),
        }

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64] | None:
        """Returns right and wrong answers as 1 and 0 for `accuracy`, the losses for `loss`."""
        match metric:
            case "accuracy":
                guesses = np.asarray(predictions.values, dtype=np.float64).argmax(axis=1)
                return np.asarray(guesses == predictions.labels, dtype=np.float64)
            case "loss":
                return np.asarray(predictions.losses, dtype=np.float64)
            case _:
                return None

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["The parser fails on long sentences."]


def _class_index(index: Mapping[str, int], label: str, row: int) -> int:
    if label not in index:
        known = ", ".join(list(index)[:20])
        raise UserError(f"row {row}: label {label!r} is none of the classes {known}{nearest(label, index)}")
    return index[label]


def _check_body(folder: Path, prefix: str, new: Collection[str]) -> None:
    """A pooler may be new, as checkpoints of language modelling have none; a block may not."""
    lost = [name for name in new if name.startswith(f"{prefix}.") and ".pooler." not in name]
    if lost:
        raise UserError(
            f"{folder}: weights and config.json do not agree: {len(lost)} tensors of the pretrained model"
            f" are absent or of another shape, the first is {lost[0]}"
        )


def _f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of each class; 0 for one that neither is nor is predicted."""
    both = counts.sum(axis=0) + counts.sum(axis=1)
    return 2 * np.diag(counts) / np.where(both > 0, both, 1)


def _mcc(counts: NDArray[np.float64]) -> float:
    """Gorodkin (2004), as a correlation of labels with predictions."""
    rows, labelled, predicted = counts.sum(), counts.sum(axis=1), counts.sum(axis=0)
    spread = (rows**2 - labelled @ labelled) * (rows**2 - predicted @ predicted)
    return float((np.trace(counts) * rows - labelled @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def _auroc(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Ranks by the log-odds of the class: the order of its probability, without ties by rounding to 1."""
    areas: list[float] = []
    for place in range(logits.shape[1]):
        truth = labels == place
        if truth.all() or not truth.any():
            continue
        rest = np.delete(logits, place, axis=1)
        highest = rest.max(axis=1)
        scores = logits[:, place] - highest - np.log(np.exp(rest - highest[:, None]).sum(axis=1))
        areas.append(_area(scores, truth))
    return float(np.mean(areas)) if areas else 0.5


def _area(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The part of all pairs of a true and a false row in which the true one scores higher; ties count half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    true = int(truth.sum())
    return float((ranks[places][truth].sum() - true * (true + 1) / 2) / (true * (len(truth) - true)))
