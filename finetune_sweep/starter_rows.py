"""The first rows of somebody's data, and what they suggest: the task, and which columns are for what."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError

_TEXT_NAMES: Final = (
    *("text", "sentence", "review", "content", "body", "message", "comment", "tweet", "document", "abstract"),
    *("question", "utterance", "description", "title"),
)
_LABEL_NAMES: Final = (
    *("label", "class", "category", "sentiment", "stars", "rating", "labels", "target", "topic", "intent"),
    *("emotion", "tag"),
)
_SUFFIXES: Final = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}
_WORD_NAMES: Final = ("tokens", "words")
_TAG_NAMES: Final = ("tags", "ner_tags", "pos_tags", "tag", "ner", "pos", "labels")
_LIST_NAMES: Final = ("labels", "tags", "classes", "categories", "label")
_PAIRS: Final[Mapping[str, tuple[Sequence[str], Sequence[str]]]] = {
    "causal-lm: prompt, text": (("prompt", "instruction"), ("completion", "response", "output", "answer")),
    "text-to-text: text, target": (
        (*_TEXT_NAMES, "article", "source", "input", "dialogue"),
        ("summary", "highlights", "target", "answer", "translation", "output", "headline", "title"),
    ),
    "text-regression: text, number": (_TEXT_NAMES, ("score", "similarity", "number", "value", "price")),
}
"""What columns of these names may be for, and what the task calls them: said where no column is a class."""
_CAPTION_NAMES: Final = ("text", "caption", "sentence", "description", "title", "name")
_LOOKED_AT: Final = 20_000
_MOST_NUMBERS: Final = 50

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Guess:
    """What data that are no texts with classes seem to be for.

    Args:
        task: A name of `TASKS`.
        columns: What the data call the task's columns, where they call them otherwise.
    """

    task: str
    columns: Mapping[str, str | int] = field(default_factory=dict)


def guess_task(data: Path) -> Guess | None:
    """Tells pictures, boxes and tagged words by files, and tables of pictures by their first rows.

    Returns:
        None for a table of texts, or folders of them.

    Raises:
        UserError: A table cannot be read, or it names pictures and nothing to say of them.
    """
    from finetune_sweep.train import coco, conll
    from finetune_sweep.train.source import PICTURES

    patterns = ("*", "*/*", "*/*/*")
    files = [data] if data.is_file() else [file for each in patterns for file in sorted(data.glob(each))]
    endings = {file.suffix.lower() for file in files if file.is_file()}
    if endings & set(conll.ENDINGS) or any(_is_plain_conll(file) for file in files):
        return Guess("token-classification")
    table = peeked_file(data)
    if table is not None and coco.is_coco(table):
        return Guess("object-detection")
    if table is not None and table.suffix.lower() in _SUFFIXES:
        rows = peek(table)
        return _of_pictures(rows, table) or _of_lists(rows)
    return Guess("image-classification") if endings & PICTURES else None


def _is_plain_conll(file: Path) -> bool:
    """Whether a text file, named for a split, has the same number of fields, two or more, in each line of words."""
    from finetune_sweep.train import conll

    if file.suffix.lower() != conll.PLAIN or not file.stem.lower().startswith("train"):
        return False
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[:1000]
    widths = {len(line.split()) for line in lines if line.strip()}
    return len(widths) == 1 and min(widths) > 1 and any(not line.strip() for line in lines)


def _of_lists(rows: Rows) -> Guess | None:
    """What a table is for that has lists: words and their tags, or the classes of a text."""
    columns = _columns(rows)
    lists = [column for column in columns if column.is_lists]
    words = [column for column in lists if column.is_texts]
    tags = _by_name(lists, _TAG_NAMES)
    tokens = _by_name([column for column in words if column is not tags], _WORD_NAMES)
    if tokens is not None and tags is not None:
        return Guess(
            "token-classification", _unless_so_named("tokens", tokens) | _unless_so_named("tags", tags)
        )
    texts = [column for column in columns if column.could_be_text]
    labels = _by_name(words, _LIST_NAMES)
    if labels is None or not texts:
        return None
    text = _by_name(texts, _TEXT_NAMES) or max(texts, key=lambda column: column.mean_length)
    return Guess("text-tagging", _unless_so_named("text", text) | _unless_so_named("labels", labels))


def _of_pictures(rows: Rows, file: Path) -> Guess | None:
    """What a table is for in which a column names pictures."""
    from finetune_sweep.train.source import PICTURES

    columns = _columns(rows)
    named = [c for c in columns if c.is_plain and c.values and all(_ends(v, PICTURES) for v in c.values)]
    if not named:
        return None
    picture = _by_name(named, ("image", "file_name")) or named[0]
    others = [column for column in columns if column is not picture]
    found: dict[str, str | int] = {} if picture.name in {"image", "file_name"} else {"image": picture.name}
    label = _by_name([column for column in others if column.could_be_label], _LABEL_NAMES)
    if label is not None:
        return Guess("image-classification", found | _unless_so_named("label", label))
    labels = _by_name([column for column in others if column.is_lists and column.is_texts], _LIST_NAMES)
    if labels is not None:
        return Guess("image-tagging", found | _unless_so_named("labels", labels))
    texts = [column for column in others if column.could_be_text]
    caption = _by_name(texts, _CAPTION_NAMES) or max(texts, key=lambda c: c.mean_length, default=None)
    if caption is None:
        listed = ", ".join(column.name for column in columns)
        raise UserError(
            f"{file}: {picture.name!r} names pictures, but no column holds a text or a class; it has {listed}"
        )
    return Guess("image-captioning", found | _unless_so_named("text", caption))


def _ends(text: str, endings: Collection[str]) -> bool:
    return Path(text).suffix.lower() in endings


def _unless_so_named(name: str, column: _Column) -> dict[str, str | int]:
    return {} if column.name == name else {name: column.name}


def peeked_file(data: Path) -> Path | None:
    """The file whose rows are looked at; None for a folder with one folder of texts a class."""
    if data.is_file():
        return data
    files = [
        file
        for pattern in ("*", "*/*")
        for file in sorted(data.glob(pattern))
        if file.suffix.lower() in _SUFFIXES
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
            f"{file}: must be one of {', '.join(sorted(_SUFFIXES))}, got {file.suffix or 'no ending'}"
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
class _Column:
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
        return sum(map(len, self.values)) / max(len(self.values), 1)

    @property
    def distinct(self) -> int:
        return len(set(self.values))

    @property
    def is_numeric(self) -> bool:
        return all(map(_is_number, self.values))

    @property
    def could_be_text(self) -> bool:
        return self.is_plain and bool(self.values) and not self.is_numeric

    @property
    def could_be_label(self) -> bool:
        most = _MOST_NUMBERS if self.is_numeric else len(self.values) / 2
        return self.is_plain and 2 <= self.distinct <= most and self.mean_length < 50


def guess_columns(rows: Rows, file: Path) -> dict[str, str | int]:
    """The columns that hold the text and the label: by name, else by shape.

    Raises:
        UserError: There are none, the labels are measurements, or there is one class.
    """
    names = dict.fromkeys(name for row in rows[:1000] for name in row if name.strip())
    columns = [_column(name, rows) for name in names]
    listed = f"it has {', '.join(column.name for column in columns)}"
    named = _by_name([column for column in columns if column.is_plain], _LABEL_NAMES)
    texts = [column for column in columns if column.could_be_text and column != named]
    text = _by_name(texts, _TEXT_NAMES) or max(texts, key=lambda column: column.mean_length, default=None)
    if text is None:
        raise UserError(f"{file}: no column holds texts; {listed}")
    if named is not None:
        _check_label(named, file)
        return {"text": text.name, "label": named.name}
    labels = [column for column in columns if column.could_be_label and column != text]
    if not labels:
        raise UserError(
            f"{file}: no column looks like a label (a few values that repeat); {listed}{_other_task(columns)}"
        )
    return {"text": text.name, "label": min(labels, key=lambda column: column.distinct).name}


def _other_task(columns: Sequence[_Column]) -> str:
    """The task that the names of columns fit, which is not guessed: such names are of other data, too."""
    for task, (ours, theirs) in _PAIRS.items():
        plain = [column for column in columns if column.is_plain and column.values]
        numbers = [column for column in plain if column.is_numeric]
        second = _by_name(numbers if "number" in task else [c for c in plain if c not in numbers], theirs)
        first = _by_name([column for column in plain if column not in (*numbers, second)], ours)
        if first is not None and second is not None:
            name, _, names = task.partition(": ")
            left, _, right = names.partition(", ")
            return f"; for `task: {name}` write `columns: {{{left}: {first.name}, {right}: {second.name}}}`"
    return ""


def _columns(rows: Rows) -> list[_Column]:
    return [_column(name, rows) for name in dict.fromkeys(name for row in rows[:1000] for name in row)]


def _column(name: str, rows: Rows) -> _Column:
    present = [value for row in rows if (value := row.get(name)) is not None and value != ""]
    is_plain = all(isinstance(value, str | int | float) for value in present)
    lists = [value for value in present if isinstance(value, list)]
    is_lists = bool(lists) and len(lists) == len(present)
    is_texts = is_lists and all(isinstance(entry, str) for value in lists for entry in value)
    return _Column(name, [str(value).strip() for value in present], is_plain, is_lists, is_texts)


def _by_name(columns: Sequence[_Column], names: Sequence[str]) -> _Column | None:
    """The column with one of these names, else with one of them as a word of its own; earlier names first."""
    for words in (lambda name: [name.lower()], lambda name: re.split(r"[^a-z]+", name.lower())):
        for wanted in names:
            for column in columns:
                if (column.is_plain or column.is_lists) and wanted in words(column.name):
                    return column
    return None


def _check_label(column: _Column, file: Path) -> None:
    if column.is_numeric:
        refuse_regression(set(column.values), column.name)
    if column.distinct < 2:
        found = f"only {column.values[0]!r}" if column.values else "nothing"
        raise UserError(f"{file}: classification needs at least two classes, {column.name!r} holds {found}")
    if not column.could_be_label:
        raise UserError(
            f"{file}: {column.name!r} has {column.distinct:,} values in {len(column.values):,} rows,"
            " these are no classes"
        )


def refuse_regression(classes: Sequence[str] | set[str], column: str) -> None:
    """Refuses numbers that measure something.

    Raises:
        UserError: There are too many for classes.
    """
    if len(classes) > _MOST_NUMBERS and all(map(_is_number, classes)):
        raise UserError(
            f"{column!r} has {len(classes):,} different numbers: that is regression (`task: text-regression` with"
            f" `columns: {{number: {column}}}`), text-classification takes up to {_MOST_NUMBERS} of them as classes"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
