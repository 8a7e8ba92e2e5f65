from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_sweep.tasks.arrays import IGNORED, Predictions
from finetune_sweep.tasks.entities import Span, score, spans
from finetune_sweep.tasks.token_classification import TokenClassification

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O B-X", [("X", 0, 1), ("X", 3, 3)]),
        ("I-X I-X I-Y", [("X", 0, 1), ("Y", 2, 2)]),  # IOB1: an entity may begin with I
        ("B-X B-X", [("X", 0, 0), ("X", 1, 1)]),
        ("B-X E-X S-Y I-X", [("X", 0, 1), ("Y", 2, 2), ("X", 3, 3)]),
        ("B-X L-X U-X", [("X", 0, 1), ("X", 2, 2)]),
        ("Street Street O City", [("Street", 0, 1), ("City", 3, 3)]),  # plain: neighbours are one
        ("O O", []),
    ],
)
def test_entities_are_those_of_their_tags(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == [Span(*span) for span in expected]


def test_scores_are_those_worked_out_by_hand() -> None:
    right = [["B-X", "I-X", "O", "B-Y"], ["O", "B-X"]]
    said = [["B-X", "O", "O", "B-Y"], ["B-Y", "B-X"]]
    # right: X 0-1, Y 3, X 1; said: X 0, Y 3, Y 0, X 1; both: Y 3 and X 1
    found = score(zip(right, said, strict=True))
    assert found == {"precision": 2 / 4, "recall": 2 / 3, "f1": pytest.approx(4 / 7)}
    assert score([(["O"], ["O"])]) == {"precision": 0, "recall": 0, "f1": 0}


@given(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=12))
def test_scores_are_those_of_sets_of_entities(pairs: list[tuple[str, str]]) -> None:
    right, said = [one for one, _ in pairs], [other for _, other in pairs]
    both = len(set(spans(right)) & set(spans(said)))
    found = score([(right, said)])
    assert found["recall"] == (both / len(spans(right)) if spans(right) else 0)
    assert found["precision"] == (both / len(spans(said)) if spans(said) else 0)


def test_words_without_a_label_do_not_count() -> None:
    labels = np.array([[IGNORED, 1, 2, IGNORED], [IGNORED, 0, IGNORED, IGNORED]])
    values = np.array([[IGNORED, 1, 2, IGNORED], [IGNORED, 1, IGNORED, IGNORED]])
    predictions = Predictions(values, labels, np.zeros(2, dtype=np.float32))
    found = TokenClassification().score(predictions, TAGS)
    # words: 1 2 0 against 1 2 1; entities: X 0-1 found, and an X 0 in the second text that is none
    assert found == pytest.approx(
        {"accuracy": 2 / 3, "precision": 1 / 2, "recall": 1, "f1": 2 / 3, "loss": 0}
    )


def test_batches_of_other_lengths_are_joined_in_the_order_of_their_rows() -> None:
    parts = [
        Predictions(np.array([[3, 4, 5]]), np.array([[3, 4, 5]]), np.array([2.0], dtype=np.float32)),
        Predictions(np.array([[1], [2]]), np.array([[1], [2]]), np.array([0.0, 1.0], dtype=np.float32)),
    ]
    whole = Predictions.join(parts, np.array([2, 0, 1]))
    assert whole.values.tolist() == [[1, IGNORED, IGNORED], [2, IGNORED, IGNORED], [3, 4, 5]]
    assert whole.losses.tolist() == [0, 1, 2]
