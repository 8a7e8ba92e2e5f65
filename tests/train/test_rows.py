from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data
from tests.train.sources import examples, prepared, write_jsonl


def test_columns_take_their_names_from_the_task(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"sentence": row["text"], "aspect": row["label"]} for row in examples(30)]
    )
    found = prepared(tmp_path, Data(source="a.jsonl", columns={"text": "sentence", "label": "aspect"}))
    assert found.splits["train"].column_names == ["text", "label"]


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", examples(30))
    with pytest.raises(
        UserError, match=r"a\.jsonl: has no column 'txet', it has text, label \(did you mean 'text'"
    ):
        prepared(tmp_path, Data(source="a.jsonl", columns={"text": "txet"}))


def test_a_column_that_the_task_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'lable' is no column of text-classification, .*did you mean 'label'"
    ):
        prepared(tmp_path, Data(source="a.jsonl", columns={"lable": "x"}))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ((2, 10), ("2", "10")),
        ((True, False), ("false", "true")),
        ((0.0, 1.0), ("0", "1")),
        (("b", "a"), ("a", "b")),
    ],
)
def test_labels_may_be_of_many_kinds(
    tmp_path: Path, labels: tuple[object, object], classes: tuple[str, str]
) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"text": f"text {row}", "label": labels[row % 2]} for row in range(40)]
    )
    assert prepared(tmp_path, Data(source="a.jsonl")).classes == classes


def test_class_names_that_a_file_carries_are_kept(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"text {row}", "label": row % 2} for row in range(40)]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert prepared(tmp_path, Data(source="a.parquet")).classes == ("neg", "pos")


def test_a_number_is_no_class(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {row}", "label": row / 4} for row in range(40)])
    with pytest.raises(UserError, match=r"row 2: a label must be a class, got the number 0\.25"):
        prepared(tmp_path, Data(source="a.jsonl"))


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_missing_label_is_named_with_file_and_row(tmp_path: Path, missing: str | None) -> None:
    rows = examples(30)
    rows[6]["label"] = missing
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"a\.jsonl: row 7 of train has no label"):
        prepared(tmp_path, Data(source="a.jsonl"))
