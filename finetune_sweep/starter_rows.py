"""What the first rows of somebody's data suggest: the task, and which columns are for what."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError
from finetune_sweep.starter_table import (
    MOST_NUMBERS,
    SUFFIXES,
    Column,
    Rows,
    by_name,
    columns_of,
    is_number,
    peek,
    peeked_file,
)

_TEXT_NAMES: Final = (
    *("text", "sentence", "review", "content", "body", "message", "comment", "tweet", "document", "abstract"),
    *("question", "utterance", "description", "title"),
)
_LABEL_NAMES: Final = (
    *("label", "class", "category", "sentiment", "stars", "rating", "labels", "target", "topic", "intent"),
    *("emotion", "tag"),
)
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
    if table is not None and table.suffix.lower() in SUFFIXES:
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
    columns = columns_of(rows)
    lists = [column for column in columns if column.is_lists]
    words = [column for column in lists if column.is_texts]
    tags = by_name(lists, _TAG_NAMES)
    tokens = by_name([column for column in words if column is not tags], _WORD_NAMES)
    if tokens is not None and tags is not None:
        return Guess(
            "token-classification", _unless_so_named("tokens", tokens) | _unless_so_named("tags", tags)
        )
    texts = [column for column in columns if column.could_be_text]
    labels = by_name(words, _LIST_NAMES)
    if labels is None or not texts:
        return None
    text = by_name(texts, _TEXT_NAMES) or max(texts, key=lambda column: column.mean_length)
    return Guess("text-tagging", _unless_so_named("text", text) | _unless_so_named("labels", labels))


def _of_pictures(rows: Rows, file: Path) -> Guess | None:
    """What a table is for in which a column names pictures."""
    from finetune_sweep.train.source import PICTURES

    columns = columns_of(rows)
    named = [c for c in columns if c.is_plain and c.values and all(_ends(v, PICTURES) for v in c.values)]
    if not named:
        return None
    picture = by_name(named, ("image", "file_name")) or named[0]
    others = [column for column in columns if column is not picture]
    found: dict[str, str | int] = {} if picture.name in {"image", "file_name"} else {"image": picture.name}
    label = by_name([column for column in others if column.could_be_label], _LABEL_NAMES)
    if label is not None:
        return Guess("image-classification", found | _unless_so_named("label", label))
    labels = by_name([column for column in others if column.is_lists and column.is_texts], _LIST_NAMES)
    if labels is not None:
        return Guess("image-tagging", found | _unless_so_named("labels", labels))
    texts = [column for column in others if column.could_be_text]
    caption = by_name(texts, _CAPTION_NAMES) or max(texts, key=lambda c: c.mean_length, default=None)
    if caption is None:
        listed = ", ".join(column.name for column in columns)
        raise UserError(
            f"{file}: {picture.name!r} names pictures, but no column holds a text or a class; it has {listed}"
        )
    return Guess("image-captioning", found | _unless_so_named("text", caption))


def _ends(text: str, endings: Collection[str]) -> bool:
    return Path(text).suffix.lower() in endings


def _unless_so_named(name: str, column: Column) -> dict[str, str | int]:
    return {} if column.name == name else {name: column.name}


def guess_columns(rows: Rows, file: Path) -> dict[str, str | int]:
    """The columns that hold the text and the label: by name, else by shape.

    Raises:
        UserError: There are none, the labels are measurements, or there is one class.
    """
    columns = columns_of(rows)
    listed = f"it has {', '.join(column.name for column in columns)}"
    named = by_name([column for column in columns if column.is_plain], _LABEL_NAMES)
    texts = [column for column in columns if column.could_be_text and column != named]
    text = by_name(texts, _TEXT_NAMES) or max(texts, key=lambda column: column.mean_length, default=None)
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


def _other_task(columns: Sequence[Column]) -> str:
    """The task that the names of columns fit, which is not guessed: such names are of other data, too."""
    for task, (ours, theirs) in _PAIRS.items():
        plain = [column for column in columns if column.is_plain and column.values]
        numbers = [column for column in plain if column.is_numeric]
        second = by_name(numbers if "number" in task else [c for c in plain if c not in numbers], theirs)
        first = by_name([column for column in plain if column not in (*numbers, second)], ours)
        if first is not None and second is not None:
            name, _, names = task.partition(": ")
            left, _, right = names.partition(", ")
            return f"; for `task: {name}` write `columns: {{{left}: {first.name}, {right}: {second.name}}}`"
    return ""


def _check_label(column: Column, file: Path) -> None:
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
    if len(classes) > MOST_NUMBERS and all(map(is_number, classes)):
        raise UserError(
            f"{column!r} has {len(classes):,} different numbers: that is regression (`task: text-regression` with"
            f" `columns: {{number: {column}}}`), text-classification takes up to {MOST_NUMBERS} of them as classes"
        )
