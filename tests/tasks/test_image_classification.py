from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tasks.classes import score_several
from finetune_sweep.tasks.loading import load_processor
from tests.tasks.models import picture, tiny_vit

TASK = TASKS["image-classification"]


def test_pixels_are_those_of_the_models_own_processor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for size in ((8, 8), (20, 11)):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(content, "png")
        pictures.append(content.getvalue())
    processor: Any = load_processor(tiny_vit(tmp_path), TASK)
    rows = Dataset.from_dict({"image": [*pictures, picture(9)], "label": ["a", "b", "a"]})
    encoded = TASK.encode(rows, processor, ("a", "b"), 16)
    found = TASK.collate(encoded, np.array([1, 0, 2]), 0)
    opened = [Image.open(io.BytesIO(rows["image"][row])).convert("RGB") for row in (1, 0, 2)]
    expected = processor(opened, return_tensors="pt")["pixel_values"]
    assert torch.allclose(found["pixel_values"], expected, atol=1e-5)
    assert found["labels"].tolist() == [1, 0, 0]


def test_pixels_are_kept_as_bytes(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": [picture(1), picture(2)], "label": ["a", "b"]})
    encoded = TASK.encode(rows, load_processor(tiny_vit(tmp_path), TASK), ("a", "b"), 16)
    pixels = encoded.columns["pixels"]
    assert isinstance(pixels, np.ndarray)
    assert (str(pixels.dtype), pixels.shape) == ("uint8", (2, 3, 8, 8))


def test_metrics_of_several_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 3)).astype(np.float32)
    labels = rng.integers(0, 2, size=(40, 3))
    found = score_several(Predictions(logits, labels, np.ones(40, dtype=np.float32)))
    assert found["micro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="macro"))
    assert found["average_precision"] == pytest.approx(average_precision_score(labels, logits))


def test_metrics_of_several_classes_are_those_worked_out_by_hand() -> None:
    logits = np.array([[2, -1, -1], [1, 1, -1], [-1, 1, -1]], dtype=np.float32)
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    # class 0: right 1, too many 1, missed 1: F1 1/2; class 1: both right: 1; class 2 does not occur
    # in order of the logits class 0 is right, wrong, right: average precision (1 + 2/3) / 2
    found = score_several(Predictions(logits, labels, np.zeros(3, dtype=np.float32)))
    assert found == pytest.approx(
        {"micro_f1": 6 / 8, "macro_f1": 3 / 4, "exact_match": 1 / 3, "average_precision": 11 / 12, "loss": 0}
    )
