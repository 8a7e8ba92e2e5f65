"""Data sets that come in packages, as files that a sweep can read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict
from xml.etree import ElementTree as ET

ADDRESSES = "usaddress-0.5.16/training/labeled.xml"
DIGITS = "mnist_5k.csv.gz"
WORDS = "package/index.js"
ASPECTS = ("challenge", "approach", "outcome")
_PAPERS = {"train": "train", "validation": "val", "test": "test"}
_WORD = re.compile(r"""\s*"?(?P<word>[a-z']+)"?: "(?P<phonemes>[^"]+)",?""")
_SIDE = 28


def convert_addresses(source: Path, target: Path) -> None:
    """Writes the words of each address with their labels, which are the names of the elements they stand in."""
    lines = []
    for address in ET.parse(source / ADDRESSES).getroot():  # noqa: S314 - a file of known sha256
        words = [(word, part.tag) for part in address for word in (part.text or "").split()]
        row = {"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (target / "train.jsonl").write_text("".join(lines), encoding="utf-8")


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
    """What is read of a paper of aclsum: sentences by section, a summary by aspect, and 0 or 1 for each by aspect."""

    sentences: dict[str, list[str]]
    summary: dict[str, str]
    highlights: dict[str, dict[str, list[int]]]


def convert_acl_aspects(source: Path, target: Path) -> None:
    """Writes the sentences that carry exactly one mark, in the order of papers, sections and sentences."""
    for split, name in _PAPERS.items():
        papers = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for paper in papers for row in _marked_sentences(json.loads(paper))]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _marked_sentences(paper: Paper) -> Iterator[dict[str, str]]:
    for section, sentences in paper["sentences"].items():
        for row, sentence in enumerate(sentences):
            marks = [aspect for aspect in ASPECTS if paper["highlights"][aspect][section][row] == 1]
            if len(marks) == 1:
                yield {"sentence": sentence, "aspect": marks[0]}


def convert_acl_summaries(source: Path, target: Path) -> None:
    """Writes three rows a paper: an aspect with the paper's sentences, and the sentence that sums it up."""
    for split, name in _PAPERS.items():
        lines = []
        for line in (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            paper: Paper = json.loads(line)
            whole = " ".join(sentence for section in paper["sentences"].values() for sentence in section)
            for aspect in ASPECTS:
                row = {"paper": f"{aspect}: {whole}", "summary": paper["summary"][aspect]}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def convert_pronunciations(source: Path, target: Path) -> None:
    """Writes words of letters and apostrophes with their phonemes in ARPAbet, without the digits that mark stress."""
    lines = []
    for line in (source / WORDS).read_text(encoding="utf-8").splitlines():
        found = _WORD.fullmatch(line)
        if found:
            phonemes = re.sub(r"\d", "", found["phonemes"].partition("#")[0])  # what follows is a remark
            row = {"word": found["word"], "phonemes": phonemes.strip()}
            lines.append(json.dumps(row) + "\n")
    (target / "train.jsonl").write_text("".join(lines), encoding="utf-8")
