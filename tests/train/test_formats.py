"""Files of every format, into rows of every kind; and one message, with file and row, for what is wrong in them."""

from __future__ import annotations

import codecs
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import ExifTags
from PIL import Image as Pictures
from transformers.image_utils import load_image

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Clean, Data, Limit, Split
from finetune_sweep.tasks import TASKS, pictures
from finetune_sweep.train.data import Prepared, prepare
from finetune_sweep.train.source import Fetched

CONLL = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\nBlackburn NNP I-PER\n"


def read(tmp_path: Path, data: Data, task: str) -> Prepared:
    return prepare(data, TASKS[task], tmp_path, tmp_path / "cache")


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def picture(level: int, size: tuple[int, int] = (8, 6)) -> bytes:
    content = io.BytesIO()
    Pictures.new("RGB", size, (level, 0, 255 - level)).save(content, "png")
    return content.getvalue()


def sentences(count: int) -> str:
    return "".join(f"word{row}\tNN\t{'B-X' if row % 2 else 'O'}\nend\tNN\tO\n\n" for row in range(count))


# ------------------------------------------------------------------------------------------------- conll


def test_conll_takes_its_columns_by_number(tmp_path: Path) -> None:
    write(tmp_path / "train.conll", CONLL + "\nOne CD O\n")
    write(tmp_path / "testa.conll", CONLL.replace("EU", "UN").replace("Peter", "Paul"))
    split = Split(test=0)
    rows = read(tmp_path, Data(source=".", split=split), "token-classification").splits["train"]
    assert rows[0] == {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert rows[1] == {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]}
    by_number = Data(source=".", split=split, columns={"tokens": 1, "tags": 2})
    found = read(tmp_path, by_number, "token-classification")
    assert found.splits["train"]["tags"][0] == ["NNP", "VBZ"]
    assert found.classes == ("CD", "NNP", "VBZ")


def test_conll_may_end_with_txt_where_the_task_is_of_words(tmp_path: Path) -> None:
    write(tmp_path / "a/train.txt", sentences(20))
    write(tmp_path / "a/valid.txt", "x NN O\n\ny NN B-X\n\nz NN O\n")
    for source in ("a", "a/train.txt"):
        found = read(tmp_path, Data(source=source, split=Split(test=0)), "token-classification")
        assert found.classes == ("B-X", "O")
    with pytest.raises(UserError, match=r"train\.txt: must be one of \.csv, .*\.bio, got \.txt"):
        read(tmp_path, Data(source="a/train.txt"), "text-classification")


def test_conllu_skips_comments_ranges_and_empty_nodes(tmp_path: Path) -> None:
    rest = "\t_\t_\t_\t_\t_\t_"
    lines = [
        "# text = Vamos al mar",
        f"1\tVamos\tir\tVERB{rest}",
        f"2-3\tal\t_\t_{rest}",
        f"2\ta\ta\tADP{rest}",
        f"2.1\tx\tx\tX{rest}",
        f"3\tel\tel\tDET{rest}",
        "",
        f"1\tMar\tmar\tNOUN{rest}",
        "",
        f"1\tSal\tsal\tNOUN{rest}",
    ]
    write(tmp_path / "train.conllu", "\n".join(lines))
    write(tmp_path / "dev.conllu", "\n".join([*lines[:8], f"1\tIr\tir\tVERB{rest}"]))
    data = Data(source=".", split=Split(test=0), clean=Clean(drop_leaked=False))
    rows = read(tmp_path, data, "token-classification").splits["train"]
    assert rows[0] == {"tokens": ["Vamos", "a", "el"], "tags": ["VERB", "ADP", "DET"]}
    by_name = data.model_copy(update={"columns": {"tags": "lemma"}})
    assert read(tmp_path, by_name, "token-classification").classes == ("a", "el", "ir", "mar", "sal")


@pytest.mark.parametrize("wrong", ["x", "", "1-", "-1", "1.5.2"])
def test_a_word_of_conllu_without_a_number_is_named(tmp_path: Path, wrong: str) -> None:
    rest = "\t_\t_\t_\t_\t_\t_"
    file = write(tmp_path / "a.conllu", f"# text\n1\tVamos\tir\tVERB{rest}\n{wrong}\ta\ta\tADP{rest}\n")
    with pytest.raises(UserError, match=rf"{file}: line 3: an id must be a number such .*, got '{wrong}'"):
        read(tmp_path, Data(source="a.conllu"), "token-classification")


