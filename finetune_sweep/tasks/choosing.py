"""What the classification of texts and that of pictures have in common: all but their inputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading
from finetune_sweep.tasks.contract import Column, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch, Predictions, Said
    from finetune_sweep.tasks.contract import Mode, Output


@dataclass(frozen=True)
class Classification(Task):
    """One of at least two classes for each row, or any number of them; on the classifiers of transformers.

    Args:
        several: Whether a row may have any number of classes, instead of one.
    """

    several: bool = False

    @property
    @abstractmethod
    def of(self) -> Literal["text", "image"]:
        """What is classified."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Column, ...]:
        """The columns beside the classes."""

    @property
    def name(self) -> str:
        """Such as `text-classification`, or `text-tagging`."""
        return f"{self.of}-{'tagging' if self.several else 'classification'}"

    @property
    def pipeline(self) -> str:
        """Such as `text-classification`."""
        return f"{self.of}-classification"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The inputs, and `label` or `labels`."""
        if self.several:
            labels = Column(
                "labels", True, "a list of its classes, which may be empty", "labels", target=True
            )
            return (*self.inputs, labels)
        return (*self.inputs, Column("label", True, "its class", "class", target=True))

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

    def labels(self, rows: Dataset, classes: Sequence[str]) -> NDArray[np.int64]:
        """Returns the index of the class, shape `(rows,)`, or 1 for the classes of a row, `(rows, classes)`.

        Raises:
            UserError: A row has a label that is not among the classes.
        """
        find = answers.marks if self.several else answers.indices
        return find(rows[self.columns[-1].name], classes)

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a class; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        problem = f"{'multi' if self.several else 'single'}_label_classification"
        return loading.load_model(folder, self.auto_model, classes, problem)

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the cross-entropy of each row in nats, shape `(batch,)`, float32."""
        return answers.losses(output, batch, label_smoothing)

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
