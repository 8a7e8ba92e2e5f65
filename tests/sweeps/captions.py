"""What a captioner is held against: one text for every picture, the texts of other pictures, and a choice of ten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.assembly import load_as_user
from finetune_sweep.plan import Plan
from finetune_sweep.tasks import TASKS, wording
from finetune_sweep.tasks.arrays import Encoded, Predictions, Ragged
from finetune_sweep.tasks.contract import Task
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import pad_token_id
from finetune_sweep.train.loop import evaluate
from finetune_sweep.train.packing import PaddedModel
from finetune_sweep.tune.loaded import planned_data

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHOICES: Final = 10
_AT_ONCE: Final = 64


class Captioned:
    """The test rows of a sweep, and the model that it promoted.

    Args:
        plan: The sweep.
        folder: The model.
        max_length: Tokens after which texts are cut.
    """

    def __init__(self, plan: Plan, folder: Path, max_length: int) -> None:
        described, splits = TASKS[plan.sweep.task], planned_data(plan).splits
        model, processor = load_as_user(folder, plan), load_processor(folder, described)
        self._task: Task = described.bound(model, processor)
        self._forward, self._pad = PaddedModel(model), pad_token_id(processor)
        self._encoded = self._task.encode(splits["test"], processor, (), max_length)
        self.before = list(splits["train"]["text"])

    def said(self) -> Predictions:
        """What the model writes about each picture."""
        return evaluate(
            self._forward,
            self._task,
            self._encoded,
            device="cpu",
            precision="fp32",
            pad_token_id=self._pad,
        )

    def chosen(self) -> float:
        """The part of the pictures that lower the loss of their own text most, beside those of the next nine rows."""
        return first_of(lowered(np.stack([self._losses(shift) for shift in range(CHOICES)])))

    def _losses(self, shift: int) -> NDArray[np.float32]:
        """The loss of each picture with the text of another row, shape `(rows,)`."""
        import torch

        labels, count = self._encoded.columns["labels"], len(self._encoded)
        others = Ragged.of([labels[(row + shift) % count].tolist() for row in range(count)])
        encoded = Encoded({**self._encoded.columns, "labels": others})
        found: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for start in range(0, count, _AT_ONCE):
                rows = np.arange(start, min(count, start + _AT_ONCE), dtype=np.int64)
                batch = self._task.collate(encoded, rows, self._pad)
                found.append(self._task.losses(self._forward(batch), batch).numpy())
        return np.concatenate(found)


def lowered(losses: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the loss of each text lies from its mean over the pictures that it was tried with.

    The loss alone is that of common texts, whatever the picture.

    Args:
        losses: Shape `(choices, rows)`: of each picture, with the text of the row that is so many further on.
    """
    choices, rows = losses.shape
    places = np.arange(rows)
    of_text = np.mean([losses[shift, (places - shift) % rows] for shift in range(choices)], axis=0)
    return np.stack([losses[shift] - of_text[(places + shift) % rows] for shift in range(choices)])


def first_of(losses: NDArray[np.float32]) -> float:
    """The part of the rows whose first choice has the least loss; shape `(choices, rows)`."""
    return float((losses[0] < losses[1:].min(axis=0)).mean())


def constant(right: Sequence[str], before: Sequence[str], metric: str) -> float:
    """The most that one text or one word of the training rows comes to, said of every picture."""
    words = {word for text in before for word in text.split()}
    return max(_mean([text] * len(right), right, metric) for text in sorted({*before, *words}))


def shuffled(said: Predictions, metric: str) -> float:
    """The mean over all ways of giving each picture the right text of the one that is so many rows on."""
    turns = (np.roll(said.labels, shift, axis=0) for shift in range(1, len(said)))
    means = [
        wording.of_rows(Predictions(said.values, turned, said.losses), metric).mean() for turned in turns
    ]
    return float(np.mean(means))


def _mean(said: Sequence[str], right: Sequence[str], metric: str) -> float:
    both = Predictions(wording.codes(said), wording.codes(right), np.zeros(len(right), dtype=np.float32))
    return float(wording.of_rows(both, metric).mean())
