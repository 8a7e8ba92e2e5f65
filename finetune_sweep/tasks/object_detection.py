"""Object detection: a picture in, boxes out, each with a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

from finetune_sweep.tasks import boxes, loading, pictures, texts
from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks.arrays import IGNORED, Encoded, Said
from finetune_sweep.tasks.contract import Column, Output, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch, Predictions
    from finetune_sweep.tasks.contract import Mode
    from finetune_sweep.tasks.processors import Processor

_METRICS: Final[Mapping[str, Mode]] = {**boxes.FOUND, "loss": "min"}


class Detected(Output, Protocol):
    """What a detector returns."""

    @property
    def pred_boxes(self) -> torch.Tensor:
        """Shape `(batch, said, 4)`: centre, width and height, relative to the picture."""


@dataclass(frozen=True)
class ObjectDetection(Task):
    """The task `object-detection`, on models such as YOLOS, which say always as many boxes, most of nothing."""

    name = "object-detection"
    pipeline = "object-detection"
    auto_model = "AutoModelForObjectDetection"
    packs = False
    evaluation_batch = 1  # as a picture is served: what stands beside a larger one is padded
    columns = (
        pictures.IMAGE,
        Column(
            "boxes",
            True,
            "a list of `label` and `bbox`: left, top, width, height in pixels",
            "boxes",
            target=True,
        ),
    )
    metrics = _METRICS

    def classes(self, train: Dataset) -> tuple[str, ...]:
        """Returns the labels of the training boxes that are no crowds, sorted; whole numbers in their order.

        Raises:
            UserError: There is no box.
        """
        every = (box for of_row in train["boxes"] for box in of_row)
        return answers.ordered((box["label"] for box in every if not box.get("crowd")), fewest=1)

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:  # noqa: ARG002
        """Returns what `collate` makes batches of; `max_length` has no effect.

        Pictures as in `pictures.ragged`, `labels` as in `boxes.labels`, without crowds of a class that is not among
        the classes.

        Raises:
            UserError: A box has a label that is not among the classes, or the processor makes other values than bytes.
        """
        found = [
            [box for box in of if not box.get("crowd") or box["label"] in classes] for of in rows["boxes"]
        ]
        names = [
            answers.indices([box["label"] for box in of], classes, row) for row, of in enumerate(found, 1)
        ]
        sizes = [pictures.size(content) for content in rows["image"]]
        return Encoded(
            {**pictures.ragged(rows["image"], processor), "labels": boxes.labels(found, names, sizes)}
        )

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:  # noqa: ARG002
        """Returns `pixel_values`, `(batch, channels, highest, widest)`, and `labels`, both float32 on the CPU.

        Smaller pictures are padded on the right and below; `labels` are relative to the whole.
        """
        import torch

        values, part = pictures.padded(encoded, rows)
        label, sides, crowd = texts.taken(encoded, "labels", rows).split([1, 4, 1], dim=-1)
        sides = sides.where(label == IGNORED, sides * part[:, None])
        return {"pixel_values": values, "labels": torch.cat([label, sides, crowd], dim=-1)}

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with one logit a class and one for no box; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        return loading.load_model(folder, self.auto_model, classes)

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:  # noqa: ARG002
        """Returns the loss of each picture, shape `(batch,)`, float32; see `boxes.set_losses`."""
        said = cast("Detected", output).pred_boxes
        return boxes.set_losses(output.logits, said, batch["labels"])

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:  # noqa: ARG002
        """Returns the losses alone, values and labels of shape `(batch, 0, 6)`: in training, no boxes are kept."""
        nothing = losses.detach().new_zeros((len(losses), 0, 6))
        return Said(nothing, nothing, losses.detach())

    def respond(self, model: PreTrainedModel, output: Output, batch: Batch, losses: torch.Tensor) -> Said:  # noqa: ARG002
        """Returns what was said and what is right, as `boxes.score` takes it."""
        sides = cast("Detected", output).pred_boxes
        return Said(boxes.as_said(output.logits, sides), boxes.as_right(batch["labels"]), losses)

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns the metrics of a split; of training rows the loss alone. All NaN where anything is not finite."""
        names = self.metrics if predictions.values.shape[1] else ("loss",)
        if not answers.is_finite(predictions):
            return dict.fromkeys(names, float("nan"))
        found = boxes.score(predictions, len(classes)) if "map" in names else {}
        return {**found, "loss": predictions.loss}

    def input_example(self) -> list[str]:
        """Returns a picture of one pixel, in base64."""
        return [pictures.EXAMPLE]
