"""COCO json: pictures, their boxes, and what is in them (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError

Objects = list[dict[str, object]]
"""Of one picture: `label`, `bbox`, which is left, top, width and height in pixels, and `iscrowd`."""

Frame = tuple[int, int]
"""The width and the height of a picture, in pixels."""

SIDES: Final = ("left", "top", "width", "height")
"""What the numbers of a box are."""
LABELS: Final = ("label", "category", "class", "labels", "categories", "classes")
"""Under which of these names the class of a box may stand, the first one that there is."""


def is_coco(file: Path) -> bool:
    """Whether a json file is an object with `images`, and `annotations` or else a `file_name` for each image."""
    if file.suffix.lower() != ".json":
        return False
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content.lstrip().startswith(b"{") or b'"images"' not in content:
        return False
    try:
        found = json.loads(content)
    except ValueError:
        return False
    images = found.get("images")
    if "annotations" in found or not images:
        return isinstance(images, list) and isinstance(found.get("annotations"), list)
    return isinstance(images, list) and all(isinstance(each, dict) and "file_name" in each for each in images)


def read_coco(file: Path) -> dict[str, list[str] | list[Objects] | list[Frame | None]]:
    """Reads the pictures in their order.

    A picture lies beside the file, in `images` there or one folder up, or in the folder of the split that the
    file's name names (`annotations/instances_train2017.json`, `train2017/`).

    Returns:
        `image` (a path), `boxes`, `origin` (the name of the picture in the file) and `frame`, row by row.

    Raises:
        UserError: There are no annotations, a picture is not there, or an annotation names no picture or category of
            the file, or has no box.
    """
    content = json.loads(file.read_bytes())  # with or without a byte order mark
    if "annotations" not in content:
        raise UserError(
            f"{file}: has pictures and no `annotations`, so there are no boxes to learn or to measure by:"
            " leave it out, or name a file that has them"
        )
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        pictures: dict[object, str] = {image["id"]: str(image["file_name"]) for image in content["images"]}
        boxes: dict[object, Objects] = {picture: [] for picture in pictures}
        for number, annotation in enumerate(content["annotations"], 1):
            _check(annotation, f"{file}: annotation {number}")
            picture, category = annotation["image_id"], annotation["category_id"]
            if picture not in pictures or category not in names:
                raise UserError(
                    f"{file}: annotation {number}: its image_id {picture} or its category_id {category}"
                    " is none of the file's"
                )
            crowd = int(bool(annotation.get("iscrowd", 0)))
            boxes[picture].append(
                {"label": names[category], "bbox": annotation.get("bbox", 0), "iscrowd": crowd}
            )
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: is no COCO file: an entry has no {error}") from error
    return {
        "image": [str(_picture(file, name)) for name in pictures.values()],
        "boxes": [boxes[picture] for picture in pictures],
        "origin": list(pictures.values()),
        "frame": list({image["id"]: _frame(image) for image in content["images"]}.values()),
    }


def _frame(image: Mapping[str, object]) -> Frame | None:
    """The width and the height of a picture, if the file has both."""
    match image.get("width"), image.get("height"):
        case (int(width), int(height)) if width > 0 and height > 0:
            return width, height
        case _:
            return None


def _check(annotation: object, place: str) -> None:
    """Refuses an annotation without its entries, or whose box is not of numbers."""
    if not isinstance(annotation, dict):
        raise UserError(f"{place}: must have image_id, category_id and bbox, got {str(annotation)[:60]}")
    for name in ("image_id", "category_id", "bbox"):
        if name not in annotation:
            raise UserError(f"{place}: has no {name}")
        if name != "bbox" and not isinstance(annotation[name], int | str):
            raise UserError(f"{place}: {name} must be a number, got {str(annotation[name])[:60]}")
    box = annotation["bbox"]
    if not (isinstance(box, list) and len(box) == len(SIDES) and all(map(is_finite, box))):
        raise UserError(f"{place}: a bbox must be left, top, width and height in pixels, got {str(box)[:60]}")


def is_finite(value: object) -> bool:
    """Whether a value is a number, and neither infinite nor not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _picture(file: Path, name: str) -> Path:
    places = list(_places(file))
    for place in places:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{file}: the picture {name} is in none of {', '.join(str(place) for place in places)}")


def _places(file: Path) -> Iterator[Path]:
    folder = file.parent
    yield from (folder, folder / "images", folder.parent / "images")
    named = file.stem.rpartition("_")[2]
    yield from (folder / named, folder.parent / named, folder.parent / "images" / named)


def boxes_of(value: object) -> list[Mapping[str, object]] | None:
    """Brings the ways in which boxes are written into one.

    Args:
        value: A list of mappings, or a mapping of lists as `datasets` keeps them; the box under `bbox` or `box`,
            the class under one of `LABELS`; `iscrowd` is 1 or true for a crowd.

    Returns:
        Mappings of `label`, `bbox` and `crowd`; None if it is something else.
    """
    if isinstance(value, dict):
        columns = {name: cells for name, cells in value.items() if isinstance(cells, list)}
        lengths = {len(cells) for cells in columns.values()}
        if len(lengths) > 1:
            return None
        value = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not isinstance(value, list):
        return None
    found: list[Mapping[str, object]] = []
    for entry in value:
        if not isinstance(entry, dict):
            return None
        box = next((entry[name] for name in ("bbox", "box", "bboxes", "boxes") if name in entry), None)
        label = next((entry[name] for name in LABELS if name in entry), None)
        if box is None or label is None:
            return None
        found.append({"label": label, "bbox": box, "crowd": entry.get("iscrowd") == 1})
    return found
