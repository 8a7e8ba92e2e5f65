"""Data sets that come in packages, as files that a sweep can read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from PIL import Image

ADDRESSES = "usaddress-0.5.16/training/labeled.xml"
DIGITS = "mnist_5k.csv.gz"
WORDS = "package/index.js"
EMOJI = "package/emoji.json"
EMOJI_SHEET = "package/img/google/sheets/64.png"
ASPECTS = ("challenge", "approach", "outcome")
_WORD = re.compile(r"""\s*"?(?P<word>[a-z']+)"?: "(?P<phonemes>[^"]+)",?""")
_EMOJI_SIDE = 64  # with a border of one pixel on the sheet
_ANYONE = frozenset({"1F468", "1F469", "1F9D1", "200D", "2640", "2642", "FE0F", "27A1"})
"""Code points that say who does something (man, woman, person), which way they face, or join the others."""
_SIDE = 28
_CANVAS = 48
_INK = 40  # what is darker is the background around a digit
_TRIES = 20
_SCENES = {"train": (0, 4000, 2000), "validation": (4000, 4500, 200), "test": (4500, 5000, 200)}
"""From which to which digit, and how many scenes of them."""


def convert_addresses(source: Path, target: Path) -> None:
    """Writes the words of each address with their labels, which are the names of the elements they stand in."""
    rows = []
    for address in ET.parse(source / ADDRESSES).getroot():  # noqa: S314 - a file of known sha256
        words = [(word, part.tag) for part in address for word in (part.text or "").split()]
        rows.append({"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]})
    _write(rows, target / "train.jsonl")


def convert_digits(source: Path, target: Path) -> None:
    """Writes the pictures as png of 28 x 28 pixels in one grey channel, with the digit as text."""
    import pyarrow as pa
    from pyarrow import parquet

    digits = list(_digits(source))
    table = {"image": [_png(picture) for picture, _ in digits], "label": [label for _, label in digits]}
    parquet.write_table(pa.table(table), target / "train.parquet")


def _digits(source: Path) -> Iterator[tuple[Image.Image, str]]:
    from PIL import Image

    with gzip.open(source / DIGITS, "rt", encoding="ascii") as lines:
        for *pixels, label in csv.reader(lines):
            values = bytes(int(float(value)) for value in pixels)
            yield Image.frombytes("L", (_SIDE, _SIDE), values), str(int(float(label)))


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


class Drawn(TypedDict):
    """A box of a scene: left, top, width and height in pixels."""

    label: str
    bbox: list[int]


def convert_scenes(source: Path, target: Path) -> None:
    """Writes scenes of one or two digits at places drawn by one seed, with the boxes that hold them tightly.

    No digit stands in scenes of two splits.
    """
    import pyarrow as pa
    from pyarrow import parquet

    numbers = random.Random(0)
    digits = sorted(_digits(source), key=lambda _: numbers.random())
    for split, (first, last, count) in _SCENES.items():
        scenes = [_scene(digits[first:last], numbers) for _ in range(count)]
        table = {"image": [_png(picture) for picture, _ in scenes], "boxes": [boxes for _, boxes in scenes]}
        parquet.write_table(pa.table(table), target / f"{split}.parquet")


def _scene(
    digits: Sequence[tuple[Image.Image, str]], numbers: random.Random
) -> tuple[Image.Image, list[Drawn]]:
    from PIL import Image

    whole, boxes = Image.new("L", (_CANVAS, _CANVAS)), list[Drawn]()
    for _ in range(1 + int(2 * numbers.random())):
        picture, label = digits[int(len(digits) * numbers.random())]
        tight = picture.crop(picture.point([255 * (value > _INK) for value in range(256)]).getbbox())
        for _ in range(_TRIES):
            left, top = (int((_CANVAS - side + 1) * numbers.random()) for side in tight.size)
            if all(_apart((left, top, *tight.size), box["bbox"]) for box in boxes):
                whole.paste(tight, (left, top))
                boxes.append({"label": label, "bbox": [left, top, *tight.size]})
                break
    return whole, boxes


def _apart(one: Sequence[int], other: Sequence[int]) -> bool:
    return any(a[axis] + a[axis + 2] <= b[axis] for axis in (0, 1) for a, b in ((one, other), (other, one)))


class Paper(TypedDict):
    """Of a paper of aclsum: sentences by section, summaries by aspect, and 0 or 1 for each sentence by aspect."""

    title: str
    sentences: dict[str, list[str]]
    summary: dict[str, str]
    highlights: dict[str, dict[str, list[int]]]


def convert_acl_aspects(source: Path, target: Path) -> None:
    """Writes the sentences that carry exactly one mark, in the order of papers, sections and sentences."""
    for split, papers in _papers(source):
        _write([row for paper in papers for row in _marked_sentences(paper)], target / f"{split}.jsonl")


def _papers(source: Path) -> Iterator[tuple[str, list[Paper]]]:
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        lines = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        yield split, [json.loads(line) for line in lines]


def _write(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


def _marked_sentences(paper: Paper) -> Iterator[dict[str, str]]:
    for section, sentences in paper["sentences"].items():
        for row, sentence in enumerate(sentences):
            marks = [aspect for aspect in ASPECTS if paper["highlights"][aspect][section][row] == 1]
            if len(marks) == 1:
                yield {"sentence": sentence, "aspect": marks[0]}


def convert_acl_summaries(source: Path, target: Path) -> None:
    """Writes three rows a paper: an aspect with the paper's sentences, and the sentence that sums it up."""
    for split, papers in _papers(source):
        rows = []
        for paper in papers:
            whole = " ".join(sentence for section in paper["sentences"].values() for sentence in section)
            rows += [
                {"paper": f"{aspect}: {whole}", "summary": paper["summary"][aspect]} for aspect in ASPECTS
            ]
        _write(rows, target / f"{split}.jsonl")


def convert_acl_pairs(source: Path, target: Path) -> None:
    """Writes six rows a paper: its title with each of its three summaries, and with those of the paper before it."""
    for split, papers in _papers(source):
        rows = []
        for place, paper in enumerate(papers):
            for label, other in (("same", paper), ("other", papers[place - 1])):
                rows += [
                    {"title": paper["title"], "summary": other["summary"][aspect], "papers": label}
                    for aspect in ASPECTS
                ]
        _write(rows, target / f"{split}.jsonl")


def convert_acl_places(source: Path, target: Path) -> None:
    """Writes the sentences of each abstract with their place in it, from 0 for the first to 1 for the last."""
    for split, papers in _papers(source):
        abstracts = [paper["sentences"]["abstract"] for paper in papers]
        rows = [
            {"sentence": sentence, "place": round(place / (len(abstract) - 1), 4)}
            for abstract in abstracts
            if len(abstract) > 1
            for place, sentence in enumerate(abstract)
        ]
        _write(rows, target / f"{split}.jsonl")


def convert_pronunciations(source: Path, target: Path) -> None:
    """Writes words of letters and apostrophes with their phonemes in ARPAbet, without the digits that mark stress."""
    rows = []
    for line in (source / WORDS).read_text(encoding="utf-8").splitlines():
        found = _WORD.fullmatch(line)
        if found:
            phonemes = re.sub(r"\d", "", found["phonemes"].partition("#")[0])  # what follows is a remark
            rows.append({"word": found["word"], "phonemes": phonemes.strip()})
    _write(rows, target / "train.jsonl")


def convert_emoji(source: Path, target: Path) -> None:
    """Writes each emoji as png of 64 x 64 pixels on white, with its name in lower case.

    Variants of one, such as a man and a woman at the same sport, and emoji with the same picture have one `group`.
    """
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    emoji = json.loads((source / EMOJI).read_bytes())
    with Image.open(source / EMOJI_SHEET) as opened:
        sheet = Image.new("RGBA", opened.size, "white")
        sheet.alpha_composite(opened.convert("RGBA"))
    table: dict[str, list[object]] = {"image": [], "name": [], "group": []}
    groups: dict[bytes, str] = {}
    for each in emoji:
        left, top = ((_EMOJI_SIDE + 2) * each[f"sheet_{axis}"] + 1 for axis in "xy")
        picture = _png(sheet.crop((left, top, left + _EMOJI_SIDE, top + _EMOJI_SIDE)).convert("RGB"))
        table["image"].append(picture)
        table["name"].append(each["name"].lower())
        table["group"].append(groups.setdefault(picture, _emoji_group(each["name"], each["unified"])))
    parquet.write_table(pa.table(table), target / "train.parquet")


def _emoji_group(name: str, code_points: str) -> str:
    if name.startswith("FAMILY"):
        return "family"
    return "-".join(code for code in code_points.split("-") if code not in _ANYONE) or "person"
