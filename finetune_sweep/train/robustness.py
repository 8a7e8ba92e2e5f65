"""How much a model loses on perturbed texts: typos, capitals, punctuation, lost words, another order.

The rows of a split are written out in blocks: as they are, then perturbed by each kind at each strength. One pass over
all of them gives the predictions, and the metrics of each block are those of the task. The perturbations depend on
kind, strength and row alone, never on a trial's seed: all models are measured on the same texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tasks.contract import ROBUST, changeable_columns, metrics_of
from finetune_sweep.train import augment
from finetune_sweep.train.augment import NONE, Augmenter, draws, join_words, split_words
from finetune_sweep.train.data import Rewritten
from finetune_sweep.yamlio import Value

if TYPE_CHECKING:
    from finetune_sweep.tasks.contract import Mode, Task
    from finetune_sweep.train.copies import Columns

Metrics = Mapping[str, float]

STRENGTHS: Final = ("weak", "medium", "strong")
FORMAT: Final = 1
"""Of the perturbed rows; raised when a perturbation does something else."""


@dataclass(frozen=True)
class Kind:
    """One way of perturbing texts.

    Args:
        change: What changes the words.
        rates: Its rate at each strength, weakest first.
        meaning: What the rate counts, for people.
    """

    change: Augmenter
    rates: tuple[float, float, float]
    meaning: str


KINDS: Final[Mapping[str, Kind]] = {
    "typos": Kind(augment.typos, (0.02, 0.05, 0.1), "of the letters mistyped"),
    "case": Kind(augment.case, (0.1, 0.3, 1.0), "of the words in capitals"),
    "punctuation": Kind(augment.punctuation, (0.1, 0.3, 0.5), "of the words at most behind a new mark"),
    "deletion": Kind(augment.deletion, (0.05, 0.1, 0.2), "of the words left out"),
    "word_order": Kind(augment.swap, (0.05, 0.1, 0.2), "of the words change places with another"),
}
"""A new kind is one line here, and one in docs/methods.md."""
BLOCKS: Final = 1 + len(KINDS) * len(STRENGTHS)
"""How often each row is predicted."""


@dataclass(frozen=True)
class Robustness:
    """What was measured.

    Args:
        clean: The metrics of the rows as they are.
        perturbed: By kind, the metrics at each strength, weakest first.
    """

    clean: Metrics
    perturbed: Mapping[str, tuple[Metrics, ...]]

    def mean(self, metric: str) -> float:
        """The mean of a metric over kinds and strengths: what `robust_<metric>` is."""
        return float(np.mean([[m[metric] for m in metrics] for metrics in self.perturbed.values()]))

    def drop(self, metric: str, kind: str) -> float:
        """What the metric falls by under a kind, on the mean of its strengths; of a loss, it is negative."""
        return self.clean[metric] - float(np.mean([m[metric] for m in self.perturbed[kind]]))


def perturbed(columns: Columns, names: Sequence[str]) -> Columns:
    """The rows in blocks: as they are, then by each kind, at each strength.

    Args:
        columns: The rows.
        names: The columns whose texts are perturbed; all others are copied.
    """
    blocks = [columns, *(_block(columns, names, kind, at) for kind in KINDS for at in range(len(STRENGTHS)))]
    return {name: [value for block in blocks for value in block[name]] for name in columns}


def _block(columns: Columns, names: Sequence[str], kind: str, strength: int) -> Columns:
    rate = KINDS[kind].rates[strength]

    def write(text: object, name: str, row: int) -> str:
        rng = draws("robustness", kind, strength, name, row)
        return join_words(KINDS[kind].change(split_words(str(text)), rate, rng, NONE))

    return {
        name: [write(text, name, row) for row, text in enumerate(values)] if name in names else values
        for name, values in columns.items()
    }


def rewriting(split: str, task: Task) -> Rewritten:
    """A split with its perturbed rows, to be encoded."""
    names = changeable_columns(task)
    rates: dict[str, Value] = {name: list(kind.rates) for name, kind in KINDS.items()}
    return Rewritten(split, ["robustness", FORMAT, rates], lambda columns: perturbed(columns, names))


def measure(task: Task, predictions: Predictions, classes: Sequence[str]) -> Robustness:
    """The metrics of each block.

    Args:
        task: Whose metrics they are.
        predictions: Of the rows of `perturbed`, in their order.
        classes: Of the task.
    """
    clean, *others = (task.score(block, classes) for block in _blocks(predictions))
    count = len(STRENGTHS)
    return Robustness(
        clean,
        {kind: tuple(others[at * count : (at + 1) * count]) for at, kind in enumerate(KINDS)},
    )


def _blocks(predictions: Predictions) -> Iterator[Predictions]:
    size = len(predictions) // BLOCKS
    for first in range(0, BLOCKS * size, size):
        rows = slice(first, first + size)
        yield Predictions(predictions.values[rows], predictions.labels[rows], predictions.losses[rows])


def _is_in_blocks(predictions: Predictions) -> bool:
    """Whether predictions are those of perturbed rows: their labels repeat. Those of training rows do not.

    Nor are those without labels, as they are where a model wrote nothing.
    """
    size, rest = divmod(len(predictions), BLOCKS)
    if rest or not size or not predictions.labels.size:
        return False
    blocks = predictions.labels.reshape(BLOCKS, size, *predictions.labels.shape[1:])
    return bool((blocks == blocks[0]).all())


def measures(metric: str) -> bool:
    """Whether a metric is one of perturbed rows."""
    return metric.startswith(ROBUST)


def task_for(metric: str, task: Task) -> Task:
    """The task; if the metric is one of perturbed rows, one that scores these: its own metrics and `robust_*`.

    Its own are those of the clean rows. Predictions that are not in blocks, as those of training rows, have them alone.
    """
    return cast("Task", _RobustTask(task)) if measures(metric) else task


def clean_rows(predictions: Predictions) -> Predictions:
    """The predictions of the rows as they are; all of them if they are not in blocks."""
    return next(_blocks(predictions)) if _is_in_blocks(predictions) else predictions


class _RobustTask:
    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    @property
    def metrics(self) -> Mapping[str, Mode]:
        return metrics_of(self._task)

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        if not _is_in_blocks(predictions):
            return self._task.score(predictions, classes)
        found = measure(self._task, predictions, classes)
        return {**found.clean, **{f"{ROBUST}{metric}": found.mean(metric) for metric in found.clean}}


def table(found: Robustness, metric: str) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """What a card says of it: head and rows, one for each kind, and the mean of all."""
    rows: list[tuple[object, ...]] = [
        (
            f"{kind.replace('_', ' ')}: {_percent(KINDS[kind].rates)} % {KINDS[kind].meaning}",
            *(m[metric] for m in metrics),
            found.drop(metric, kind),
        )
        for kind, metrics in found.perturbed.items()
    ]
    strengths = [
        float(np.mean([m[at][metric] for m in found.perturbed.values()])) for at in range(len(STRENGTHS))
    ]
    rows.append(("mean of all kinds", *strengths, found.clean[metric] - found.mean(metric)))
    return (f"{metric} ({found.clean[metric]:.4g} without)", *STRENGTHS, "mean drop"), rows


def _percent(rates: Sequence[float]) -> str:
    return ", ".join(f"{100 * rate:g}" for rate in rates)
