"""What is read becomes what the kind of its column says: checked, one message for what is not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import pictures
from finetune_sweep.tasks.contract import Box, Kind
from finetune_sweep.train.coco import SIDES, boxes_of, is_finite
from finetune_sweep.train.source import stored

Cell = str | bytes | float | tuple[str, ...] | tuple[Box, ...] | None
"""A cell of a column of rows. Missing are "", None for what is neither text nor class, and b"" for a picture."""

_SLACK: Final = 1.0
"""Pixels by which a box may reach beyond its picture: annotations are rounded."""


@dataclass(frozen=True)
class Place:
    """Where a cell was found.

    Args:
        where: The file or the data set.
        origin: The row in it, such as `row 3`.
        folder: What the paths of pictures are relative to.
        names: What integers stand for, in a column that carries the names of classes.
    """

    where: str
    origin: str
    folder: Path = Path()
    names: Mapping[object, str] | None = None

    def error(self, message: str) -> UserError:
        """One message with file and row."""
        return UserError(f"{self.where}: {self.origin}: {message}")


def cell(kind: Kind, value: object, place: Place) -> Cell:
    """Makes a cell.

    Raises:
        UserError: The value is none of this kind.
    """
    return _CELLS[kind](value, place)


def _text(value: object, place: Place) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise place.error(f"the text must be text, got {type(value).__name__} {str(value)[:60]}")


def _class(value: object, place: Place) -> str:
    if place.names:
        value = place.names.get(value, value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integers beside missing values arrive as floats
    if isinstance(value, float) and not math.isnan(value):
        raise place.error(f"a label must be a class, got the number {value}")
    if isinstance(value, list | dict):
        raise place.error(f"a label must be one class, got {str(value)[:60]}")
    return _text(value, place)


def _list(value: object, place: Place) -> list[object] | None:
    """A list as it is, or as JSON, which is how a csv file can hold one."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise place.error(f"{str(value)[:60]} is no list in JSON: {error}") from error
    if not isinstance(value, list):
        raise place.error(f"must be a list, got {type(value).__name__} {str(value)[:60]}")
    return value


def _labels(value: object, place: Place) -> tuple[str, ...] | None:
    found = _list(value, place)
    return None if found is None else tuple(sorted(set(_named(found, found, place))))


def _tags(value: object, place: Place) -> tuple[str, ...] | None:
    found = _list(value, place)
    return None if found is None else tuple(_named(found, found, place))


def _named(entries: Sequence[object], cell: object, place: Place) -> list[str]:
    """The classes in a cell, none of which may be missing."""
    names = [_class(entry, place) for entry in entries]
    if "" in names:
        raise place.error(
            f"class {names.index('') + 1} of {len(names)} is missing in {str(cell)[:60]}; each must have a name"
        )
    return names


def _tokens(value: object, place: Place) -> tuple[str, ...]:
    found = _list(value, place) or []
    return tuple(_text(entry, place) for entry in found)


def _number(value: object, place: Place) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if isinstance(value, float) and math.isnan(value):
        return None
    if not math.isfinite(number):
        raise place.error(f"must be a finite number, got {str(value)[:60]!r}")
    return number


def _picture(value: object, place: Place) -> bytes:
    if value is None or value == "":
        return b""
    value = stored(value)
    if isinstance(value, str):
        file = place.folder / value
        try:
            content = file.read_bytes()
        except OSError as error:
            raise place.error(f"the picture {file} cannot be read: {error.strerror}") from error
    elif isinstance(value, bytes):
        content = value
    else:
        raise place.error(f"a picture must be a path or bytes, got {type(value).__name__} {str(value)[:60]}")
    _decode(content, value, place)
    return content


def _decode(content: bytes, value: object, place: Place) -> None:
    """Reads all of a picture: one that was cut off shows it at its end."""
    from PIL import Image

    try:
        pictures.upright(content)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = f" {value}" if isinstance(value, str) else ""
        # PIL's own words name the object that it was given, and its place in memory.
        raise place.error(f"the picture{name} is damaged, or no picture") from error


def _boxes(value: object, place: Place) -> tuple[Box, ...] | None:
    if value is None or value == "":
        return None
    found = boxes_of(value)
    if found is None:
        raise place.error(f"boxes must be a list of {{label, bbox}}, got {str(value)[:60]}")
    boxes = []
    names = _named([entry["label"] for entry in found], value, place)
    for entry, name in zip(found, names, strict=True):
        sides = entry["bbox"]
        if not (isinstance(sides, list) and len(sides) == len(SIDES) and all(map(is_finite, sides))):
            raise place.error(f"a bbox must be left, top, width and height in pixels, got {sides}")
        left, top, width, height = (float(side) for side in sides)
        boxes.append(Box(name, left, top, width, height, entry["crowd"] is True))
    return tuple(boxes)


def check_boxes(boxes: Cell, picture: Cell, place: Place, frame: Sequence[int] | None = None) -> None:
    """Checks that the boxes of a row lie within its picture.

    Args:
        boxes: Of the row.
        picture: Of the row; EXIF data that turn it are obeyed.
        place: Of the row.
        frame: The width and the height that the boxes were drawn for, where the file says so.

    Raises:
        UserError: One has no area, or reaches outside by more than a pixel, or the picture has another size.
    """
    if not picture or not isinstance(picture, bytes) or not isinstance(boxes, tuple):
        return
    width, height = pictures.size(picture)
    if boxes and frame is not None and tuple(frame) != (width, height):
        raise place.error(
            f"its boxes are for {frame[0]} x {frame[1]} pixels, the picture as it is shown, turned as its EXIF data"
            f" say, has {width} x {height}: store the picture for which the boxes are right"
        )
    for box in boxes:
        if not isinstance(box, Box):
            continue
        what = f"the box {box.label!r} at {box.left:g}, {box.top:g} of {box.width:g} x {box.height:g} pixels"
        if box.width <= 0 or box.height <= 0:
            raise place.error(f"{what} has no area")
        ends = (box.left + box.width - width, box.top + box.height - height, -box.left, -box.top)
        if max(ends) > _SLACK:
            raise place.error(f"{what} is outside its picture of {width} x {height}")


_CELLS: Final[Mapping[Kind, Callable[[object, Place], Cell]]] = {
    "text": _text,
    "class": _class,
    "labels": _labels,
    "tokens": _tokens,
    "tags": _tags,
    "number": _number,
    "image": _picture,
    "boxes": _boxes,
}
