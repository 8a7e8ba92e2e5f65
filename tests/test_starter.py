from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from finetune_sweep import starter
from finetune_sweep.errors import UserError
from finetune_sweep.plan import check, check_words, make_plan
from finetune_sweep.spec import Sweep
from finetune_sweep.starter import write_sweep
from finetune_sweep.sweepfile import load_sweep
from tests.tasks.models import picture

Row = Mapping[str, object]


def reviews(count: int = 120, label: str = "label", text: str = "text") -> list[Row]:
    words = ("good", "bad", "fair")
    return [
        {"id": number, text: f"row {number} was {words[number % 3]} to read", label: words[number % 3]}
        for number in range(count)
    ]


def write_csv(file: Path, rows: Sequence[Row], delimiter: str = ",") -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_jsonl(file: Path, rows: Iterable[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sweep_for(data: Path, tmp_path: Path) -> Sweep:
    """The sweep that `init` writes, read as `run` reads it."""
    written = write_sweep(data, tmp_path / "sweep.yaml", tmp_path / "cache")
    return load_sweep(written, [f"cache={tmp_path / 'cache'}"], check)


def refusal(data: Path, tmp_path: Path) -> str:
    with pytest.raises(UserError) as raised:
        write_sweep(data, tmp_path / "sweep.yaml", tmp_path / "cache")
    assert not (tmp_path / "sweep.yaml").exists()
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_what_is_written_can_be_planned_without_an_edit(tmp_path: Path) -> None:
    sweep = sweep_for(write_csv(tmp_path / "reviews.csv", reviews(450)), tmp_path)
    plan = make_plan(sweep)
    assert len(plan.trials) == 18
    assert len(plan.units) == 6
    assert plan.classes == ("bad", "fair", "good")
    assert plan.rows == {"train": 270, "validation": 90, "test": 90}


def test_few_rows_get_a_small_space_and_the_file_says_why(tmp_path: Path) -> None:
    plan = make_plan(sweep_for(write_csv(tmp_path / "reviews.csv", reviews()), tmp_path))
    assert (len(plan.trials), len(plan.units)) == (8, 4)
    assert plan.rows == {"train": 72, "validation": 24, "test": 24}
    assert "every combination is a trial; few, as rows are few" in (tmp_path / "sweep.yaml").read_text()


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (",text,label", "{0},{1},{2}"),
        (" ,,text,label", "{0},{0},{1},{2}"),
        ("\ntext,label", "{1},{2}"),
        ("text,label\n", "{1},{2}\n"),
    ],
)
def test_a_csv_may_have_columns_without_a_name_and_blank_lines(header: str, row: str, tmp_path: Path) -> None:
    lines = [header, *(row.format(*each.values()) for each in reviews())]
    (tmp_path / "reviews.CSV").write_text("\n".join(lines))
    sweep = sweep_for(tmp_path / "reviews.CSV", tmp_path)
    assert sweep.data.columns == {"text": "text", "label": "label"}
    assert make_plan(sweep).rows == {"train": 72, "validation": 24, "test": 24}


