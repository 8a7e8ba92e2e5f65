"""Data sets that come in packages, as files that a sweep can read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

ADDRESSES = "usaddress-0.5.16/training/labeled.xml"
DIGITS = "mnist_5k.csv.gz"
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
