from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Clean, Data, Limit, Split
from finetune_sweep.tasks import TASKS
from finetune_sweep.train.data import Prepared, _Fetched, encode_split, prepare

TASK = TASKS["text-classification"]
Example = dict[str, object]


def examples(count: int, first: int = 0) -> list[Example]:
    """Distinct texts of two classes, one of three rows being "pos"."""
    return [
        {"text": f"text {row}", "label": "neg" if row % 3 else "pos"} for row in range(first, first + count)
    ]


def write_jsonl(file: Path, rows: list[Example]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prepared(tmp_path: Path, data: Data) -> Prepared:
    return prepare(data, TASK, tmp_path, tmp_path / "cache")


def three_files(tmp_path: Path, **rows: list[Example]) -> Data:
    for split, part in rows.items():
        write_jsonl(tmp_path / f"{split}.jsonl", part)
    return Data(files={split: f"{split}.jsonl" for split in rows})


def sizes(of: Prepared) -> dict[str, int]:
    return {split: len(rows) for split, rows in of.splits.items()}


# ------------------------------------------------------------------------------------------------ sources


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
        ("a.json", "[]", "has no rows|no data"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
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


def test_rows_of_the_hub_are_told_apart_by_content() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"text {row}", "label": row % 2} for row in range(2500)]
    digests = [
        _Fetched("hub:here/data (train)", Dataset.from_list(part, features=features)).digest()
        for part in (rows, list(rows), rows[:-1], [*rows[:-1], {"text": "text 2499", "label": 0}])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# ---------------------------------------------------------------------------------------- columns, labels


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


# --------------------------------------------------------------------------------- fingerprints, the cache


def test_a_fingerprint_tells_of_rows_labels_and_order(tmp_path: Path) -> None:
    rows = examples(12)
    other_label: list[Example] = [{**rows[0], "label": "neg"}, *rows[1:]]
    prints = {
        prepared(
            tmp_path, three_files(tmp_path, train=part, validation=examples(3, 20), test=examples(3, 30))
        ).fingerprints["train"]
        for part in (rows, rows[::-1], rows[:-1], other_label)
    }
    assert len(prints) == 4


def test_fingerprints_are_the_same_on_every_machine(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(6), validation=examples(3, 20), test=examples(3, 30))
    assert (
        prepared(tmp_path, data).fingerprint
        == "7cfec77c6724169eef0197c1243138280891c14cc8dd5fd760d06795785bd0ac"
    )


def test_a_second_call_reads_the_copy(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(40), validation=examples(6, 50))
    first = prepared(tmp_path, data)
    copies = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/data").rglob("*.arrow")}
    second = prepared(tmp_path, data.model_copy(update={"max_length": 7}))
    assert copies == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/data").rglob("*.arrow")}
    assert (first.fingerprints, first.classes, first.report, first.notes) == (
        second.fingerprints,
        second.classes,
        second.report,
        second.notes,
    )
    assert {split: rows.to_list() for split, rows in first.splits.items()} == {
        split: rows.to_list() for split, rows in second.splits.items()
    }


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(40), validation=examples(6, 50))
    before = prepared(tmp_path, data)
    three_files(tmp_path, train=examples(39))
    assert len(prepared(tmp_path, data).splits["train"]) < len(before.splits["train"])


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(40), validation=examples(6, 50))
    first = prepared(tmp_path, data)
    copy = next((tmp_path / "cache/data").rglob("train/*.arrow"))
    content = bytearray(copy.read_bytes())
    content[content.index(b"text 1")] ^= 1
    copy.write_bytes(content)
    second = prepared(tmp_path, data)
    assert second.splits["train"].to_list()[0]["text"].startswith("text ")
    assert second.fingerprints == first.fingerprints


def test_nothing_is_left_of_reading(tmp_path: Path) -> None:
    prepared(tmp_path, three_files(tmp_path, train=examples(40), validation=examples(6, 50)))
    assert not list((tmp_path / "cache/datasets").iterdir())


def prepared_elsewhere(folder: Path) -> str:
    data = Data(files={"train": "train.jsonl", "validation": "validation.jsonl"})
    return prepared(folder, data).fingerprint


def test_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(400), validation=examples(60, 500))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        prints = pool.map(prepared_elsewhere, [tmp_path] * 4, chunksize=1)
    assert set(prints) == {prepared(tmp_path, data).fingerprint}


# ----------------------------------------------------------------------------------------------- tokens


def tokenizer_folder(folder: Path, words: list[str], positions: int = 32) -> Path:
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(str(folder))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "max_position_embeddings": positions})
    )
    return folder


def test_tokens_are_kept_by_tokenizer_and_length(tmp_path: Path) -> None:
    rows = prepared(
        tmp_path, three_files(tmp_path, train=examples(12), validation=examples(3, 20), test=examples(3, 30))
    )
    folder = tokenizer_folder(tmp_path / "model", ["text", "0", "1"])
    cache = tmp_path / "cache"
    first = encode_split(rows, "train", TASK, folder, 8, cache)
    assert list(first.columns["input_ids"][0]) == [2, 3]
    again = encode_split(rows, "train", TASK, folder, 8, cache)
    assert isinstance(again.columns["labels"], np.memmap)
    assert len(list((cache / "tokens").glob("*/manifest.json"))) == 1
    assert list(encode_split(rows, "train", TASK, folder, 4, cache).lengths()) == [2] * 12
    tokenizer_folder(folder, ["0", "text", "1"])
    other = encode_split(rows, "train", TASK, folder, 8, cache)
    assert list(other.columns["input_ids"][0]) == [3, 2]


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path: Path) -> None:
    rows = prepared(
        tmp_path, three_files(tmp_path, train=examples(12), validation=examples(3, 20), test=examples(3, 30))
    )
    folder = tokenizer_folder(tmp_path / "model", ["text"], positions=16)
    with pytest.raises(UserError, match=r"max_length 17: .*model takes at most 16 tokens"):
        encode_split(rows, "train", TASK, folder, 17, tmp_path / "cache")