def test_a_long_document_is_one_field(tmp_path: Path) -> None:
    rows = [*reviews(), {"id": 120, "text": "word " * 40_000, "label": "good"}]
    assert make_plan(sweep_for(write_csv(tmp_path / "long.csv", rows), tmp_path)).rows["train"] == 73


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_is_read(suffix: str, tmp_path: Path) -> None:
    file, rows = tmp_path / f"reviews{suffix}", reviews()
    if suffix in {".csv", ".tsv"}:
        write_csv(file, rows, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl":
        write_jsonl(file, rows)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
    assert sweep_for(file, tmp_path).data.columns == {"text": "text", "label": "label"}


@pytest.mark.parametrize(
    ("text", "label"),
    [("Review", "Stars"), ("review_text", "star rating"), ("content", "category"), ("wordy", "kind: of")],
)
def test_columns_are_found_by_name_or_shape(text: str, label: str, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "data.csv", reviews(label=label, text=text))
    assert sweep_for(file, tmp_path).data.columns == {"text": text, "label": label}


def test_numbers_of_a_few_values_are_classes(tmp_path: Path) -> None:
    rows = [{"review": f"this is text {n}", "stars": n % 5 + 1} for n in range(100)]
    written = write_sweep(write_csv(tmp_path / "r.csv", rows), tmp_path / "s.yaml", tmp_path / "cache")
    assert "5 classes, in training: 1 (12), 2 (12)" in written.read_text()


def test_a_folder_of_splits_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", reviews(90, "topic", "body"))
    write_jsonl(folder / "dev.jsonl", reviews(30, "topic", "body"))
    sweep = sweep_for(folder, tmp_path)
    assert (sweep.name, sweep.data.columns) == ("my_data", {"text": "body", "label": "topic"})
    assert sweep.data.source == str(folder)


def test_a_folder_with_one_folder_a_class_is_read(tmp_path: Path) -> None:
    for label in ("ham", "spam"):
        (tmp_path / "mails" / label).mkdir(parents=True)
        for number in range(30):
            (tmp_path / "mails" / label / f"{number}.txt").write_text(f"{label} of number {number}")
    sweep = sweep_for(tmp_path / "mails", tmp_path)
    assert make_plan(sweep).classes == ("ham", "spam")


@pytest.mark.parametrize(
    ("counts", "metric"), [((100, 30), "macro_f1"), ((100, 34), "accuracy"), ((5, 5, 1), "macro_f1")]
)
def test_the_metric_counts_classes_alike_when_their_sizes_differ_much(
    counts: Sequence[int], metric: str
) -> None:
    line = starter._metric_line({str(label): count for label, count in enumerate(counts)})
    assert line.startswith(f"metric: {metric} ")


@pytest.mark.parametrize(("words", "length"), [(5, 32), (60, 128), (2000, 512)])
def test_the_longest_input_follows_the_texts(words: int, length: int) -> None:
    one_outlier = ["word " * 5000]
    assert starter._max_length([f"{n} " + "word " * words for n in range(50)] + one_outlier) == length


def test_only_big_data_are_limited(tmp_path: Path) -> None:
    assert sweep_for(write_csv(tmp_path / "small.csv", reviews()), tmp_path).data.limit is None
    (tmp_path / "sweep.yaml").unlink()
    limit = sweep_for(write_csv(tmp_path / "big.csv", reviews(6000)), tmp_path).data.limit
    assert limit is not None
    assert (limit.train, limit.validation, limit.test) == (4000, 1000, None)


def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    rows = [{"null": f"this is text {n}", "5e-5": "ab"[n % 2]} for n in range(60)]
    sweep = sweep_for(write_csv(tmp_path / "no.csv", rows), tmp_path)
    assert sweep.data.columns == {"text": "null", "label": "5e-5"}


def test_without_a_file_to_write_it_is_named_for_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "my reviews.csv", reviews())
    written = write_sweep(Path("my reviews.csv"), None, tmp_path / "cache")
    assert written == tmp_path / "my_reviews.yaml"
    assert 'source: "my reviews.csv"' in written.read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "reviews.csv", reviews())
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write_sweep(data, tmp_path / "mine.yaml", tmp_path / "cache")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": f"t {n}", "price": n} for n in range(80)], "no column looks like a label"),
        (
            [{"text": f"t {n}", "rating": n / 7} for n in range(80)],
            "80 different numbers: that is regression",
        ),
        (
            [{"text": f"t {n}", "label": "one"} for n in range(80)],
            "at least two classes, 'label' holds only 'one'",
        ),
        ([{"a": n, "label": n % 2} for n in range(80)], "no column holds texts; it has a, label"),
        ([{"text": f"t {n}", "label": f"l {n}"} for n in range(80)], "80 values in 80 rows"),
    ],
)
def test_what_is_no_classification_is_refused(rows: list[Row], message: str, tmp_path: Path) -> None:
    assert message in refusal(write_csv(tmp_path / "data.csv", rows), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "holds no rows"),
        ("header.csv", "text,label\n", "holds no rows"),
        ("german.csv", "text;label\na;b\n", "separated by ';'"),
        ("notes.docx", "x", "must be one of"),
        ("list.json", "[1, 2]", "one object a row"),
        ("torn.json", "[{", "is no table that can be read"),
        ("binary.csv", "\udcff\udcfe", "is no table that can be read"),
        ("fake.parquet", "x", "is no table that can be read"),
    ],
)
def test_what_is_no_table_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert message in refusal(tmp_path / name, tmp_path)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", reviews())
    assert "did you mean 'reviews.csv'?" in refusal(tmp_path / "review.csv", tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "it holds nothing" in refusal(tmp_path / "empty", tmp_path)


def pictures_in(folder: Path, count: int = 24) -> list[str]:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(10 * number))
    return [f"{number}.png" for number in range(count)]


def tagged(folder: Path) -> Path:
    lines = [f"word{number} NN\nsays VB\n" for number in range(20)]
    (folder / "words.conll").write_text("\n".join(lines))
    return folder / "words.conll"


