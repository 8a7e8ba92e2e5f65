from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data, Split
from finetune_sweep.train.source import Fetched
from tests.train.sources import examples, prepared, sizes, write_jsonl


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    table = Dataset.from_list(examples(40))
    file = str(tmp_path / f"all.{ending}")
    match ending:
        case "parquet":
            table.to_parquet(file)
        case "json":
            Path(file).write_text(json.dumps(table.to_list()))
        case "jsonl":
            table.to_json(file)
        case _:
            table.to_csv(file, sep="\t" if ending == "tsv" else ",")
    write_jsonl(tmp_path / "same.jsonl", examples(40))
    found = prepared(tmp_path, Data(source=f"all.{ending}"))
    assert found.fingerprints == prepared(tmp_path, Data(source="same.jsonl")).fingerprints
    assert found.classes == ("neg", "pos")


def test_csv_values_are_taken_as_they_stand(tmp_path: Path) -> None:
    lines = ["text,label", "None,NA", '"a, quoted",1', "007,1", "null,NA", "1e3,1", "x,NA"]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "validation.csv").write_text("text,label\nv,NA\nw,1\n")
    found = prepared(tmp_path, Data(source=".", split=Split(test=0)))
    assert found.splits["train"]["text"][:] == ["None", "a, quoted", "007", "null", "1e3", "x"]
    assert found.classes == ("1", "NA")


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (",text,label", "{0},{1},{2}"),
        (",Unnamed: 0,text,label", "{0},{0},{1},{2}"),
        (",,text,label, ", "{0},{0},{1},{2},"),
        ("\ntext,label", "{1},{2}"),
        ("  \n\ntext,label\n", "{1},{2}\n"),
        ("\ufeff,text,label\r\n", "{0},{1},{2}\r\n\r"),
    ],
)
def test_a_csv_may_have_columns_without_a_name_and_blank_lines(tmp_path: Path, header: str, row: str) -> None:
    rows = examples(40)
    lines = [header, *(row.format(place, *(r["text"], r["label"])) for place, r in enumerate(rows))]
    (tmp_path / "all.CSV").write_text("\n".join(lines), encoding="utf-8")
    write_jsonl(tmp_path / "same.JSONL", rows)
    found = prepared(tmp_path, Data(source="all.CSV"))
    assert found.fingerprints == prepared(tmp_path, Data(source="same.JSONL")).fingerprints


