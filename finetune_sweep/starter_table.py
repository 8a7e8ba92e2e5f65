"""The first rows of a file, and what they say about its columns."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError

SUFFIXES: Final = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}
_LOOKED_AT: Final = 20_000
MOST_NUMBERS: Final = 50
"""Different numbers that are taken for classes; more of them measure something."""

Rows = Sequence[Mapping[str, object]]


def peeked_file(data: Path) -> Path | None:
    """The file whose rows are looked at; None for a folder with one folder of texts a class."""
    if data.is_file():
        return data
    files = [
        file
        for pattern in ("*", "*/*")
        for file in sorted(data.glob(pattern))
        if file.suffix.lower() in SUFFIXES
    ]
    training = [file for file in files if str(file.relative_to(data)).lower().startswith("train")]
    return next(iter([*training, *files]), None)


def peek(file: Path) -> Rows:
    """The first rows of a file.

    Raises:
        UserError: It cannot be read as a table.
    """
    from finetune_sweep.train.tables import reader_of

    readers = {"csv": _csv_rows, "json": _json_rows, "parquet": _parquet_rows}
    reader = reader_of(file)
    if reader is None:
        raise UserError(
            f"{file}: must be one of {', '.join(sorted(SUFFIXES))}, got {file.suffix or 'no ending'}"
        )
    try:
        rows = list(itertools.islice(readers[reader](file), _LOOKED_AT))
    except (OSError, ValueError, csv.Error) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: is no table that can be read: {first}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: must hold one object a row, with the same keys; got {str(rows[0])[:60]}")
    return rows


def _csv_rows(file: Path) -> Iterator[Mapping[str, object]]:
    from finetune_sweep.train.tables import csv_rows, separator_of

    rows = csv_rows(file)
    header = next(rows, [])
    if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), None)):
        raise ValueError(
            f"its columns are separated by {other!r}, a {file.suffix} file has {separator_of(file)!r}"
        )
    for row in rows:
        yield dict(itertools.zip_longest(header, row[: len(header)]))


def _json_rows(file: Path) -> Iterator[Mapping[str, object]]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix.lower() == ".json" and text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    yield from (json.loads(line) for line in text.splitlines() if line.strip())


def _parquet_rows(file: Path) -> Iterator[Mapping[str, object]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=100):
            for row in batch.to_pylist():
                yield {name: _without_bytes(value) for name, value in row.items()}


def _without_bytes(value: object) -> object:
    """A cell; of a picture only a name, as thousands of them are looked at."""
    is_picture = isinstance(value, bytes) or (
        isinstance(value, dict) and isinstance(value.get("bytes"), bytes)
    )
    return "inside.png" if is_picture else value


@dataclass(frozen=True)
class Column:
    """What the first rows say about a column; `values` are those that are not missing, as texts.

    `is_lists` where each of them is a list, and `is_texts` where all that is in these is text.
    """

    name: str
    values: Sequence[str]
    is_plain: bool
    is_lists: bool = False
    is_texts: bool = False

    @property
    def mean_length(self) -> float:
        """Characters of a value."""
        return sum(map(len, self.values)) / max(len(self.values), 1)

    @property
    def distinct(self) -> int:
        """Different values."""
        return len(set(self.values))

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(map(is_number, self.values))

    @property
    def could_be_text(self) -> bool:
        """Whether a model can read it."""
        return self.is_plain and bool(self.values) and not self.is_numeric

    @property
    def could_be_label(self) -> bool:
        """Whether its values repeat, as classes do."""
        most = MOST_NUMBERS if self.is_numeric else len(self.values) / 2
        return self.is_plain and 2 <= self.distinct <= most and self.mean_length < 50


def columns_of(rows: Rows) -> list[Column]:
    """The columns that have a name, in their order."""
    names = dict.fromkeys(name for row in rows[:1000] for name in row if name.strip())
    return [_column(name, rows) for name in names]


def _column(name: str, rows: Rows) -> Column:
    present = [value for row in rows if (value := row.get(name)) is not None and value != ""]
    is_plain = all(isinstance(value, str | int | float) for value in present)
    lists = [value for value in present if isinstance(value, list)]
    is_lists = bool(lists) and len(lists) == len(present)
    is_texts = is_lists and all(isinstance(entry, str) for value in lists for entry in value)
    return Column(name, [str(value).strip() for value in present], is_plain, is_lists, is_texts)


def by_name(columns: Sequence[Column], names: Sequence[str]) -> Column | None:
    """The column with one of these names, else with one of them as a word of its own; earlier names first."""
    for words in (lambda name: [name.lower()], lambda name: re.split(r"[^a-z]+", name.lower())):
        for wanted in names:
            for column in columns:
                if (column.is_plain or column.is_lists) and wanted in words(column.name):
                    return column
    return None


def is_number(text: str) -> bool:
    """Whether a text is written as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