def classes_of_pictures(folder: Path) -> Path:
    for name, level in (("dark", 0), ("light", 9)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            (folder / "photos" / name / f"{number}.png").write_bytes(picture(level * 13 + number))
    return folder / "photos"


def labelled(folder: Path) -> Path:
    rows = [
        {"photo": f"p/{name}", "label": ("dark", "light")[number // 12]}
        for number, name in enumerate(pictures_in(folder / "p"))
    ]
    return write_csv(folder / "photos.csv", rows)


def captioned(folder: Path) -> Path:
    names = pictures_in(folder / "captions")
    rows = [{"file_name": name, "caption": f"a picture like {name}"} for name in names]
    write_jsonl(folder / "captions" / "metadata.jsonl", rows)
    return folder / "captions"


def boxed(folder: Path) -> Path:
    names = pictures_in(folder / "images")
    content = {
        "images": [{"id": place, "file_name": name} for place, name in enumerate(names)],
        "annotations": [
            {"image_id": place, "category_id": 1, "bbox": [1, 1, 4, 4]} for place in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def boxed_folder(folder: Path) -> Path:
    boxed(folder)
    return folder


def boxed_splits(folder: Path) -> Path:
    for split in ("train", "valid"):
        names = pictures_in(folder / split)
        found = json.loads(boxed(folder / "of" / split).read_bytes())
        for place, name in enumerate(names):
            found["images"][place]["file_name"] = name
            (folder / split / name).write_bytes(picture(10 * place + (split == "valid")))
        (folder / split / "_annotations.coco.json").write_text(json.dumps(found))
    shutil.rmtree(folder / "of")
    return folder


def in_parquet(folder: Path) -> Path:
    features = Features({"img": Image(), "label": ClassLabel(names=["dark", "light"])})
    rows = {
        "img": [{"bytes": picture(10 * row)} for row in range(24)],
        "label": [row // 12 for row in range(24)],
    }
    Dataset.from_dict(rows, features=features).to_parquet(str(folder / "photos.parquet"))
    return folder / "photos.parquet"


def tags_of_pictures(folder: Path) -> Path:
    names = pictures_in(folder / "p")
    rows = [{"photo": f"p/{name}", "labels": ["a", "b"][: row % 3]} for row, name in enumerate(names)]
    return write_jsonl(folder / "photos.jsonl", rows)


def words_in_lists(folder: Path) -> Path:
    rows = [{"tokens": ["w", f"x{row}"], "ner_tags": ["O", "B-X"]} for row in range(40)]
    return write_jsonl(folder / "ner.jsonl", rows)


def words_with_named_tags(folder: Path) -> Path:
    features = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X"]))})
    rows = {"words": [["w", f"x{row}"] for row in range(40)], "tags": [[0, 1]] * 40}
    Dataset.from_dict(rows, features=features).to_parquet(str(folder / "ner.parquet"))
    return folder / "ner.parquet"


def words_in_txt(folder: Path) -> Path:
    return tagged(folder).rename(folder / "train.txt")


def several_classes(folder: Path) -> Path:
    rows = [{"body": f"text {row}", "labels": ["a", "b"][: row % 3]} for row in range(60)]
    return write_jsonl(folder / "tags.jsonl", rows)


@pytest.mark.parametrize(
    ("make", "task", "columns", "metric"),
    [
        (tagged, "token-classification", {}, "f1"),
        (classes_of_pictures, "image-classification", {}, "accuracy"),
        (labelled, "image-classification", {"image": "photo"}, "accuracy"),
        (captioned, "image-captioning", {"text": "caption"}, "rougeL"),
        (boxed, "object-detection", {}, "map"),
        (boxed_folder, "object-detection", {}, "map"),
        (boxed_splits, "object-detection", {}, "map"),
        (in_parquet, "image-classification", {"image": "img"}, "accuracy"),
        (tags_of_pictures, "image-tagging", {"image": "photo"}, "micro_f1"),
        (words_in_lists, "token-classification", {"tags": "ner_tags"}, "f1"),
        (words_with_named_tags, "token-classification", {"tokens": "words"}, "f1"),
        (words_in_txt, "token-classification", {}, "f1"),
        (several_classes, "text-tagging", {"text": "body"}, "micro_f1"),
    ],
)
def test_the_task_is_told_from_the_data(
    make: Callable[[Path], Path], task: str, columns: Row, metric: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    written = write_sweep(make(tmp_path / "data"), tmp_path / "sweep.yaml", tmp_path / "cache")
    sweep = load_sweep(written, (), check_words)
    assert (sweep.task, sweep.data.columns, sweep.metric.name) == (task, columns, metric)
    assert "`task` was guessed from the data" in written.read_text()


def test_a_table_of_pictures_and_nothing_else_is_refused(tmp_path: Path) -> None:
    rows = [{"image": f"p/{name}", "size": 8} for name in pictures_in(tmp_path / "p")]
    told = refusal(write_csv(tmp_path / "photos.csv", rows), tmp_path)
    assert "'image' names pictures, but no column holds a text or a class; it has image, size" in told


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (
            {"document": "a long text {}", "summary": "short {}"},
            "for `task: text-to-text` write `columns: {text: document, target: summary}`",
        ),
        (
            {"prompt": "say {}", "completion": "it is {}"},
            "for `task: causal-lm` write `columns: {prompt: prompt, text: completion}`",
        ),
        (
            {"sentence1": "a {}", "sentence2": "b {}", "score": "0.{}"},
            "for `task: text-regression` write `columns: {text: sentence1, number: score}`",
        ),
    ],
)
def test_what_other_tasks_are_for_is_told_where_no_column_is_a_class(
    row: dict[str, str], fits: str, tmp_path: Path
) -> None:
    rows = [{name: value.format(100 + number) for name, value in row.items()} for number in range(80)]
    told = refusal(write_csv(tmp_path / "data.csv", rows), tmp_path)
    assert "no column looks like a label" in told
    assert fits in told