@pytest.mark.parametrize("tab", [" ", "\t"])
@pytest.mark.parametrize(
    "comment", ["# id 7 domain=en and more", "# id 7", "# id 7\tdomain=en", "# text = a"]
)
def test_a_comment_before_a_sentence_of_conll_is_skipped(tmp_path: Path, comment: str, tab: str) -> None:
    one = "{}\nw{} NN {}\nend NN O\n\n".replace(" ", tab)
    write(tmp_path / "a.conll", "".join(one.format(comment, row, "BO"[row % 2]) for row in range(20)))
    data = Data(source="a.conll", split=Split(test=0))
    found = read(tmp_path, data, "token-classification")
    assert found.classes == ("B", "O")
    assert {tuple(tokens[1:]) for tokens in found.splits["train"]["tokens"]} == {("end",)}


def test_a_word_may_be_the_sign_of_a_comment(tmp_path: Path) -> None:
    # Of the same width as other lines, with a tag that they have; within a sentence; or with a tab after it.
    sentence = "# NN O\nw{} NN B\n# NN B-ONCE\n\n#\tNN\tB-OTHER\nw{} NN O\n\n"
    write(tmp_path / "a.conll", "".join(sentence.format(row, row) for row in range(20)))
    found = read(tmp_path, Data(source="a.conll", split=Split(test=0)), "token-classification")
    assert {len(tokens) for tokens in found.splits["train"]["tokens"]} == {2, 3}
    assert found.classes == ("B", "B-ONCE", "B-OTHER", "O")


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        ("token-classification", {"tokens": ["a", "b"], "tags": ["B-X", "O"]}, {"tags": ["B-X", None]}),
        ("token-classification", {"tokens": ["a", "b"], "tags": ["B-X", "O"]}, {"tags": ["B-X", ""]}),
        ("text-tagging", {"text": "a", "labels": ["x", "y"]}, {"labels": ["x", None]}),
    ],
)
def test_a_class_that_is_missing_in_a_list_is_named(
    tmp_path: Path, task: str, good: dict[str, object], bad: dict[str, object]
) -> None:
    rows = [good] * 3 + [{**good, **bad}] + [good] * 20
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"{file}: row 4: class 2 of 2 is missing in \["):
        read(tmp_path, Data(source="a.jsonl"), task)


def test_a_line_with_fewer_columns_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.conll", "a NN O\nb O\n")
    with pytest.raises(UserError, match=rf"{file}: line 2 has 2 columns, the first has 3: b O"):
        read(tmp_path, Data(source="a.conll"), "token-classification")


def test_a_column_of_conll_that_is_not_there_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "a.conll", sentences(9))
    with pytest.raises(UserError, match=r"has no column '4', it has 1, 2, 3, tokens, tags"):
        read(tmp_path, Data(source="a.conll", columns={"tags": 4}), "token-classification")


def test_a_tag_outside_training_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "train.conll", sentences(20))
    write(tmp_path / "dev.conll", "x NN O\n\ny NN B-Y\n\nz NN O\n")
    with pytest.raises(UserError, match=r"dev\.conll: line 3: class 'B-Y' is in validation \(1 rows\)"):
        read(tmp_path, Data(source="."), "token-classification")


def test_a_cut_leaves_every_tag_in_training(tmp_path: Path) -> None:
    rare = "".join(f"rare{row}\tNN\tB-RARE{row}\n\n" for row in range(5))
    write(tmp_path / "a.conll", sentences(40) + rare)
    data = Data(source="a.conll", split=Split(validation=0.3, test=0.3), limit=Limit(train=7))
    found = read(tmp_path, data, "token-classification")
    assert {f"B-RARE{row}" for row in range(5)} < set(found.classes)
    assert len(found.splits["train"]) == 7


# ------------------------------------------------------------------------------------------------- lists


def test_lists_stand_in_json_parquet_and_as_json_in_csv(tmp_path: Path) -> None:
    rows = [{"text": f"text {row}", "labels": ["a", "b"][: row % 3]} for row in range(30)]
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    Dataset.from_list([{**row, "labels": json.dumps(row["labels"])} for row in rows]).to_csv(
        str(tmp_path / "a.csv")
    )
    found = [read(tmp_path, Data(source=f"a.{end}"), "text-tagging") for end in ("jsonl", "parquet", "csv")]
    assert len({each.fingerprint for each in found}) == 1
    assert found[0].classes == ("a", "b")
    assert [] in found[0].splits["train"]["labels"][:]


def test_what_is_no_list_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,labels\nx,a\ny,b\n")
    with pytest.raises(UserError, match=r"a\.csv: row 1: must be a list, got str a"):
        read(tmp_path, Data(source="a.csv"), "text-tagging")


