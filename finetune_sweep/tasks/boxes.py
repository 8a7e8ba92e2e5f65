"""Boxes in pictures: how far a set of them is from the right one, and how well a data set's are found.

A box is what it shows and four sides, relative to the width and the height of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.tasks.arrays import IGNORED

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Predictions
    from finetune_sweep.tasks.contract import Mode

FOUND: Final[Mapping[str, Mode]] = {"map": "max", "map50": "max", "map75": "max", "recall": "max"}
"""The metrics of `score`."""
_OF_DISTANCE, _OF_OVERLAP, _OF_NOTHING = (
    5.0,
    2.0,
    0.1,
)  # Carion et al. 2020, as in transformers' configurations


def labels(
    found: Sequence[Sequence[Mapping[str, float]]],
    classes: Sequence[NDArray[np.int64]],
    sizes: Sequence[tuple[int, int]],
) -> NDArray[np.float32]:
    """Returns the boxes of pictures, shape `(rows, most, 6)`: class, centre, width, height, and 1 for a crowd, else 0.

    Sides are relative to the picture, and what reaches beyond it is cut off; `IGNORED` after the last one.

    Args:
        found: Of each picture, boxes as `Box` names their sides, in pixels.
        classes: Of each picture, the place of each box's class among the classes.
        sizes: Of each picture, width and height.
    """
    filled = np.full((len(found), max(map(len, found)), 6), IGNORED, dtype=np.float32)
    for row, (boxes, of_row, whole) in enumerate(zip(found, classes, sizes, strict=True)):
        for place, (box, label) in enumerate(zip(boxes, of_row, strict=True)):
            start = np.array([box["left"], box["top"]])
            ends = np.stack([start, start + np.array([box["width"], box["height"]])]) / whole
            first, last = ends.clip(0.0, 1.0)
            filled[row, place] = [label, *(first + last) / 2, *(last - first), bool(box.get("crowd"))]
    return filled


def set_losses(logits: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the loss of each picture, shape `(batch,)`, float32: that of DETR (Carion et al. 2020).

    Each right box is matched with one that was said, so that the sum of their costs is least. The loss is the mean
    cross-entropy of all that was said, where what is matched with no box counts a tenth; and for each right box 5 times
    the distance of centre and size, and 2 times what generalised overlap lacks to 1. NaN in all where anything said is
    not finite.

    Args:
        logits: Shape `(batch, said, classes + 1)`, the last one for no box.
        boxes: Shape `(batch, said, 4)`: centre, width and height.
        labels: Shape `(batch, most, 6)`: the class, the same, and 0; 1 for a crowd, which has no part in this;
            `IGNORED` after the last box of a picture.
    """
    import torch
    from torch.nn import functional
    from transformers.loss import loss_for_object_detection as detr

    logits, boxes = logits.float(), boxes.float()
    if not (logits.isfinite().all() and boxes.isfinite().all()):
        return logits.sum(dim=(1, 2)) * float("nan")
    row, said, right = _matched(logits, boxes, labels)
    nothing = logits.shape[-1] - 1
    classes = logits.new_full(logits.shape[:2], nothing, dtype=torch.int64)
    classes[row, said] = right[:, 0].long()
    weights = torch.where(classes == nothing, _OF_NOTHING, 1.0)
    entropy = functional.cross_entropy(logits.transpose(1, 2), classes, reduction="none")
    pairs = boxes[row, said], right[:, 1:5]
    both = [corners(side) for side in pairs]
    overlap = detr.generalized_box_iou(*both).diagonal()  # type: ignore[no-untyped-call]  # transformers'
    distance = (pairs[0] - pairs[1]).abs().sum(dim=1)
    of_boxes = logits.new_zeros(len(logits))
    of_boxes = of_boxes.index_add(0, row, _OF_DISTANCE * distance + _OF_OVERLAP * (1 - overlap))
    count = (labels[..., 5] == 0).sum(dim=1).clamp(min=1)
    return (entropy * weights).sum(dim=1) / weights.sum(dim=1) + of_boxes / count


