from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Clean, Data, Limit, Split
from finetune_sweep.tasks import TASKS
from finetune_sweep.train.data import prepare
from tests.train.sources import Example, examples, prepared, sizes, three_files, write_jsonl


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_test_split_with_hidden_labels_is_replaced(tmp_path: Path, hidden: int | None) -> None:
    labelled: list[Example] = [{"text": f"text {row}", "label": row % 2} for row in range(40)]
    data = three_files(
        tmp_path,
        train=labelled,
        validation=[{"text": f"held out {row}", "label": row % 2} for row in range(6)],
        test=[{"text": f"hidden {row}", "label": hidden} for row in range(6)],
    )
    found = prepared(tmp_path, data)
    assert sizes(found) == {"train": 36, "validation": 6, "test": 4}
    assert found.notes[0] == "test: the labels of the source's 6 rows are hidden, they are not used"
    assert set(found.splits["test"]["text"]) < {str(row["text"]) for row in labelled}


def test_a_test_split_without_a_label_column_is_dropped(tmp_path: Path) -> None:
    data = three_files(
        tmp_path, train=examples(40), validation=examples(6, 50), test=[{"text": "a"}, {"text": "b"}]
    )
    data = data.model_copy(update={"split": Split(test=0)})
    found = prepared(tmp_path, data)
    assert sizes(found) == {"train": 40, "validation": 6}
    assert found.notes[-1] == "test: there is none"


def test_minus_one_may_be_a_class(tmp_path: Path) -> None:
    data = three_files(
        tmp_path,
        train=[{"text": f"text {row}", "label": row % 2 * 2 - 1} for row in range(40)],
        validation=[{"text": f"held out {row}", "label": row % 2 * 2 - 1} for row in range(6)],
        test=[{"text": f"test {row}", "label": -1} for row in range(6)],
    )
    assert sizes(prepared(tmp_path, data)) == {"train": 40, "validation": 6, "test": 6}


def test_a_class_outside_training_is_named(tmp_path: Path) -> None:
    data = three_files(
        tmp_path,
        train=examples(12),
        validation=[*examples(3, 20), {"text": "new", "label": "neutral"}],
        test=examples(3, 30),
    )
    with pytest.raises(
        UserError, match=r"class 'neutral' is in validation \(1 rows\) and not in train, .* neg, pos"
    ):
        prepared(tmp_path, data)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {row}", "label": "pos"} for row in range(40)])
    with pytest.raises(UserError, match="at least two classes"):
        prepared(tmp_path, Data(source="a.jsonl"))


# ----------------------------------------------------------------------------------------------- cleaning


def dirty(tmp_path: Path) -> Data:
    train: list[Example] = [
        {"text": " a ", "label": "pos"},
        {"text": "a", "label": "pos"},
        {"text": "a", "label": "neg"},
        {"text": "  ", "label": "pos"},
        {"text": None, "label": None},
        {"text": "leaked", "label": "pos"},
        {"text": "b", "label": "neg"},
    ]
    held_out: list[Example] = [{"text": "leaked", "label": "pos"}, {"text": "c", "label": "neg"}]
    return three_files(
        tmp_path, train=train, validation=held_out, test=[*held_out[:1], {"text": "d", "label": "neg"}]
    )


def test_cleaning_says_what_it_did(tmp_path: Path) -> None:
    found = prepared(tmp_path, dirty(tmp_path))
    assert found.splits["train"].to_list() == [
        {"text": "a", "label": "pos"},
        {"text": "a", "label": "neg"},
        {"text": "b", "label": "neg"},
    ]
    assert found.report == (
        "train: 2 rows without text dropped",
        "train: 1 exact duplicate dropped",
        "train: 1 text with more than one label kept",
        "train: 1 row dropped, the text stands in validation or test",
        "validation: 1 text kept that test has too",
    )


@pytest.mark.parametrize(
    ("off", "texts"),
    [
        ("strip", [" a ", "a", "a", "b"]),
        ("drop_duplicates", ["a", "a", "a", "b"]),
        ("drop_leaked", ["a", "a", "leaked", "b"]),
    ],
)
def test_each_cleaning_step_can_be_left_out(tmp_path: Path, off: str, texts: list[str]) -> None:
    data = dirty(tmp_path).model_copy(update={"clean": Clean(**{off: False})})
    assert prepared(tmp_path, data).splits["train"]["text"][:] == texts


def test_empty_texts_stay_if_told(tmp_path: Path) -> None:
    rows: list[Example] = [*examples(30), {"text": "", "label": "pos"}]
    data = three_files(tmp_path, train=rows, validation=examples(5, 50), test=examples(5, 60))
    kept = prepared(tmp_path, data.model_copy(update={"clean": Clean(drop_empty=False)}))
    assert kept.splits["train"][-1] == {"text": "", "label": "pos"}


