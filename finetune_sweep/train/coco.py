"""COCO json: pictures, their boxes, and what is in them (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError

Objects = list[dict[str, object]]
"""Of one picture: `label` and `bbox`, which is left, top, width and height in pixels."""


SIDES: Final = ("left", "top", "width", "height")
"""What the numbers of a box are."""


def is_coco(file: Path) -> bool:
    """Whether a json file is an object with `images` and `annotations`."""
    if file.suffix.lower() != ".json":
        return False
    content = file.read_bytes()
    if not content.lstrip().startswith(b"{") or b'"annotations"' not in content or b'"images"' not in content:
        return False
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found.get("images"), list) and isinstance(found.get("annotations"), list)


def read_coco(file: Path) -> dict[str, list[str] | list[Objects]]:
    """Reads the pictures in their order; crowds (`iscrowd: 1`) are left out, as COCO's own evaluation ignores them.

    A picture lies beside the file, in `images` there or one folder up, or in the folder of the split that the
    file's name names (`annotations/instances_train2017.json`, `train2017/`).

    Returns:
        `image` (a path), `boxes` and `origin` (the name of the picture in the file), row by row.

    Raises:
        UserError: A picture is not there, or an annotation names no picture or category of the file, or has no box.
    """
    content = json.loads(file.read_bytes())
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
            if not annotation.get("iscrowd"):
                boxes[picture].append({"label": names[category], "bbox": annotation["bbox"]})
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: is no COCO file: an entry has no {error}") from error
    return {
        "image": [str(_picture(file, name)) for name in pictures.values()],
        "boxes": [boxes[picture] for picture in pictures],
        "origin": list(pictures.values()),
    }


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
            the class under `label`, `category`, `class` or one of these in the plural.

    Returns:
        Mappings of `label` and `bbox`; None if it is something else.
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
        known = ("label", "category", "class", "labels", "categories", "classes")
        label = next((entry[name] for name in known if name in entry), None)
        if box is None or label is None:
            return None
        found.append({"label": label, "bbox": box})
    return found