def _matched(
    logits: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs right boxes with said ones: of each pair the row, the place of what was said, and what is right."""
    import torch
    from transformers.loss import loss_for_object_detection as detr

    present = [of_row[of_row[:, 5] == 0] for of_row in labels]
    targets = [{"class_labels": of_row[:, 0].long(), "boxes": of_row[:, 1:5]} for of_row in present]
    matcher = detr.HungarianMatcher(1.0, _OF_DISTANCE, _OF_OVERLAP)
    pairs = matcher({"logits": logits.detach(), "pred_boxes": boxes.detach()}, targets)
    row = torch.cat([torch.full_like(said, place) for place, (said, _) in enumerate(pairs)])
    said = torch.cat([said for said, _ in pairs])
    chosen = zip(present, pairs, strict=True)
    right = torch.cat([of_row[places.to(of_row.device)] for of_row, (_, places) in chosen])
    return row.to(logits.device), said.to(logits.device), right


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """From centre, width and height to left, top, right and bottom, in the last axis."""
    import torch

    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def as_said(logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Returns what was said as `score` takes it, shape `(batch, said, 6)`.

    Args:
        logits: Shape `(batch, said, classes + 1)`, the last one for no box.
        boxes: Shape `(batch, said, 4)`: centre, width and height.
    """
    import torch

    chance, label = logits.float().softmax(dim=-1)[..., :-1].max(dim=-1)
    return torch.cat([label[..., None], chance[..., None], corners(boxes.float())], dim=-1)


def as_right(labels: torch.Tensor) -> torch.Tensor:
    """Returns what is right as `score` takes it, shape `(batch, most, 6)`; `labels` are as in `set_losses`.

    The score of a right box is 1, that of a crowd 0.
    """
    import torch

    known = labels[..., :1] != IGNORED
    right = torch.cat([labels[..., :1], 1 - labels[..., 5:], corners(labels[..., 1:5])], dim=-1)
    return right.masked_fill(~known, IGNORED)


def score(predictions: Predictions, classes: int) -> dict[str, float]:
    """Returns the metrics of COCO's evaluation (Lin et al. 2014); 0 where there is no right box at all.

    map: The mean, over the classes that there are and over overlaps of 0.5 to 0.95, of average precision.
    map50, map75: At an overlap of 0.5, or 0.75, alone.
    recall: The mean, over classes and overlaps, of the part of the right boxes that are found.

    At most 100 boxes of a class count in a picture, those with the highest scores. Overlap is the intersection over the
    union. A box that matches no right one does not count if enough of it lies in a crowd of its class, by the same
    threshold.

    Args:
        predictions: Values and labels of shape `(rows, most, 6)`: class, score, left, top, right, bottom; `IGNORED`
            after the last box of a row. A label with the score 0 is a crowd.
        classes: How many there are.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    right, said = (_annotations(np.asarray(part)) for part in (predictions.labels, predictions.values))
    right = [box | {"iscrowd": int(box["score"] == 0)} for box in right]
    if all(box["iscrowd"] for box in right):
        return dict.fromkeys(FOUND, 0.0)
    frame = {
        "images": [{"id": row, "width": 1, "height": 1} for row in range(1, len(predictions) + 1)],
        "categories": [{"id": place, "name": str(place)} for place in range(classes)],
    }
    evaluation = COCOeval_faster(
        COCO({**frame, "annotations": right}), COCO({**frame, "annotations": said}), "bbox"
    )
    evaluation.params.areaRng, evaluation.params.areaRngLbl = (
        [[0.0, 1e10]],
        ["all"],
    )  # sizes are relative here
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][
        ..., 0, 0
    ]  # by overlap, recall and class; -1 for a class without boxes
    known = precision[0, 0] > -1
    of_overlap = precision[:, :, known].mean(axis=(1, 2))
    return {
        "map": float(of_overlap.mean()),
        "map50": float(of_overlap[0]),
        "map75": float(of_overlap[5]),
        "recall": float(evaluation.eval["recall"][:, known, 0, 0].mean()),
    }


def _annotations(rows: NDArray[np.generic]) -> list[dict[str, object]]:
    """The boxes as entries of a COCO file."""
    found: list[dict[str, object]] = []
    for row, of_row in enumerate(rows.astype(np.float64), 1):
        for label, chance, left, top, to_right, bottom in of_row[of_row[:, 0] != IGNORED].tolist():
            width, height = to_right - left, bottom - top
            place = {"id": len(found) + 1, "image_id": row, "category_id": int(label), "iscrowd": 0}
            found.append(
                place | {"bbox": [left, top, width, height], "area": width * height, "score": chance}
            )
    return found
