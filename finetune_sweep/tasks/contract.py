"""What makes one task differ from another: its columns, encoding, model class, loss and metrics.

A task holds no state, and neither torch nor transformers is loaded before one of its methods needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch, Encoded, Predictions, Said
    from finetune_sweep.tasks.processors import Processor

Mode = Literal["max", "min"]
"""Whether more of a metric is better, or less."""

Kind = Literal["text", "class", "labels", "tokens", "tags", "number", "image", "boxes"]
"""What a cell of a column is: a text; a class; several classes; words, and a class for each; a number; a
picture, as the bytes of its file; the boxes in a picture."""


class Box(NamedTuple):
    """What is where in a picture: in pixels, from the upper left corner.

    A crowd is a region with too many of a class to draw a box around each: it is not learned, and what is found in it
    is neither right nor wrong.
    """

    label: str
    left: float
    top: float
    width: float
    height: float
    crowd: bool = False


@dataclass(frozen=True)
class Column:
    """One column of a task's rows.

    Args:
        name: What the task calls it.
        required: Whether rows cannot do without it.
        description: What it holds, for documents and messages.
        kind: What its cells are.
        target: Whether it is what the model has to say; all others are inputs, by which rows are compared when
            they are cleaned. A task has one such column.
        given: Of the target, whether it is an input too, as a text is that the model goes on with word by word.
        changeable: Whether a text may be written otherwise while the labels stay, as augmentation and robustness
            do it; not where labels point into the text, or the text is what is to be written.
    """

    name: str
    required: bool
    description: str
    kind: Kind = "text"
    target: bool = False
    changeable: bool = True
    given: bool = False


def changeable_columns(task: Task) -> tuple[str, ...]:
    """The columns of a task whose texts augmentation and robustness may change; perhaps none."""
    return tuple(column.name for column in task.columns if column.kind == "text" and column.changeable)


ROBUST: Final = "robust_"
"""Before the name of a metric: its mean over perturbed copies of the rows, see `train/robustness.py`."""


def metrics_of(task: Task) -> dict[str, Mode]:
    """What a sweep may optimise: the metrics of a task, and where its texts may be changed, those of perturbed rows."""
    robust = {f"{ROBUST}{name}": mode for name, mode in task.metrics.items()}
    return {**task.metrics, **(robust if changeable_columns(task) else {})}


class Output(Protocol):
    """What a model returns; tasks read further fields where their models have them."""

    @property
    def logits(self) -> torch.Tensor:
        """Shape `(batch, ...)`."""


class Task(Protocol):
    """All that the rest of the package needs to know of a task."""

    @property
    def name(self) -> str:
        """What a sweep file calls it."""

    @property
    def pipeline(self) -> str:
        """What `transformers.pipeline` and model hubs call it."""

    @property
    def auto_model(self) -> str:
        """The class of transformers that loads a model of it."""

    @property
    def packs(self) -> bool:
        """Whether its head reads one token of each text: then batches can be computed without their padding."""

    @property
    def evaluation_batch(self) -> int:
        """Rows evaluated at once; fixed, so that a metric does not depend on the training's batch size."""
        return 64

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of its rows, inputs first; the last one is the target."""

    @property
    def metrics(self) -> Mapping[str, Mode]:
        """What `score` returns, and which way is better."""

    @property
    def cut(self) -> tuple[str, ...]:
        """The metrics by which models that see texts to different lengths cannot be compared.

        Those of right answers that are cut as well: what was cut off would not count against a model.
        """
        return ()

    def classes(self, train: Dataset) -> tuple[str, ...]:  # noqa: ARG002
        """Returns the classes of the training rows in their order: the place of a class is its index.

        None where the answer is no choice among classes, as of a task that does not say so.

        Raises:
            UserError: There is nothing to tell apart.
        """
        return ()

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:
        """Turns rows into numbers; texts are cut after `max_length` tokens.

        Raises:
            UserError: A row has a label that is not among the classes.
        """

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Makes one batch of the given rows, in their order, padded to the longest, on the CPU."""

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the pretrained model in float32 and gives it the task's head.

        Returns:
            The model, and the sorted names of the parameters that the checkpoint does not have, whose values
            are random: the caller draws them again from its own seed.

        Raises:
            UserError: The folder does not hold a model that can do the task.
        """

    def bound(self, model: PreTrainedModel, processor: Processor) -> Task:  # noqa: ARG002
        """Returns the task as it collates and predicts for one model: itself, unless it has to know the model."""
        return self

    def as_evaluated(
        self,
        model: PreTrainedModel,
        validation: Callable[[], Encoded],  # noqa: ARG002
    ) -> PreTrainedModel:
        """Returns a trained model, whose configuration then says how it was evaluated; it is stored with the model.

        Args:
            model: The complete one; it is changed.
            validation: Gives the rows that it was evaluated on.
        """
        return model

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the loss of each row, shape `(batch,)`, float32, whatever the precision of the output.

        Args:
            output: Of the model.
            batch: With the labels.
            label_smoothing: The part of the target that is spread evenly over the classes; a sweep gives none to a
                task without classes.
        """

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns what the metrics need of one batch of which only `labels` are given, in the order of its rows.

        Args:
            output: Of the model; what is returned holds on to no more of it than it needs.
            batch: The labels.
            losses: As `losses` returns them.
        """

    def respond(self, model: PreTrainedModel, output: Output, batch: Batch, losses: torch.Tensor) -> Said:  # noqa: ARG002
        """Returns what an evaluation needs of one batch; a task whose model writes its answer lets it write here."""
        return self.predict(output, batch, losses)

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns every metric of the task; all are NaN when a prediction is not finite, and only then.

        Of training rows, for which a model does not write its answer, it may be the loss alone.
        """

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64] | None:
        """Returns what each row adds to a metric that is a mean over rows, shape `(rows,)`; None for any other.

        Such is the loss of any task, and nothing else of one that does not say so.
        """
        return np.asarray(predictions.losses, dtype=np.float64) if metric == "loss" else None

    def input_example(self) -> list[str]:
        """Returns inputs such as a served model takes; of a picture, the address or the bytes in base64."""
