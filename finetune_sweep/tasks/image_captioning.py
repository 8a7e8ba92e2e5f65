"""Image captioning: a picture in, a text about it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from finetune_sweep.tasks import pictures, texts, writing
from finetune_sweep.tasks.arrays import Encoded
from finetune_sweep.tasks.contract import Column
from finetune_sweep.tasks.processors import PictureReader
from finetune_sweep.tasks.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.processors import Processor


@dataclass(frozen=True)
class ImageCaptioning(Writing):
    """The task `image-captioning`, on models that read pictures with one side and write texts with the other."""

    name = "image-captioning"
    pipeline = "image-to-text"  # as hubs call it; transformers 5 has no such pipeline
    auto_model = "AutoModelForImageTextToText"
    columns = (
        pictures.IMAGE,
        Column("text", True, "the text that is to be written about it", target=True, changeable=False),
    )

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:  # noqa: ARG002
        """Returns what `pictures.equal` and `writing.targets` return; a text ends, and is cut after `max_length`.

        Raises:
            UserError: The processor makes other values than bytes, or pictures of different sizes.
        """
        both = cast("PictureReader", processor)
        right = texts.ended(both.tokenizer, rows["text"], max_length)
        return Encoded(
            {**pictures.equal(rows["image"], both.image_processor), **writing.targets(right, max_length)}
        )

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns `pixel_values`, `(batch, channels, height, width)`, float32, and what `writing.collated` returns."""
        return {
            "pixel_values": pictures.stacked(encoded, rows),
            **writing.collated(encoded, rows, self.start, pad_token_id),
        }

    def input_example(self) -> list[str]:
        """Returns a picture of one pixel, in base64."""
        return [pictures.EXAMPLE]
