"""Data sets that come in packages, as files that a sweep can read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict
from xml.etree import ElementTree as ET

ADDRESSES = "usaddress-0.5.16/training/labeled.xml"
DIGITS = "mnist_5k.csv.gz"
WORDS = "package/index.js"
ASPECTS = ("challenge", "approach", "outcome")
_WORD = re.compile(r"""\s*"?(?P<word>[a-z']+)"?: "(?P<phonemes>[^"]+)",?""")
_SIDE = 28


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
    from PIL import Image
    from pyarrow import parquet

    pictures, labels = [], []
    with gzip.open(source / DIGITS, "rt", encoding="ascii") as lines:
        for *pixels, label in csv.reader(lines):
            content = io.BytesIO()
            values = bytes(int(float(value)) for value in pixels)
            Image.frombytes("L", (_SIDE, _SIDE), values).save(content, "png")
            pictures.append(content.getvalue())
            labels.append(str(int(float(label))))
    parquet.write_table(pa.table({"image": pictures, "label": labels}), target / "train.parquet")


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