def test_a_folder_takes_endings_in_upper_case(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data/Train.JSONL", examples(9))
    write_jsonl(tmp_path / "data/DEV.JSONL", examples(4, 100))
    assert sizes(prepared(tmp_path, Data(source="data", split=Split(test=0)))) == {
        "train": 9,
        "validation": 4,
    }


@pytest.mark.parametrize("place", [0, 1])
def test_a_long_document_is_one_field(tmp_path: Path, place: int) -> None:
    texts = [f"text {row}" + " and more" * 20_000 * (row == place) for row in range(40)]
    rows = [f"{text},{'ab'[row % 2]}" for row, text in enumerate(texts)]
    (tmp_path / "long.csv").write_text("\n".join(["text,label", *rows]))
    found = prepared(tmp_path, Data(source="long.csv"))
    assert sum(sizes(found).values()) == 40


def test_shards_with_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000-of-00002.csv").write_text("text,label\na,x\n")
    (tmp_path / "data/train-00001-of-00002.csv").write_text("label,text\nx,a\n")
    with pytest.raises(
        UserError, match=r"00001-of-00002\.csv: has the columns label, text, train-0.* text, label"
    ):
        prepared(tmp_path, Data(source="data"))


def test_a_folder_of_split_files_goes_by_their_other_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data/train.jsonl", examples(9))
    write_jsonl(tmp_path / "data/dev.jsonl", examples(4, 100))
    write_jsonl(tmp_path / "data/testb.jsonl", examples(5, 200))
    (tmp_path / "data/README.md").write_text("no data")
    assert sizes(prepared(tmp_path, Data(source="data"))) == {"train": 9, "validation": 4, "test": 5}


def test_shards_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data/train-00001-of-00002.jsonl", examples(3, 3))
    write_jsonl(tmp_path / "data/train-00000-of-00002.jsonl", examples(3))
    write_jsonl(tmp_path / "data/validation.jsonl", examples(3, 10))
    found = prepared(tmp_path, Data(source="data", split=Split(test=0)))
    assert found.splits["train"]["text"][:] == [f"text {row}" for row in range(6)]


def test_one_folder_a_class_holds_texts(tmp_path: Path) -> None:
    for row in range(12):
        file = (
            tmp_path
            / "data"
            / ("train" if row < 8 else "valid")
            / ("pos" if row % 2 else "neg")
            / f"{row:02}.txt"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text {row}\n")
    found = prepared(tmp_path, Data(source="data", split=Split(test=0)))
    assert sizes(found) == {"train": 8, "validation": 4}
    assert found.splits["train"][0] == {"text": "text 0", "label": "neg"}


def test_a_text_begins_after_its_byte_order_mark(tmp_path: Path) -> None:
    for row in range(12):
        file = tmp_path / "data" / ("pos" if row % 2 else "neg") / f"{row:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text {row}", encoding="utf-8-sig")
    found = prepared(tmp_path, Data(source="data", split=Split(validation=0.2, test=0)))
    assert all(text.startswith("text") for rows in found.splits.values() for text in rows["text"])


def test_class_folders_without_splits_are_split(tmp_path: Path) -> None:
    for row in range(40):
        file = tmp_path / "data" / ("pos" if row % 2 else "neg") / f"{row}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text {row}")
    assert sizes(prepared(tmp_path, Data(source="data"))) == {"train": 32, "validation": 4, "test": 4}


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl", "dev.jsonl"):
        write_jsonl(tmp_path / "data" / name, examples(4))
    with pytest.raises(UserError, match=r"dev\.jsonl and val\.jsonl both are the validation split"):
        prepared(tmp_path, Data(source="data"))


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "reviews.jsonl", examples(4))
    with pytest.raises(UserError, match=r"review\.jsonl: no such file .*did you mean 'reviews\.jsonl'"):
        prepared(tmp_path, Data(source="review.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "cannot be read as json"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\nan, unquoted text,pos\n", "row 1 has 3 fields, the header 2"),
        ("a.csv", "text,label\na,pos\nan, unquoted text,pos\n", "cannot be read as csv: .*line 3"),
        ("a.csv", "text,text\na,b\n", "names 'text' more than once"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.jsonl", "", "is empty"),
        (
            "a.jsonl",
            '{"text": "a", "label": "b"}\n\n{"text": "a\n',
            r"a\.jsonl: line 3: .* column 10: \{\"text\": \"a$",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "b"}\n7\n',
            r"a\.jsonl: line 2: must be an object of columns .* got 7$",
        ),
        ("a.json", '[{"text": "a"},\n{"text" "b"}]', r"a\.json: cannot be read as json: .* line 2 column 9"),
        ("a.json", "[]", "has no rows|no data"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
        ("a.csv", ",text,,text\n0,a,,b\n", "names 'text' more than once"),
        ("a.csv", "\n\ntext,label\n\n", "has no rows"),
        ("a.xml", "<a/>", r"must be one of \.csv, .* got \.xml"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        prepared(tmp_path, Data(source=name))
    assert "\n" not in str(caught.value)


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from finetune_sweep.spec import Data\n"
        "from finetune_sweep.tasks import TASKS\n"
        "from finetune_sweep.train.data import prepare\n"
        "from finetune_sweep.errors import UserError\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "try: prepare(Data(source='hub:stanfordnlp/sst2@main'), TASKS['text-classification'], here, here)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("data: hub:stanfordnlp/sst2@main: ")
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def test_rows_of_the_hub_are_told_apart_by_content(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"text {row}", "label": row % 2} for row in range(2500)]
    digests = [
        Fetched("hub:here/data (train)", Dataset.from_list(part, features=features)).digest(None, tmp_path)
        for part in (rows, list(rows), rows[:-1], [*rows[:-1], {"text": "text 2499", "label": 0}])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
