"""Pictures as the inputs of a model: resized once by its processor, kept as bytes, brought to its scale in a batch."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import texts
from finetune_sweep.tasks.arrays import Ragged
from finetune_sweep.tasks.contract import Column

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from finetune_sweep.tasks.arrays import Encoded
    from finetune_sweep.tasks.processors import Processor

IMAGE: Final = Column("image", required=True, description="a path, or the bytes of a file", kind="image")
EXAMPLE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A picture of one pixel, in base64."""
_READ_AT_ONCE: Final = 256


def resized(contents: Sequence[bytes], processor: Processor) -> Iterator[NDArray[np.uint8]]:
    """Resizes and crops pictures as the model's processor says; what it does to their values is left to `scaling`.

    Returns:
        Each of shape `(channels, height, width)`; without padding, so perhaps of different sizes.

    Raises:
        UserError: The processor makes other values than bytes.
    """
    make = cast("Any", processor)
    for start in range(0, len(contents), _READ_AT_ONCE):
        opened = [_opened(content, channels(make)) for content in contents[start : start + _READ_AT_ONCE]]
        made = make(opened, do_rescale=False, do_normalize=False, do_pad=False)
        for pixels in map(np.asarray, made["pixel_values"]):
            if pixels.dtype != np.uint8:
                raise UserError(
                    f"{type(processor).__name__} makes {pixels.dtype} of pixels; uint8 is supported"
                )
            yield pixels


def _opened(content: bytes, count: int) -> Image.Image:
    return upright(content).convert("L" if count == 1 else "RGB")


def upright(content: bytes) -> Image.Image:
    """Reads all of a picture, turned as its EXIF data say: so pipelines of transformers open it, and so it is shown.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: It is damaged, or no picture.
    """
    from PIL import Image

    turns = Image.Transpose
    turn = (
        turns.FLIP_LEFT_RIGHT,
        turns.ROTATE_180,
        turns.FLIP_TOP_BOTTOM,
        turns.TRANSPOSE,
        turns.ROTATE_270,
        turns.TRANSVERSE,
        turns.ROTATE_90,
    )
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        orientation = _orientation(picture)
        return picture.transpose(turn[orientation - 2]) if 2 <= orientation <= 8 else picture.copy()


def _orientation(picture: Image.Image) -> int:
    """What the EXIF data say, from 1 for upright to 8; 1 where they are none, or damaged."""
    from PIL import ExifTags

    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return 1


def size(content: bytes) -> tuple[int, int]:
    """Returns the width and the height of a picture as `upright` returns it, in pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        if _orientation(picture) == 1:
            return picture.size  # without reading all of it
    return upright(content).size


def equal(contents: Sequence[bytes], processor: Processor) -> dict[str, NDArray[np.generic] | Ragged]:
    """Resizes pictures that become of one size.

    Returns:
        `pixels` of shape `(rows, channels, height, width)`, uint8; what the processor does to their values is left to
        `stacked`, as `scale` and `shift`, `(rows, channels)`.

    Raises:
        UserError: The processor makes other values than bytes, or pictures of different sizes.
    """
    parts = list(resized(contents, processor))
    sizes = sorted({part.shape[1:] for part in parts})
    if len(sizes) > 1:
        shown = " and ".join(f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
        raise UserError(
            f"{type(processor).__name__} makes pictures of different sizes, as {shown}; its `size` must be"
            " a height and a width, or it must crop"
        )
    return {"pixels": np.stack(parts), **scaling(processor, len(parts))}


def stacked(encoded: Encoded, rows: NDArray[np.int64]) -> torch.Tensor:
    """Makes a batch of what `equal` returned: shape `(batch, channels, height, width)`, float32, on the CPU."""
    pixels, scale, shift = (texts.taken(encoded, name, rows) for name in ("pixels", "scale", "shift"))
    return pixels.float() * scale[:, :, None, None] + shift[:, :, None, None]


def ragged(contents: Sequence[bytes], processor: Processor) -> dict[str, NDArray[np.generic] | Ragged]:
    """Resizes pictures that may become of different sizes.

    Returns:
        `pixels`, all of a picture's, uint8; its shape as `size`, `(rows, 3)`; and what `scaling` returns.

    Raises:
        UserError: The processor makes other values than bytes.
    """
    parts = list(resized(contents, processor))
    offsets = np.cumsum([0, *(part.size for part in parts)], dtype=np.int64)
    return {
        "pixels": Ragged(np.concatenate([part.ravel() for part in parts]), offsets),
        "size": np.array([part.shape for part in parts], dtype=np.int64),
        **scaling(processor, len(parts)),
    }


def padded(encoded: Encoded, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes a batch of what `ragged` returned, with 0 on the right and below of smaller pictures.

    Returns:
        Shape `(batch, channels, highest, widest)`, float32; and how much of width, height, width and height each
        picture takes, `(batch, 4)`.
    """
    import torch

    scale, shift, shape = (texts.taken(encoded, name, rows) for name in ("scale", "shift", "size"))
    count, height, width = shape.amax(dim=0).tolist()
    values = torch.zeros((len(rows), count, height, width))
    for place, row in enumerate(rows):
        whole = torch.from_numpy(np.array(encoded.columns["pixels"][int(row)])).reshape(shape[place].tolist())
        scaled = whole.float() * scale[place, :, None, None] + shift[place, :, None, None]
        values[place, :, : whole.shape[1], : whole.shape[2]] = scaled
    return values, torch.stack([shape[:, 2] / width, shape[:, 1] / height], dim=1).repeat(1, 2)


def channels(processor: Processor) -> int:
    """How many values a pixel has: 1 for grey pictures, or 3."""
    return len(cast("Any", processor).image_mean or (0.0,) * 3)


def scaling(processor: Processor, rows: int) -> dict[str, NDArray[np.float32]]:
    """What the processor does to a value: times `scale`, plus `shift`, each `(rows, channels)`."""
    made, count = cast("Any", processor), channels(processor)
    factor = made.rescale_factor if made.do_rescale else 1.0
    mean = made.image_mean if made.do_normalize else [0.0] * count
    deviation = np.array(made.image_std if made.do_normalize else [1.0] * count, dtype=np.float64)
    both = {"scale": factor / deviation, "shift": -np.array(mean) / deviation}
    return {name: np.tile(values.astype(np.float32), (rows, 1)) for name, values in both.items()}