def test_as_many_tags_as_tokens(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json.dumps({"tokens": ["a", "b"], "tags": ["O"]}))
    with pytest.raises(UserError, match=r"a\.jsonl: row 1: has 2 tokens and 1 tags: a b"):
        read(tmp_path, Data(source="a.jsonl"), "token-classification")


def test_names_of_classes_in_lists_are_kept(tmp_path: Path) -> None:
    features = Features({"tokens": List(Value("string")), "ner": List(ClassLabel(names=["O", "B-X"]))})
    rows = [{"tokens": [f"w{row}", "x"], "ner": [row % 2, 0]} for row in range(30)]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    data = Data(source="a.parquet", columns={"tags": "ner"})
    assert read(tmp_path, data, "token-classification").classes == ("B-X", "O")


# ---------------------------------------------------------------------------------------------- pictures


def class_folders(root: Path, first: int = 0) -> None:
    for row in range(20):
        write(root / ("cat" if row % 2 else "dog") / f"{row}.PNG", picture(first + row))


@pytest.mark.parametrize("with_splits", [True, False])
def test_a_folder_of_pictures_a_class(tmp_path: Path, *, with_splits: bool) -> None:
    class_folders(tmp_path / "data" / ("train" if with_splits else ""))
    if with_splits:
        class_folders(tmp_path / "data" / "val", first=100)
    found = read(tmp_path, Data(source="data", split=Split(validation=0.2, test=0.2)), "image-classification")
    assert found.classes == ("cat", "dog")
    assert sum(len(rows) for rows in found.splits.values()) == (40 if with_splits else 20)
    assert found.splits["train"][0]["image"].startswith(b"\x89PNG")


def test_a_folder_is_read_as_what_the_task_reads(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    write(tmp_path / "data/cat/README.txt", "pictures of cats")
    write(tmp_path / "data/cat/._1.png", b"\0\5\x16\7")
    write(tmp_path / "data/.ipynb_checkpoints/1-checkpoint.png", picture(1))
    write(tmp_path / "data/classes.json", json.dumps({"0": "cat"}))
    found = read(tmp_path, Data(source="data", split=Split(validation=0.2, test=0.2)), "image-classification")
    assert found.classes == ("cat", "dog")
    assert sum(len(rows) for rows in found.splits.values()) == 20
    labelled = [{"image": f"cat/{row}.PNG", "label": "ab"[row % 3 == 0]} for row in range(1, 20, 2)]
    write(tmp_path / "data/classes.json", json.dumps(labelled))
    data = Data(source="data", split=Split(validation=0.2, test=0))
    assert read(tmp_path, data, "image-classification").classes == ("a", "b")


@pytest.mark.parametrize("bytes_too", [True, False])
def test_an_edited_picture_is_noticed_where_datasets_stores_its_path(
    tmp_path: Path, *, bytes_too: bool
) -> None:
    files = [write(tmp_path / f"p/{row}.png", picture(row)) for row in range(20)]
    more = {"bytes": None} if bytes_too else {}
    rows = [{"image": {"path": str(file), **more}, "label": str(row % 2)} for row, file in enumerate(files)]
    if bytes_too:
        features = Features({"image": Image(), "label": Value("string")})
        Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    else:
        write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source="a.parquet" if bytes_too else "a.jsonl")
    before = read(tmp_path, data, "image-classification").fingerprint
    for row, file in enumerate(files):
        write(file, picture(100 + row))
    assert read(tmp_path, data, "image-classification").fingerprint != before