@pytest.mark.parametrize("prompts", [1, 20])
def test_texts_after_the_same_prompt_are_no_leak(tmp_path: Path, prompts: int) -> None:
    rows: list[Example] = [
        {"prompt": f"Write about {row % prompts}.", "text": f"poem {row}"} for row in range(200)
    ]
    leaked: Example = {"prompt": "Write about 0.", "text": "poem 0"}
    data = three_files(
        tmp_path, train=rows, validation=[leaked, {"prompt": "a", "text": "b"}], test=rows[1:3]
    )
    found = prepare(data, TASKS["causal-lm"], tmp_path, tmp_path / "cache")
    assert found.splits["train"]["text"][:] == [f"poem {row}" for row in range(3, 200)]
    assert found.report == ("train: 3 rows dropped, the text stands in validation or test",)


@pytest.mark.parametrize(
    ("task", "optional", "target"),
    [("causal-lm", "prompt", {}), ("text-classification", "text_pair", {"label": "pos"})],
)
def test_an_optional_text_may_be_empty(
    tmp_path: Path, task: str, optional: str, target: dict[str, str]
) -> None:
    rows: list[Example] = [
        {optional: f"given {row}" if row % 2 else " ", "text": f"text {row}", **target} for row in range(10)
    ]
    rows += [{"text": "none", **target}, {optional: "given" if target else "", "text": "", **target}]
    if target:
        rows[0]["label"] = "neg"
    held_out = [{**row, "text": f"other {row['text']}"} for row in rows[:4]]
    data = three_files(tmp_path, train=rows, validation=held_out[:2], test=held_out[2:])
    found = prepare(data, TASKS[task], tmp_path, tmp_path / "cache")
    assert found.splits["train"]["text"][:] == [*(f"text {row}" for row in range(10)), "none"]
    assert found.report == ("train: 1 row without text dropped",)


# ---------------------------------------------------------------------------------------- splits, limits


def test_missing_splits_are_cut_in_the_proportions_of_the_classes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", examples(300))
    found = prepared(tmp_path, Data(source="a.jsonl"))
    counts = {split: Counter(rows["label"]) for split, rows in found.splits.items()}
    assert counts == {
        "train": {"neg": 160, "pos": 80},
        "validation": {"neg": 20, "pos": 10},
        "test": {"neg": 20, "pos": 10},
    }
    texts = [text for rows in found.splits.values() for text in rows["text"]]
    assert sorted(texts) == sorted(str(row["text"]) for row in examples(300))
    assert found.notes == (
        "test: 30 of 300 training rows, stratified by label, seed 0",
        "validation: 30 of 300 training rows, stratified by label, seed 0",
    )


def test_another_seed_cuts_other_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", examples(100))
    first = prepared(tmp_path, Data(source="a.jsonl"))
    second = prepared(tmp_path, Data(source="a.jsonl", split=Split(seed=1)))
    assert sizes(first) == sizes(second)
    assert set(first.splits["validation"]["text"]) != set(second.splits["validation"]["text"])


def test_a_rare_class_stays_in_training(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*examples(100), {"text": "rare", "label": "once"}])
    found = prepared(tmp_path, Data(source="a.jsonl"))
    assert "once" in found.splits["train"]["label"]


def test_no_group_is_in_two_splits(tmp_path: Path) -> None:
    rows: list[Example] = [{**row, "doc": f"doc {place // 7}"} for place, row in enumerate(examples(210))]
    write_jsonl(tmp_path / "a.jsonl", rows)
    found = prepared(tmp_path, Data(source="a.jsonl", split=Split(group_by="doc")))
    doc_of = {row["text"]: row["doc"] for row in rows}
    docs = {split: {doc_of[text] for text in part["text"]} for split, part in found.splits.items()}
    assert sum(len(part) for part in docs.values()) == 30
    assert sizes(found) == {"train": 168, "validation": 21, "test": 21}
    assert found.splits["train"].column_names == ["text", "label"]


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{**row, "doc": 1} for row in examples(40)])
    with pytest.raises(UserError, match="1 groups of 40 rows cannot be split"):
        prepared(tmp_path, Data(source="a.jsonl", split=Split(group_by="doc")))


def test_a_split_too_small_to_cut_says_what_to_do(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", examples(12))
    with pytest.raises(UserError, match=r"split\.test 0\.1 of 12 rows is 1, .* or set it to 0"):
        prepared(tmp_path, Data(source="a.jsonl"))


def test_limits_keep_the_proportions_and_the_order(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(90), validation=examples(30, 100), test=examples(30, 200))
    found = prepared(tmp_path, data.model_copy(update={"limit": Limit(train=30, validation=9)}))
    assert sizes(found) == {"train": 30, "validation": 9, "test": 30}
    assert Counter(found.splits["train"]["label"]) == {"neg": 20, "pos": 10}
    numbers = [int(text.split()[1]) for text in found.splits["train"]["text"]]
    assert numbers == sorted(numbers)
    assert "train: limited to 30 of 90 rows, seed 0" in found.report
