"""Perturbed rows, and what is measured on them."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tasks.contract import changeable_columns, metrics_of
from finetune_sweep.train import robustness
from finetune_sweep.train.robustness import BLOCKS, KINDS, STRENGTHS, Robustness

TASK = TASKS["text-classification"]
ROWS: dict[str, list[str]] = {
    "text": [f"sentence number {n} of our small paper is parsed very well by everyone" for n in range(40)],
    "label": ["yes", "no"] * 20,
}


def block(kind: str, strength: str) -> list[str]:
    at = 1 + list(KINDS).index(kind) * len(STRENGTHS) + STRENGTHS.index(strength)
    texts = [str(text) for text in robustness.perturbed(ROWS, ("text",))["text"]]
    return texts[at * 40 : (at + 1) * 40]


def test_rows_stand_in_blocks_with_their_labels_and_the_first_is_clean() -> None:
    found = robustness.perturbed(ROWS, ("text",))
    assert BLOCKS == 16
    assert found["text"][:40] == ROWS["text"]
    assert found["label"] == ROWS["label"] * 16
    assert len(found["text"]) == 640
    assert found == robustness.perturbed(ROWS, ("text",))


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_is_more(kind: str) -> None:
    def changed(texts: list[str]) -> int:
        words = [(new.split(), old.split()) for new, old in zip(texts, ROWS["text"], strict=True)]
        return sum(
            abs(len(new) - len(old)) + sum(a != b for a, b in zip(new, old, strict=False))
            for new, old in words
        )

    counts = [changed(block(kind, strength)) for strength in STRENGTHS]
    assert 0 < counts[0] < counts[1] < counts[2]
    assert KINDS[kind].rates[0] < KINDS[kind].rates[1] < KINDS[kind].rates[2]


def test_each_kind_changes_what_it_says() -> None:
    originals = ROWS["text"]
    assert block("case", "strong") == [text.upper() for text in originals]
    assert [sorted(text.split()) for text in block("word_order", "strong")] == [
        sorted(text.split()) for text in originals
    ]
    lengths = [len(text.split()) for text in originals]
    assert all(len(t.split()) <= n for t, n in zip(block("deletion", "strong"), lengths, strict=True))
    assert all(len(t.split()) > n for t, n in zip(block("punctuation", "weak"), lengths, strict=True))
    assert [len(text.split()) for text in block("typos", "strong")] == lengths


def predictions(right: list[int], rows: int = 2) -> Predictions:
    """Of 2 rows with the labels 0 and 1, in each block so many right."""
    labels = np.tile(np.arange(rows), len(right))
    guesses = np.concatenate(
        [np.where(np.arange(rows) < count, np.arange(rows), 1 - np.arange(rows)) for count in right]
    )
    values = np.eye(2)[guesses] * 4
    return Predictions(values, labels, np.zeros(len(labels), dtype=np.float32))


def test_the_metrics_of_each_block_and_their_mean() -> None:
    # Clean both right; typos 2, 1, 0; all other kinds 2, 2, 1 of 2 right: 0.5 and, four times, 5/6 on average.
    found = robustness.measure(TASK, predictions([2, 2, 1, 0, *[2, 2, 1] * 4]), ("a", "b"))

    assert found.clean["accuracy"] == 1.0
    assert [metrics["accuracy"] for metrics in found.perturbed["typos"]] == [1.0, 0.5, 0.0]
    assert found.drop("accuracy", "typos") == pytest.approx(0.5)
    assert found.drop("accuracy", "case") == pytest.approx(1 / 6)
    assert found.mean("accuracy") == pytest.approx((0.5 + 4 * 5 / 6) / 5)


def test_the_task_of_a_robust_metric_scores_both() -> None:
    task = robustness.task_for("robust_accuracy", TASK)
    assert robustness.task_for("accuracy", TASK) is TASK
    assert task.metrics == metrics_of(TASK)
    assert task.metrics["robust_loss"] == "min"
    assert task.name == TASK.name

    scores = task.score(predictions([2, 2, 1, 0, *[2, 2, 1] * 4]), ("a", "b"))
    assert set(scores) == set(task.metrics)
    assert scores["accuracy"] == 1.0
    assert scores["robust_accuracy"] == pytest.approx((0.5 + 4 * 5 / 6) / 5)
    # Training rows come in no blocks: neither a number of rows that is no multiple, nor labels that do not repeat.
    assert set(task.score(predictions([2, 1]), ("a", "b"))) == set(TASK.metrics)
    mixed = Predictions(
        np.eye(2)[[0, 1] * 16], np.array([0, 1] * 15 + [1, 0]), np.zeros(32, dtype=np.float32)
    )
    assert set(task.score(mixed, ("a", "b"))) == set(TASK.metrics)


def test_the_clean_rows_of_predictions() -> None:
    both = predictions([2, *[0] * 15])
    assert robustness.clean_rows(both).values.tolist() == both.values[:2].tolist()
    alone = predictions([2, 1, 0])
    assert robustness.clean_rows(alone) is alone


def test_a_task_says_which_of_its_texts_may_be_changed() -> None:
    assert changeable_columns(TASK) == ("text", "text_pair")
    assert set(metrics_of(TASK)) == {*TASK.metrics, *(f"robust_{name}" for name in TASK.metrics)}


def test_the_table_of_a_card() -> None:
    perturbed = {kind: ({"accuracy": 0.8}, {"accuracy": 0.7}, {"accuracy": 0.6}) for kind in KINDS}
    head, rows = robustness.table(Robustness({"accuracy": 0.9}, perturbed), "accuracy")
    assert head == ("accuracy (0.9 without)", "weak", "medium", "strong", "mean drop")
    assert rows[0][0] == "typos: 2, 5, 10 % of the letters mistyped"
    assert len(rows) == len(KINDS) + 1
    assert [round(float(str(value)), 6) for value in rows[-1][1:]] == [0.8, 0.7, 0.6, 0.2]