def turned(size: tuple[int, int], orientation: int) -> bytes:
    """A picture, blue in the upper left as it is stored, that is to be turned before it is shown."""
    whole, exif, content = Pictures.new("RGB", size, "red"), Pictures.Exif(), io.BytesIO()
    whole.paste("blue", (0, 0, size[0] // 2, size[1] // 2))
    exif[ExifTags.Base.Orientation] = orientation
    whole.save(content, "png", exif=exif)
    return content.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pipelines_turn_them(tmp_path: Path, orientation: int) -> None:
    content = turned((20, 10), orientation)
    served = load_image(str(write(tmp_path / "a.png", content)))
    assert pictures.size(content) == served.size == ((20, 10) if orientation < 5 else (10, 20))
    assert pictures._opened(content, 3).tobytes() == served.tobytes()


def test_an_edited_picture_is_another_data_set(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    rows = [
        {"file_name": f"{'cat' if row % 2 else 'dog'}/{row}.PNG", "label": str(row % 2)} for row in range(20)
    ]
    write(tmp_path / "data/train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    before = read(tmp_path, Data(source="data"), "image-classification")
    write(tmp_path / "data/cat/1.PNG", picture(200))
    write(tmp_path / "data/cat/3.PNG", picture(201))
    write(tmp_path / "data/dog/0.PNG", picture(202))
    assert read(tmp_path, Data(source="data"), "image-classification").fingerprint != before.fingerprint


def test_pictures_beside_a_table_in_a_parquet_and_from_the_hub_are_the_same(tmp_path: Path) -> None:
    rows = [{"image": f"p/{row}.png", "label": str(row % 2)} for row in range(20)]
    for row in range(20):
        write(tmp_path / f"p/{row}.png", picture(row))
    write(tmp_path / "a.csv", "image,label\n" + "".join(f"{r['image']},{r['label']}\n" for r in rows))
    write(
        tmp_path / "metadata.csv", "file_name,label\n" + "".join(f"{r['image']},{r['label']}\n" for r in rows)
    )
    whole = Dataset.from_list([{**row, "image": str(tmp_path / row["image"])} for row in rows])
    whole.cast_column("image", Image()).to_parquet(str(tmp_path / "a.parquet"))
    found = [
        read(tmp_path, Data(source=name), "image-classification").fingerprint
        for name in ("a.csv", "metadata.csv", "a.parquet")
    ]
    assert len(set(found)) == 1
    assert Fetched("hub:here", whole).digest("image", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"row 3: the picture .*p/2\.png cannot be read: No such file"),
        (b"no picture", r"row 3: the picture p/2\.png is damaged, or no picture$"),
        (picture(2, (64, 64))[:-60], r"row 3: the picture p/2\.png is damaged, or no picture$"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    for row in range(9):
        if row != 2 or content is not None:
            write(tmp_path / f"p/{row}.png", content if row == 2 and content else picture(row))
    write(tmp_path / "a.csv", "image,label\n" + "".join(f"p/{row}.png,{row % 2}\n" for row in range(9)))
    with pytest.raises(UserError, match=rf"a\.csv: {message}"):
        read(tmp_path, Data(source="a.csv"), "image-classification")


# ------------------------------------------------------------------------------------------------- boxes


def coco(file: Path, pictures: Path, of_second: Mapping[str, object] | None = None) -> None:
    for row in range(20):
        write(pictures / f"{file.stem}{row}.png", picture(row + 20 * (file.stem != "train")))
    annotations: list[dict[str, object]] = [
        {"id": row, "image_id": row, "category_id": 7 + row % 2, "bbox": [1, 1, 4, 3], "iscrowd": 0}
        for row in range(19)
    ]
    annotations[1] |= of_second or {}
    content = {
        "images": [{"id": row, "file_name": f"{file.stem}{row}.png"} for row in range(20)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cup"}, {"id": 8, "name": "hat"}],
    }
    write(file, json.dumps(content))


def test_boxes_are_those_of_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path)
    write(tmp_path / "train3.png", turned((6, 8), 6))  # shown as 8 x 6
    content = json.loads((tmp_path / "train.json").read_bytes())
    content["images"][3] |= {"width": 8, "height": 6}
    write(tmp_path / "train.json", json.dumps(content))
    assert detection(tmp_path, "train.json").classes == ("cup", "hat")
    content["images"][3] |= {"width": 6, "height": 8}
    write(tmp_path / "train.json", json.dumps(content))
    with pytest.raises(
        UserError, match=r"train\.json: train3\.png: its boxes are for 6 x 8 pixels, .* has 8 x 6: store"
    ):
        detection(tmp_path, "train.json")


def test_a_coco_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path)
    write(tmp_path / "train.json", codecs.BOM_UTF8 + (tmp_path / "train.json").read_bytes())
    assert detection(tmp_path, "train.json").classes == ("cup", "hat")


def test_a_coco_file_without_annotations_is_named(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path)
    content = json.loads((tmp_path / "train.json").read_bytes())
    del content["annotations"]
    write(tmp_path / "train.json", json.dumps(content))
    with pytest.raises(
        UserError, match=r"train\.json: has pictures and no `annotations`, so there are no boxes"
    ):
        detection(tmp_path, "train.json")


@pytest.mark.parametrize("as_lists", [True, False])
def test_names_of_classes_of_boxes_are_kept(tmp_path: Path, *, as_lists: bool) -> None:
    names = ClassLabel(names=["cup", "hat"])
    sides = List(Value("float32"))
    rows: list[dict[str, object]] = []
    for row in range(20):
        file = write(tmp_path / f"{row}.png", picture(row))
        boxes = {"bbox": [1, 1, 2, 2], "category": row % 2}
        both = {name: [cell] for name, cell in boxes.items()} if as_lists else [boxes]
        rows.append({"image": str(file), "objects": both})
    of_boxes = (
        {"bbox": List(sides), "category": List(names)}
        if as_lists
        else List({"bbox": sides, "category": names})
    )
    features = Features({"image": Value("string"), "objects": of_boxes})
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    data = Data(source="a.parquet", columns={"boxes": "objects"})
    assert read(tmp_path, data, "object-detection").classes == ("cup", "hat")


def detection(tmp_path: Path, source: str) -> Prepared:
    return read(tmp_path, Data(source=source), "object-detection")


def test_coco_files_give_boxes_in_pixels(tmp_path: Path) -> None:
    coco(tmp_path / "a" / "train.json", tmp_path / "a" / "images")
    coco(tmp_path / "a" / "val.json", tmp_path / "a" / "images", {"iscrowd": 1})
    found = detection(tmp_path, "a")
    assert found.classes == ("cup", "hat")
    box = {"label": "cup", "left": 1.0, "top": 1.0, "width": 4.0, "height": 3.0, "crowd": False}
    assert found.splits["train"][0]["boxes"] == [box]
    of_validation = found.splits["validation"]["boxes"]
    assert [[box["crowd"] for box in boxes] for boxes in of_validation] == [
        [False],
        [True],
        *[[False]] * 17,
        [],
    ]


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ((5, 1, 5, 3), r"train1\.png: the box 'hat' at 5, 1 of 5 x 3 pixels is outside its picture of 8 x 6"),
        ((1, 1, 0, 3), r"train1\.png: the box 'hat' at 1, 1 of 0 x 3 pixels has no area"),
        (
            (1, 1, 2),
            r"annotation 2: a bbox must be left, top, width and height in pixels, got \[1, 1, 2\]$",
        ),
        ("oops", r"annotation 2: a bbox must be left, top, width and height in pixels, got oops$"),
        ((2, 2, 4, "x"), r"annotation 2: a bbox must be left, .* got \[2, 2, 4, 'x'\]$"),
        ((2, 2, 4, True), r"annotation 2: a bbox must be left, .* got \[2, 2, 4, True\]$"),
        ((2, 2, 4, math.nan), r"annotation 2: a bbox must be left, .* got \[2, 2, 4, nan\]$"),
        (None, r"annotation 2: a bbox must be left, .* got None$"),
    ],
)
def test_a_box_that_cannot_be_is_named_with_its_picture(tmp_path: Path, bbox: object, message: str) -> None:
    coco(tmp_path / "train.json", tmp_path, {"bbox": bbox})
    with pytest.raises(UserError, match=rf"train\.json: {message}"):
        detection(tmp_path, "train.json")


@pytest.mark.parametrize("name", ["image_id", "category_id", "bbox"])
def test_an_annotation_without_an_entry_is_named(tmp_path: Path, name: str) -> None:
    coco(tmp_path / "train.json", tmp_path)
    content = json.loads((tmp_path / "train.json").read_bytes())
    del content["annotations"][4][name]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"train\.json: annotation 5: has no {name}$"):
        detection(tmp_path, "train.json")
    content["annotations"][4] = 7
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 5: must have image_id, category_id and bbox, got 7$"):
        detection(tmp_path, "train.json")


def test_a_box_in_a_table_is_four_numbers(tmp_path: Path) -> None:
    write(tmp_path / "0.png", picture(0))
    write(
        tmp_path / "a.jsonl", json.dumps({"image": "0.png", "boxes": [{"label": "cup", "bbox": [1, 1, 2]}]})
    )
    with pytest.raises(
        UserError, match=r"row 1: a bbox must be left, top, width and height in pixels, got \["
    ):
        detection(tmp_path, "a.jsonl")


def test_a_picture_that_coco_names_must_be_there(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path)
    (tmp_path / "train4.png").unlink()
    with pytest.raises(UserError, match=r"train\.json: the picture train4\.png is in none of"):
        detection(tmp_path, "train.json")


def test_boxes_beside_pictures_in_a_table(tmp_path: Path) -> None:
    for row in range(20):
        write(tmp_path / f"{row}.png", picture(row))
    both = ({"bbox": [[1, 1, 2, 2]], "category": ["cup"]}, {"bbox": [[0, 0, 1, 1]], "category": ["hat"]})
    rows = [{"file_name": f"{row}.png", "boxes": both[row % 2]} for row in range(20)]
    write(tmp_path / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert detection(tmp_path, "metadata.jsonl").classes == ("cup", "hat")
