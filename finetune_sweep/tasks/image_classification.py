"""Image classification: one picture in, one of at least two classes out, or any number of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading
from finetune_sweep.tasks.contract import Column, Encoded, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.contract import Batch, Mode, Output, Predictions, Processor, Said

_READ_AT_ONCE = 256
_ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@dataclass(frozen=True)
class ImageClassification(Task):
    """`image-classification`, and with `several` `image-tagging`, on the image classifiers of transformers.

    Args:
        several: Whether a picture may have any number of classes, instead of one.
    """

    several: bool = False

    @property
    def name(self) -> str:
        """What a sweep file calls it."""
        return "image-tagging" if self.several else "image-classification"

    @property
    def pipeline(self) -> str:
        """What `transformers.pipeline` calls it."""
        return "image-classification"

    @property
    def auto_model(self) -> str:
        """The class of transformers that loads a model of it."""
        return "AutoModelForImageClassification"

    @property
    def packs(self) -> bool:
        """Pictures have no padding."""
        return False

    @property
    def columns(self) -> tuple[Column, ...]:
        """`image` and `label`, or `labels`."""
        image = Column("image", required=True, description="a path, or the bytes of a file", kind="image")
        if self.several:
            return image, Column("labels", True, "a list of its classes, which may be empty", "labels", True)
        return image, Column("label", True, "its class", "class", target=True)

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

    def encode(
        self,
        rows: Dataset,
        processor: Processor,
        classes: Sequence[str],
        max_length: int,  # noqa: ARG002
    ) -> Encoded:
        """Returns `pixels` of shape `(rows, channels, height, width)`, uint8, and `labels`.

        They are resized and cropped as the model's processor says; what it does to their values is left to
        `collate`, as `scale` and `shift`, `(rows, channels)`. `max_length` has no effect.

        Raises:
            UserError: A row has a label that is not among the classes, or the processor makes other values.
        """
        find = answers.marks if self.several else answers.indices
        labels = find(rows[self.columns[-1].name], classes)
        make = cast("Any", processor)
        channels = len(make.image_mean or (0.0,) * 3)
        parts = []
        for start in range(0, len(rows), _READ_AT_ONCE):
            pictures = [
                _opened(content, channels) for content in rows[start : start + _READ_AT_ONCE]["image"]
            ]
            made = make(pictures, do_rescale=False, do_normalize=False, return_tensors="np")
            parts.append(np.asarray(made["pixel_values"]))
        pixels = np.concatenate(parts)
        if pixels.dtype != np.uint8:
            raise UserError(f"{type(processor).__name__} makes {pixels.dtype} of pixels; uint8 is supported")
        scale, shift = _scaling(make, channels)
        return Encoded(
            {
                "pixels": pixels,
                "scale": np.tile(scale, (len(pixels), 1)),
                "shift": np.tile(shift, (len(pixels), 1)),
                "labels": labels,
            }
        )

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:  # noqa: ARG002
        """Returns `pixel_values`, `(batch, channels, height, width)`, float32, and `labels` of these rows, int64."""
        import torch

        pixels, scale, shift, labels = (
            torch.from_numpy(np.array(cast("NDArray[np.generic]", encoded.columns[name])[rows]))
            for name in ("pixels", "scale", "shift", "labels")
        )
        values = pixels.float() * scale[:, :, None, None] + shift[:, :, None, None]
        return {"pixel_values": values, "labels": labels}

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model with a head of one logit a class; a head of another size is replaced.

        Raises:
            UserError: The folder holds no such model in safetensors, or its body is not all there.
        """
        problem = f"{'multi' if self.several else 'single'}_label_classification"
        return loading.load_model(folder, self.auto_model, classes, problem)

    def losses(self, output: Output, batch: Batch) -> torch.Tensor:
        """Returns the cross-entropy of each row in nats, shape `(batch,)`, float32."""
        return answers.losses(output, batch)

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

    def input_example(self) -> list[str]:
        """Returns a picture of one pixel, in base64."""
        return [_ONE_PIXEL]


def _opened(content: bytes, channels: int) -> Any:  # noqa: ANN401  (a picture of PIL, which is optional to types)
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("L" if channels == 1 else "RGB")


def _scaling(processor: Any, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # noqa: ANN401
    """What the processor does to a value: times the first, plus the second."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean = processor.image_mean if processor.do_normalize else [0.0] * channels
    deviation = processor.image_std if processor.do_normalize else [1.0] * channels
    scale = factor / np.array(deviation, dtype=np.float64)
    return scale.astype(np.float32), (-np.array(mean) / np.array(deviation)).astype(np.float32)
