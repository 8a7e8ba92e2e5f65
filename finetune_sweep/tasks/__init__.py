"""The tasks, by the name that a sweep file gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from finetune_sweep.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_sweep.tasks.contract import Task

TASKS: Final[Mapping[str, Task]] = {
    "text-classification": TextClassification(),
}
"""A new task is one file, one line here, and one row in the documents."""
