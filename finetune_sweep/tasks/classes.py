"""Answers that are one class or several of a fixed set: their order, their loss and their metrics.

Shared by the tasks that classify texts and pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.errors import UserError, nearest
from finetune_sweep.tasks.arrays import Predictions, Said

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.contract import Mode, Output

_WHOLE_NUMBER = re.compile(r"-?\d+")

ONE_OF: Final[Mapping[str, Mode]] = {
    "accuracy": "max",
    "macro_f1": "max",
    "f1": "max",
    "mcc": "max",
    "auroc": "max",
    "loss": "min",
}
"""The metrics of `score_one`."""
ANY_OF: Final[Mapping[str, Mode]] = {
    "micro_f1": "max",
    "macro_f1": "max",
    "exact_match": "max",
    "average_precision": "max",
    "loss": "min",
}
"""The metrics of `score_several`."""


def ordered(names: Iterable[str], fewest: int = 2) -> tuple[str, ...]:
    """Returns the classes, sorted; in numeric order if all are whole numbers.

    Raises:
        UserError: There are too few to tell anything apart.
    """
    found = set(names)
    if not found and fewest == 1:
        raise UserError("the training rows have no box")
    if len(found) < fewest:
        only = f"only {found.pop()!r}" if found else "none"
        raise UserError(f"classification needs at least two classes, the training rows have {only}")
    if all(_WHOLE_NUMBER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def indices(labels: Sequence[str], classes: Sequence[str], row: int | None = None) -> NDArray[np.int64]:
    """Returns the place of each label among the classes, shape `(labels,)`.

    Args:
        labels: One a row, or those of one row.
        classes: In their order.
        row: The row that all of them are of, counted from 1; None for one a row.

    Raises:
        UserError: A label is none of the classes.
    """
    index = {name: place for place, name in enumerate(classes)}
    for place, label in enumerate(labels, 1):
        if label not in index:
            known = ", ".join(classes[:20])
            raise UserError(
                f"row {row or place}: label {label!r} is none of the classes {known}{nearest(label, index)}"
            )
    return np.array([index[label] for label in labels], dtype=np.int64)


def marks(labels: Sequence[Sequence[str]], classes: Sequence[str]) -> NDArray[np.int64]:
    """Returns 1 where a row has a class, shape `(rows, classes)`.

    Raises:
        UserError: A label is none of the classes.
    """
    marked = np.zeros((len(labels), len(classes)), dtype=np.int64)
    for row, of_row in enumerate(labels):
        marked[row, indices(of_row, classes, row + 1)] = 1
    return marked


def losses(output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
    """Returns the loss of each row in nats, shape `(batch,)`, float32.

    Cross-entropy where `labels` is `(batch,)`; where it is `(batch, classes)`, the mean over the classes of the
    binary one. With label smoothing e the target of a class is `(1 - e) * label + e / K`, where K is the number of
    classes, and 2 for a binary one (Szegedy et al. 2016).
    """
    from torch.nn import functional

    logits, labels = output.logits.float(), batch["labels"]
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    targets = labels.float() * (1 - label_smoothing) + label_smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def predict(output: Output, batch: Batch, losses: torch.Tensor) -> Said:
    """Returns the logits, shape `(batch, classes)`, float32, with labels and losses."""
    return Said(output.logits.detach().float(), batch["labels"], losses.detach())


def score_one(predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of one class a row, all finite; all NaN when a logit or a loss is not finite.

    accuracy: The part of the rows whose largest logit is that of their label (the first, if tied).
    macro_f1: The mean of F1 over the classes that occur among labels or predictions.
    f1: With two classes, F1 of the second; otherwise macro_f1.
    mcc: Matthews correlation (Gorodkin's R_K for more than two classes); 0 when all labels, or all
        predictions, are one class.
    auroc: With two classes, the area under the ROC curve of the second; otherwise the mean of one class
        against the rest, over the classes for which the split has rows of both sides. 0.5 without any.
    loss: The mean cross-entropy in nats.
    """
    if not is_finite(predictions):
        return dict.fromkeys(ONE_OF, float("nan"))
    logits = np.asarray(predictions.values, dtype=np.float64)
    labels = np.asarray(predictions.labels, dtype=np.int64)
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
        "loss": float(np.asarray(predictions.losses, dtype=np.float64).mean()),
    }


def score_several(predictions: Predictions) -> dict[str, float]:
    """Returns the metrics of any number of classes a row, all finite; all NaN when a logit or a loss is not.

    A class is predicted where its logit is above 0.

    micro_f1: F1 over all decisions, one a row and class.
    macro_f1: The mean of F1 over the classes that occur among labels or predictions.
    exact_match: The part of the rows with all classes right.
    average_precision: The mean, over the classes that the split has rows of, of the area under precision against
        recall.
    loss: The mean binary cross-entropy in nats.
    """
    from sklearn import metrics

    if not is_finite(predictions):
        return dict.fromkeys(ANY_OF, float("nan"))
    logits = np.asarray(predictions.values, dtype=np.float64)
    labels = np.asarray(predictions.labels, dtype=np.int64)
    guesses = (logits > 0).astype(np.int64)
    used = np.flatnonzero(labels.any(axis=0) | guesses.any(axis=0))
    known = np.flatnonzero(labels.any(axis=0))
    areas = [float(metrics.average_precision_score(labels[:, name], logits[:, name])) for name in known]
    of_class = [
        float(metrics.f1_score(labels[:, name], guesses[:, name], zero_division=0.0)) for name in used
    ]
    return {
        "micro_f1": float(metrics.f1_score(labels.ravel(), guesses.ravel(), zero_division=0.0)),
        "macro_f1": float(np.mean(of_class)) if of_class else 0.0,
        "exact_match": float((labels == guesses).all(axis=1).mean()),
        "average_precision": float(np.mean(areas)) if areas else 0.0,
        "loss": float(np.asarray(predictions.losses, dtype=np.float64).mean()),
    }


def row_scores(predictions: Predictions, metric: str) -> NDArray[np.float64] | None:
    """Returns 1 and 0 for `accuracy` and `exact_match`, the losses for `loss`, shape `(rows,)`; else None."""
    logits = np.asarray(predictions.values, dtype=np.float64)
    match metric:
        case "accuracy":
            return np.asarray(logits.argmax(axis=1) == predictions.labels, dtype=np.float64)
        case "exact_match":
            return np.asarray(((logits > 0) == predictions.labels).all(axis=1), dtype=np.float64)
        case "loss":
            return np.asarray(predictions.losses, dtype=np.float64)
        case _:
            return None


def is_finite(predictions: Predictions) -> bool:
    """Whether all that a model said are finite numbers."""
    return bool(np.isfinite(predictions.values).all() and np.isfinite(predictions.losses).all())


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
    true = int(truth.sum())
    return float((ranks(scores)[truth].sum() - true * (true + 1) / 2) / (true * (len(truth) - true)))


def ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the rank of each score, from 1 for the lowest, shape `(rows,)`; equal ones have the mean of theirs."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(means[places], dtype=np.float64)
