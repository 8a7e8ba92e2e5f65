"""Copies of training rows: what is changed, what is kept, and what must not come out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from finetune_sweep.settings import Augment, Training
from finetune_sweep.train.augment import Similar
from finetune_sweep.train.copies import Columns, Inputs, with_copies

ROWS: Mapping[str, list[object]] = {
    "text": ["ann saw a good film", "bob saw a bad book", "eve saw a great song"],
    "label": ["praise", "blame", "praise"],
}


def copied(settings: Augment, seed: int = 0, held_out: set[Inputs] | None = None) -> Columns:
    return with_copies(ROWS, ("text",), settings, seed, held_out or set(), lambda _: {})


def test_originals_stand_first_and_labels_are_kept() -> None:
    rows = copied(Augment(deletion=0.5, copies=2))
    assert rows["text"][:3] == ROWS["text"]
    assert rows["label"] == ROWS["label"] * 3
    assert all(
        set(str(new).split()) < set(str(old).split())
        for new, old in zip(rows["text"][3:], [*ROWS["text"]] * 2, strict=True)
    )


def test_copies_follow_from_seed_copy_and_row() -> None:
    once, twice = copied(Augment(swap=0.5)), copied(Augment(swap=0.5, copies=2))
    assert twice["text"][:6] == once["text"]
    assert twice["text"][6:] != once["text"][3:]
    assert copied(Augment(swap=0.5), seed=1)["text"] != once["text"]


def test_no_copy_is_its_original() -> None:
    for seed in range(20):
        rows = copied(Augment(typos=0.02, copies=5), seed)
        assert len(rows["text"]) == len(rows["label"])
        originals = dict(zip(ROWS["text"], ROWS["label"], strict=True))
        assert not set(originals) & set(rows["text"][3:])


def test_no_copy_is_a_row_that_is_held_out() -> None:
    # Of three words, of which one is left out: one of three results is held out, so it is drawn until another comes.
    columns = {"text": ["good old film"], "label": ["praise"]}
    held_out: set[Inputs] = {("good film",), ("old film",), ("good",), ("old",), ("film",)}
    for seed in range(20):
        rows = with_copies(columns, ("text",), Augment(deletion=0.4), seed, held_out, lambda _: {})
        assert rows["text"][1:] in ([], ["good old"])
    # Nothing else can come of it: the copy is left out, with its label.
    rows = with_copies(columns, ("text",), Augment(deletion=0.4), 0, {*held_out, ("good old",)}, lambda _: {})
    assert rows == columns


def test_similar_words_are_asked_for_only_where_they_are_needed() -> None:
    asked: list[set[str]] = []

    def find(words: set[str]) -> Similar:
        asked.append(words)
        return {"good": ("great",), "bad": ("poor",), "great": ("good",)}

    with_copies(ROWS, ("text",), Augment(swap=0.5), 0, set(), find)
    assert not asked
    rows = with_copies(ROWS, ("text",), Augment(replacement=1.0), 0, set(), find)
    assert rows["text"][3:] == ["ann saw a great film", "bob saw a poor book", "eve saw a good song"]
    assert {"ann", "good", "song"} < asked[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"copies": 0, "swap": 0.1},
            "copies 0 adds no row, so that no rate has an effect: raise it, or leave",
        ),
        (
            {"copies": 2},
            "copies 2 without a rate repeats each row unchanged: give one of replacement, insertion,",
        ),
        ({"swap": 0.1, "synonyms": "a.txt"}, "synonyms 'a.txt' is read by replacement and insertion alone"),
        ({"swap": 1.1}, "less than or equal to 1"),
    ],
)
def test_a_setting_without_effect_is_an_error(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Training.model_validate({"augment": given})


def test_a_training_passes_over_rows_and_copies() -> None:
    assert Training().passes == 1
    assert Training(augment=Augment(swap=0.1, copies=2)).passes == 3
