"""Image classification: one picture in, one of at least two classes out, or any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune_sweep.tasks import pictures, texts
from finetune_sweep.tasks.choosing import Classification
from finetune_sweep.tasks.contract import Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from numpy.typing import NDArray

    from finetune_sweep.tasks.contract import Batch, Processor


@dataclass(frozen=True)
class ImageClassification(Classification):
    """`image-classification`, and with `several` `image-tagging`."""

    of = "image"
    inputs = (pictures.IMAGE,)
    auto_model = "AutoModelForImageClassification"
    packs = False  # pictures have no padding

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
        labels = self.labels(rows, classes)
        pixels = np.stack(list(pictures.resized(rows["image"], processor)))
        return Encoded({"pixels": pixels, **pictures.scaling(processor, len(pixels)), "labels": labels})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:  # noqa: ARG002
        """Returns `pixel_values`, `(batch, channels, height, width)`, float32, and `labels` of these rows, int64."""
        pixels, scale, shift, labels = (
            texts.taken(encoded, name, rows) for name in ("pixels", "scale", "shift", "labels")
        )
        values = pixels.float() * scale[:, :, None, None] + shift[:, :, None, None]
        return {"pixel_values": values, "labels": labels}

    def input_example(self) -> list[str]:
        """Returns a picture of one pixel, in base64."""
        return [pictures.EXAMPLE]
