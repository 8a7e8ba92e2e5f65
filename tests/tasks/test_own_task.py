"""The task of the walk-through in docs/tasks.md, on the suite that every task passes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
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


def _checks() -> dict[str, Callable[..., None]]:
    """The checks of the suite that are for every task: those of some tasks alone are parametrized with them."""
    return {
        name: check
        for name, check in vars(suite).items()
        if name.startswith("test_")
        and "made" in inspect.signature(check).parameters
        and not hasattr(check, "pytestmark")
    }


def test_there_are_checks() -> None:
    assert len(_checks()) >= 12


@pytest.mark.parametrize("name", _checks())
def test_what_is_documented_keeps_the_contract(name: str, made: suite.Made, tmp_path: Path) -> None:
    check = _checks()[name]
    given = {"made": made, "tmp_path": tmp_path}
    check(**{parameter: given[parameter] for parameter in inspect.signature(check).parameters})


def test_what_is_documented_stands_in_the_document() -> None:
    document = (DOCUMENTED.parent / "tasks.md").read_text(encoding="utf-8")
    assert DOCUMENTED.read_text(encoding="utf-8") in document
