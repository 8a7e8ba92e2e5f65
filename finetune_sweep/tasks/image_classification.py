"""Image classification: one picture in, one of at least two classes out, or any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_sweep.tasks import pictures, texts
from finetune_sweep.tasks.arrays import Encoded
from finetune_sweep.tasks.choosing import Classification

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.processors import Processor


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
        """Returns what `pictures.equal` returns, and `labels`; `max_length` has no effect.

        Raises:
            UserError: A row has a label that is not among the classes, or the processor makes other values than
                bytes, or pictures of different sizes.
        """
        return Encoded({**pictures.equal(rows["image"], processor), "labels": self.labels(rows, classes)})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:  # noqa: ARG002
        """Returns `pixel_values`, `(batch, channels, height, width)`, float32, and `labels` of these rows, int64."""
        return {
            "pixel_values": pictures.stacked(encoded, rows),
            "labels": texts.taken(encoded, "labels", rows),
        }

    def input_example(self) -> list[str]:
        """Returns a picture of one pixel, in base64."""
        return [pictures.EXAMPLE]
