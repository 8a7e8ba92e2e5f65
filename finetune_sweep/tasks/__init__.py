"""The tasks, by the name that a sweep file gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from finetune_sweep.tasks.causal_lm import CausalLM
from finetune_sweep.tasks.image_captioning import ImageCaptioning
from finetune_sweep.tasks.image_classification import ImageClassification
from finetune_sweep.tasks.object_detection import ObjectDetection
from finetune_sweep.tasks.text_classification import TextClassification
from finetune_sweep.tasks.text_regression import TextRegression
from finetune_sweep.tasks.text_to_text import TextToText
from finetune_sweep.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_sweep.tasks.contract import Task

TASKS: Final[Mapping[str, Task]] = {
    "text-classification": TextClassification(),
    "text-tagging": TextClassification(several=True),
    "text-regression": TextRegression(),
    "token-classification": TokenClassification(),
    "text-to-text": TextToText(),
    "causal-lm": CausalLM(),
    "image-classification": ImageClassification(),
    "image-tagging": ImageClassification(several=True),
    "image-captioning": ImageCaptioning(),
    "object-detection": ObjectDetection(),
}
"""A new task is one file, one line here, and one row in the documents."""
