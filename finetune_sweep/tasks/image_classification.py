"""Image classification: one picture in, one of at least two classes out, or any number of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from finetune_sweep.errors import UserError
from finetune_sweep.tasks.choosing import Classification
from finetune_sweep.tasks.contract import Column, Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from numpy.typing import NDArray

    from finetune_sweep.tasks.contract import Batch, Processor

_READ_AT_ONCE = 256
_ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@dataclass(frozen=True)
class ImageClassification(Classification):
    """`image-classification`, and with `several` `image-tagging`."""

    of = "image"
    inputs = (Column("image", required=True, description="a path, or the bytes of a file", kind="image"),)
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
