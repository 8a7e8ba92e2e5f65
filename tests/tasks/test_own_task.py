"""The task of the walk-through in docs/tasks.md, on the suite that every task passes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from datasets import Dataset

from finetune_sweep.tasks.contract import Task
from tests.tasks import test_contract as suite
from tests.tasks.models import CASES, Case, tiny_bert

DOCUMENTED = Path(__file__).resolve().parent.parent.parent / "docs" / "own_task.py"


@pytest.fixture
def made(tmp_path: Path) -> suite.Made:
    spec = importlib.util.spec_from_file_location("own_task", DOCUMENTED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task: Task = module.TextCounts()
    texts = CASES["text-classification"].train["text"]
    rows = Dataset.from_dict({"text": texts, "count": [float(text.count("a")) for text in texts]})
    return suite.Made(task, Case(tiny_bert, rows), tmp_path)


def test_what_is_documented_keeps_the_contract(made: suite.Made, tmp_path: Path) -> None:
    suite.test_one_column_is_the_target_and_it_is_the_last(made)
    suite.test_a_batch_has_its_rows_on_the_first_axis_and_fits_the_model(made)
    suite.test_what_a_batch_holds_of_a_row_does_not_depend_on_the_others(made)
    suite.test_the_loss_falls_in_twenty_steps(made)
    suite.test_a_resumed_training_equals_an_uninterrupted_one(made)
    suite.test_perfect_predictions_have_perfect_metrics(made)
    suite.test_what_is_not_finite_scores_nan_in_everything(made)
    suite.test_predictions_and_encoded_rows_are_read_back(made, tmp_path)
    suite.test_a_saved_model_says_the_same_and_serves_a_pipeline(made, tmp_path)


def test_what_is_documented_stands_in_the_document() -> None:
    document = (DOCUMENTED.parent / "tasks.md").read_text(encoding="utf-8")
    assert DOCUMENTED.read_text(encoding="utf-8") in document
