"""From a source to clean, split and tokenised rows, with a fingerprint of what they are.

The steps, in order: find the files of each split, read them, take the task's columns, tell hidden test
labels, clean each split, cut the splits that are missing, drop leaked training rows, limit. The result is
kept in the cache under a hash of the files' content and of the settings, so that a second call only reads it.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar, cast

from finetune_sweep import examples
from finetune_sweep.errors import Problem, StorageError, UserError, nearest
from finetune_sweep.layout import check_folder, explained, folder_aside, sha256
from finetune_sweep.tasks.contract import TOKENIZER_FILES, Encoded, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from datasets import Dataset

    from finetune_sweep.spec import Clean, Data, Limit, Split
    from finetune_sweep.tasks.contract import Task

SplitName = Literal["train", "validation", "test"]
Item = TypeVar("Item", int, str)

_FORMAT: Final = 1  # of the copies in the cache; raised when the steps below mean something else
_ALIASES: Final[Mapping[str, SplitName]] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "valid": "validation",
    "testa": "validation",
    "test": "test",
    "testb": "test",
    "eval": "test",
}
_READERS: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_SHARD = re.compile(r"-\d+-of-\d+$")
_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?")
_TOKENIZER_SETTINGS: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Prepared:
    """The rows of a sweep.

    Args:
        splits: `train`, `validation` and perhaps `test`; the columns have the task's names, labels are texts.
        classes: The task's classes in their order.
        fingerprints: By split, the sha256 over its rows and labels in order.
        fingerprint: Of training and validation together: what enters a trial's key.
        report: What cleaning did, one line each.
        notes: What was decided about the splits, one line each, for the model card.
    """

    splits: Mapping[str, Dataset]
    classes: tuple[str, ...]
    fingerprints: Mapping[str, str]
    fingerprint: str
    report: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(data: Data, task: Task, base: Path, cache: Path) -> Prepared:
    """Reads, cleans and splits the data, or finds them in the cache.

    Args:
        data: The settings; `max_length` has no effect here.
        task: What says which columns there are.
        base: The folder that relative paths are relative to.
        cache: Where copies are kept.

    Raises:
        UserError: The source is not there or not readable, a column or a label is missing, a class is in
            validation or test alone, or too little is left to train and validate on.
    """
    _check_columns(data, task)
    parts = _locate(data, base, cache)
    settings = data.model_dump(mode="json", include={"columns", "split", "limit", "clean"})
    contents = {split: part.digest() for split, part in sorted(parts.items())}
    key = _sha256([_canonical([_FORMAT, task.name, settings, contents])])
    folder = cache / "data" / key
    with _sole_owner(folder):
        if not _is_sound(folder):
            with _scratch(cache) as scratch:
                rows = {split: _read(part, split, data, task, scratch) for split, part in parts.items()}
            splits, report, notes = _make_splits(rows, data, task)
            _save(splits, (report, notes), folder)
    return _load(folder, task)


def encode_split(
    prepared: Prepared, split: str, task: Task, folder: Path, max_length: int, cache: Path
) -> Encoded:
    """Tokenises a split, or finds it in the cache; the arrays are mapped into memory.

    Args:
        prepared: The rows.
        split: One of `prepared.splits`.
        task: What turns rows into numbers.
        folder: The model, whose tokenizer is used.
        max_length: Tokens after which an input is cut.
        cache: Where the arrays are kept, by content.

    Raises:
        UserError: The folder has no tokenizer, or the model takes fewer than `max_length` tokens.
    """
    _check_length(folder, max_length)
    files = [folder / name for name in (*TOKENIZER_FILES, *_TOKENIZER_SETTINGS)]
    used = [
        _FORMAT,
        task.name,
        prepared.fingerprints[split],
        list(prepared.classes),
        max_length,
        importlib.metadata.version("tokenizers"),
        {file.name: sha256(file) for file in files if file.is_file()},
    ]
    target = cache / "tokens" / _sha256([_canonical(used)])
    with _sole_owner(target):
        if not _is_sound(target):
            encoded = task.encode(
                prepared.splits[split], load_tokenizer(folder), prepared.classes, max_length
            )
            with folder_aside(target) as unfinished:
                encoded.save(unfinished)
    return Encoded.load(target)


# ------------------------------------------------------------------------------------- where the rows lie


@dataclass(frozen=True)
class _Files:
    """A split in files of one format, or in folders of `.txt` files named for their classes."""

    where: str
    files: tuple[Path, ...]
    by_class: bool = False

    def digest(self) -> str:
        """Returns a hash of the content, the format, and the classes that folders name."""
        return _sha256(
            f"{file.suffix} {file.parent.name if self.by_class else ''} {sha256(file)}\n".encode()
            for file in self.files
        )

    def read(self, scratch: Path) -> Dataset:
        """Reads all rows; `scratch` may be removed once they were used."""
        return _read_class_folders(self.files) if self.by_class else _read_files(self.files, scratch)


@dataclass(frozen=True)
class _Fetched:
    """A split of a hub data set, in the cache of `datasets`."""

    where: str
    rows: Dataset

    def digest(self) -> str:
        """Returns a hash of the rows and their types."""
        digest = hashlib.sha256(repr(self.rows.features).encode())
        for batch in self.rows.with_format("arrow").iter(batch_size=1000):
            digest.update(_canonical(batch.to_pylist(), default=repr))
        return digest.hexdigest()

    def read(self, scratch: Path) -> Dataset:  # noqa: ARG002  (as `_Files`)
        """Returns the rows."""
        return self.rows


_Part = _Files | _Fetched


def _locate(data: Data, base: Path, cache: Path) -> dict[SplitName, _Part]:
    source = data.source
    if data.files is not None:
        named = {
            cast("SplitName", split): base / Path(file).expanduser() for split, file in data.files.items()
        }
        return {split: _one_file(file) for split, file in named.items()}
    if source is None:
        raise UserError("data: needs `source` or `files`")
    if source.startswith("example:"):
        shipped = examples.data_files(source.removeprefix("example:"), cache).items()
        return {_ALIASES[split]: _Files(f"{source} ({split})", (file,)) for split, file in shipped}
    if source.startswith("hub:"):
        return _fetch(source.removeprefix("hub:"), cache)
    path = base / Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    return {"train": _one_file(path)}


def _one_file(file: Path) -> _Part:
    if file.is_dir():
        return _split_folder(file)
    if not file.is_file():
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"data: {file}: no such file or folder{nearest(file.name, beside)}")
    if file.suffix not in _READERS:
        raise UserError(
            f"data: {file}: must be one of {', '.join(_READERS)}, got {file.suffix or 'no ending'}"
        )
    return _Files(str(file), (file,))


def _in_folder(folder: Path) -> dict[SplitName, _Part]:
    """Finds splits by name, as files or as folders; else one file, or one folder a class."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    named: dict[SplitName, dict[str, list[Path]]] = {}
    for entry in entries:
        word = _SHARD.sub("", entry.stem if entry.is_file() else entry.name)
        if word.lower() in _ALIASES and (entry.is_dir() or entry.suffix in _READERS):
            as_one = word + (entry.suffix if entry.is_file() else "/")
            named.setdefault(_ALIASES[word.lower()], {}).setdefault(as_one, []).append(entry)
    for split, found in named.items():
        if len(found) > 1:
            raise UserError(f"data: {folder}: {' and '.join(found)} both are the {split} split; keep one")
    if named:
        if "train" not in named:
            raise UserError(f"data: {folder}: has {', '.join(named)} and no train")
        shards = {split: next(iter(found.values())) for split, found in named.items()}
        return {split: _files_or_folder(paths) for split, paths in shards.items()}
    return {"train": _split_folder(folder)}


def _files_or_folder(paths: Sequence[Path]) -> _Part:
    return _split_folder(paths[0]) if paths[0].is_dir() else _Files(str(paths[0]), tuple(paths))


def _split_folder(folder: Path) -> _Part:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in _READERS]
    texts = sorted(folder.glob("*/*.txt"))
    if texts and not files:
        return _Files(str(folder), tuple(texts), by_class=True)
    if not files:
        found = ", ".join(entry.name for entry in sorted(folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"data: {folder}: needs train, validation and test as files ({', '.join(_READERS)}) or folders,"
            f" one such file, or one folder of .txt files a class; it holds {found}"
        )
    if len({_SHARD.sub("", file.stem) + file.suffix for file in files}) > 1:
        raise UserError(
            f"data: {folder}: holds {', '.join(file.name for file in files[:10])}: name them train,"
            " validation and test, or say `files: {train: ...}`"
        )
    return _Files(str(files[0] if len(files) == 1 else folder), tuple(files))


def _fetch(reference: str, cache: Path) -> dict[SplitName, _Part]:
    """Fetches a data set from the hub, or finds it in the cache of `datasets`."""
    import datasets

    match = _HUB.fullmatch(reference)
    if match is None:
        raise UserError(f"data: 'hub:{reference}' must look like hub:ORG/NAME[:config][@revision]")
    try:
        with _quiet():
            loaded = datasets.load_dataset(
                match["name"], match["config"], revision=match["revision"], cache_dir=str(cache / "datasets")
            )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data: hub:{reference}: {_first_line(error)}") from error
    parts: dict[SplitName, _Part] = {}
    for name, rows in loaded.items():
        split = _ALIASES.get(name.lower())
        if split is not None and split not in parts:
            parts[split] = _Fetched(f"hub:{reference} ({name})", rows)
    if "train" not in parts:
        raise UserError(f"data: hub:{reference}: has no split named train, it has {', '.join(loaded)}")
    return parts


# ------------------------------------------------------------------------------------------------ reading


def _read_files(files: Sequence[Path], scratch: Path) -> Dataset:
    import datasets

    if not any(file.stat().st_size for file in files):
        raise UserError(f"{files[0]}: is empty")
    reader = _READERS[files[0].suffix]
    options: dict[str, object] = {}
    if reader == "csv":
        separator = "\t" if files[0].suffix == ".tsv" else ","
        header = _csv_header(files[0], separator)
        # All as text: no guess makes "None" a missing value, "007" a 7, or the labels of one chunk floats.
        features = datasets.Features(dict.fromkeys(header, datasets.Value("string")))
        options = {"sep": separator, "features": features, "keep_default_na": False}
    paths = [str(file) for file in files]
    try:
        with _quiet():
            return datasets.load_dataset(
                reader, data_files=paths, split="train", cache_dir=tempfile.mkdtemp(dir=scratch), **options
            )
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{files[0]}: cannot be read as {reader}: {_first_line(error)}") from error


def _csv_header(file: Path, separator: str) -> list[str]:
    """Returns the names of the columns.

    Raises:
        UserError: There are none, or the first row has more fields: pandas would shift them silently.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, delimiter=separator)
            header, first = next(rows, []), next(rows, [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as csv: {error}") from error
    if not first:
        raise UserError(f"{file}: has no rows; the first line must name the columns")
    if len(first) > len(header):
        raise UserError(f"{file}: row 1 has {len(first)} fields, the header {len(header)}: quote the texts")
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"{file}: the header names {repeated[0]!r} more than once")
    return header


def _read_class_folders(files: Sequence[Path]) -> Dataset:
    from datasets import Dataset

    texts: list[str] = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    return Dataset.from_dict({"text": texts, "label": [file.parent.name for file in files]})


@dataclass(frozen=True)
class _Rows:
    """Rows as texts, with the task's names for their columns; "" stands for what is missing."""

    where: str
    columns: Mapping[str, Sequence[str]]
    target: str
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> Sequence[str]:
        """The labels, row by row."""
        return self.columns[self.target]

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """All but the labels, row by row."""
        return list(zip(*(self.columns[name] for name in self.columns if name != self.target), strict=True))

    def take(self, rows: Sequence[int]) -> _Rows:
        """Returns some of the rows, in the order given."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, groups=self.groups and [self.groups[row] for row in rows])


def _check_columns(data: Data, task: Task) -> None:
    known = [column.name for column in task.columns]
    for name in data.columns:
        if name not in known:
            raise UserError(
                f"data.columns: {name!r} is no column of {task.name}, which has {', '.join(known)}"
                f"{nearest(name, known)}"
            )


def _read(part: _Part, split: SplitName, data: Data, task: Task, scratch: Path) -> _Rows:
    table = part.read(scratch)
    if not len(table):
        raise UserError(f"{part.where}: has no rows")
    target = next(column.name for column in task.columns if column.kind == "class")
    columns: dict[str, list[str]] = {}
    for column in task.columns:
        name = data.columns.get(column.name, column.name)
        if name in table.column_names:
            as_text = _label_text if column.name == target else _input_text
            columns[column.name] = _column(table, name, part.where, as_text)
        elif column.name == target and split == "test":
            columns[target] = [""] * len(table)
        elif column.required:
            raise _no_column(part.where, table, name, f"say `columns: {{{column.name}: NAME}}`")
    group_by = data.split.group_by
    if group_by is None:
        return _Rows(part.where, columns, target)
    if group_by not in table.column_names:
        raise _no_column(part.where, table, group_by, "split.group_by names it")
    return _Rows(part.where, columns, target, groups=[str(value) for value in table[group_by]])


def _column(table: Dataset, name: str, where: str, as_text: Callable[[object, str, int], str]) -> list[str]:
    names = _class_names(table, name)
    return [
        as_text(names.get(value, value) if names else value, where, row)
        for row, value in enumerate(table[name], 1)
    ]


def _no_column(where: str, table: Dataset, name: str, remedy: str) -> UserError:
    has = list(table.column_names)
    return UserError(
        f"{where}: has no column {name!r}, it has {', '.join(has)}{nearest(name, has)}; {remedy}"
    )


def _class_names(table: Dataset, column: str) -> dict[object, str]:
    """Returns what integers stand for in a column that carries class names; -1 there is a missing label."""
    names = getattr(table.features[column], "names", None)
    return {-1: "", **dict(enumerate(names))} if names else {}


def _input_text(value: object, where: str, row: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(
        f"{where}: row {row}: the text must be text, got {type(value).__name__} {str(value)[:60]}"
    )


def _label_text(value: object, where: str, row: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integers beside missing values arrive as floats
    if isinstance(value, float) and not math.isnan(value):
        raise UserError(f"{where}: row {row}: a label must be a class, got the number {value}")
    if isinstance(value, list | dict):
        raise UserError(f"{where}: row {row}: a label must be one class, got {str(value)[:60]}")
    return _input_text(value, where, row)


# -------------------------------------------------------------------------------------- cleaning, splitting


def _make_splits(
    rows: Mapping[SplitName, _Rows], data: Data, task: Task
) -> tuple[dict[SplitName, Dataset], list[str], list[str]]:
    """Takes the rows of the source to the splits, with the report of cleaning and the notes on the splits."""
    from datasets import Dataset

    report: list[str] = []
    rows, notes = _without_hidden_test(rows)
    rows = {split: _clean(split, part, data.clean, report) for split, part in rows.items()}
    notes += _cut_missing(rows, data.split)
    if data.clean.drop_leaked:
        rows["train"] = _without_leaked(rows, report)
    if data.limit is not None:
        rows = {split: _limited(split, part, data.limit, report) for split, part in rows.items()}
    for split, part in rows.items():
        if len(part) < 2:
            raise UserError(f"{part.where}: {split} needs at least 2 rows after cleaning, has {len(part)}")
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    splits = {split: Dataset.from_dict(dict(rows[split].columns)) for split in order if split in rows}
    _check_classes(rows, task.classes(splits["train"]))
    return splits, report, notes


def _without_hidden_test(rows: Mapping[SplitName, _Rows]) -> tuple[dict[SplitName, _Rows], list[str]]:
    """Drops a test split without labels, or with -1 for all where that is no class of the training rows."""
    hidden = {"", "-1"} - set(rows["train"].labels)
    test = rows.get("test")
    if test is None or not set(test.labels) <= hidden:
        return dict(rows), []
    seen: dict[SplitName, _Rows] = {split: part for split, part in rows.items() if split != "test"}
    return seen, [f"test: the labels of the source's {len(test)} rows are hidden, they are not used"]


def _clean(split: SplitName, rows: _Rows, clean: Clean, report: list[str]) -> _Rows:
    if clean.strip:
        columns = {name: [value.strip() for value in values] for name, values in rows.columns.items()}
        rows = replace(rows, columns=columns)
    kept = [
        row
        for row, texts in enumerate(rows.inputs)
        if not clean.drop_empty or all(text and not text.isspace() for text in texts)
    ]
    _note(report, split, len(rows) - len(kept), "row", "without text dropped")
    unlabelled = [row for row in kept if not rows.labels[row]]
    if unlabelled:
        more = f", nor have {len(unlabelled) - 1} others" if unlabelled[1:] else ""
        raise UserError(f"{rows.where}: row {unlabelled[0] + 1} of {split} has no label{more}")
    rows = rows.take(kept)
    if clean.drop_duplicates:
        first = {
            example: row
            for row, example in reversed(list(enumerate(zip(rows.inputs, rows.labels, strict=True))))
        }
        _note(report, split, len(rows) - len(first), "exact duplicate", "dropped")
        rows = rows.take(sorted(first.values()))
    of_text = Counter(texts for texts, _ in set(zip(rows.inputs, rows.labels, strict=True)))
    conflicting = sum(1 for count in of_text.values() if count > 1)
    _note(report, split, conflicting, "text", "with more than one label kept")
    return rows


def _note(report: list[str], split: SplitName, count: int, what: str, done: str) -> None:
    if count:
        report.append(f"{split}: {count:,} {what}{'s' if count > 1 else ''} {done}")


def _cut_missing(rows: dict[SplitName, _Rows], split: Split) -> list[str]:
    """Cuts test and validation from the training rows where the source has none; changes `rows`."""
    notes: list[str] = []
    total = len(rows["train"])
    fractions: dict[SplitName, float] = {"test": split.test, "validation": split.validation}
    for name, fraction in fractions.items():
        if name in rows or not fraction:
            continue
        train, count = rows["train"], round(total * fraction)
        if count < 2:
            raise UserError(
                f"{train.where}: split.{name} {fraction} of {total} rows is {count}, 2 are needed: raise"
                f" it, give a file of this split{', or set it to 0' if name == 'test' else ''}"
            )
        chosen = _draw(train, count, split.seed, name)
        rows[name] = train.take(chosen)
        rows["train"] = train.take(sorted(set(range(len(train))) - set(chosen)))
        way = "stratified by label" if split.group_by is None else f"whole groups of {split.group_by!r}"
        notes.append(f"{name}: {len(chosen):,} of {total:,} training rows, {way}, seed {split.seed}")
    if "test" not in rows:
        notes.append("test: there is none")
    if split.group_by is not None and not any("groups" in note for note in notes):
        notes.append(f"split.group_by {split.group_by!r} has no effect: the source has its own splits")
    return notes


def _draw(rows: _Rows, count: int, seed: int, purpose: str) -> list[int]:
    """Draws rows to cut from training: a row of each class stays there; or whole groups, if told."""
    if rows.groups is None:
        return _stratified(rows.labels, count, f"{seed}/{purpose}", spare=1)
    sizes = Counter(rows.groups)
    chosen: set[str] = set()
    taken = 0
    for group in _shuffled(sorted(sizes), f"{seed}/{purpose}"):
        if abs(taken + sizes[group] - count) < abs(taken - count):
            chosen.add(group)
            taken += sizes[group]
    if not chosen or len(chosen) == len(sizes):
        raise UserError(
            f"{rows.where}: {len(sizes)} groups of {len(rows)} rows cannot be split into {count} rows for"
            f" {purpose} and the rest: group by another column, or give a file"
        )
    return [row for row, group in enumerate(rows.groups) if group in chosen]


def _stratified(labels: Sequence[str], count: int, key: str, spare: int) -> list[int]:
    """Draws `count` rows with the classes in their proportions.

    Args:
        labels: The classes, row by row.
        count: How many rows; fewer come where `spare` forbids more.
        key: What the draw depends on.
        spare: Rows of each class that must not be drawn.

    Returns:
        The rows in ascending order, at least one a class where count and spare allow it.
    """
    members: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        members[label].append(row)
    most = {label: max(0, len(rows) - spare) for label, rows in members.items()}
    shares = {label: count * len(rows) / len(labels) for label, rows in members.items()}
    least = 1 if count >= len(members) else 0
    quotas = {label: min(most[label], max(least, math.floor(share))) for label, share in shares.items()}
    while (missing := count - sum(quotas.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [
            name for name, quota in quotas.items() if (quota < most[name] if missing > 0 else quota > least)
        ]
        if not movable:
            break
        quotas[max(movable, key=lambda name: step * (shares[name] - quotas[name]))] += step
    return sorted(row for label, rows in members.items() for row in _shuffled(rows, key)[: quotas[label]])


def _shuffled(items: Sequence[Item], key: str) -> list[Item]:
    """Orders items by a hash: the same in every version of Python and numpy."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}/{item}".encode()).digest())


def _without_leaked(rows: Mapping[SplitName, _Rows], report: list[str]) -> _Rows:
    train = rows["train"]
    held_out = {texts for split, part in rows.items() if split != "train" for texts in part.inputs}
    kept = [row for row, texts in enumerate(train.inputs) if texts not in held_out]
    _note(report, "train", len(train) - len(kept), "row", "dropped, the text stands in validation or test")
    if "test" in rows:
        both = set(rows["validation"].inputs) & set(rows["test"].inputs)
        _note(report, "validation", len(both), "text", "kept that test has too")
    return train.take(kept)


def _limited(split: SplitName, rows: _Rows, limit: Limit, report: list[str]) -> _Rows:
    most: int | None = getattr(limit, split)
    if most is None or most >= len(rows):
        return rows
    report.append(f"{split}: limited to {most:,} of {len(rows):,} rows, seed {limit.seed}")
    return rows.take(_stratified(rows.labels, most, f"{limit.seed}/limit {split}", spare=0))


def _check_classes(rows: Mapping[SplitName, _Rows], classes: Sequence[str]) -> None:
    problems = [
        Problem(
            f"{part.where}: class {label!r} is in {split} ({part.labels.count(label)} rows) and not in train,"
            f" which has {', '.join(classes[:20])}{nearest(label, classes)}"
        )
        for split, part in rows.items()
        for label in sorted(set(part.labels) - set(classes))
    ]
    if problems:
        raise UserError(problems)


# ---------------------------------------------------------------------------------- the copies in the cache


def _save(splits: Mapping[SplitName, Dataset], told: tuple[list[str], list[str]], folder: Path) -> None:
    from datasets import DatasetDict

    fingerprints = {split: _fingerprint(rows) for split, rows in splits.items()}
    report, notes = told
    with folder_aside(folder) as unfinished, _quiet():
        DatasetDict(splits).save_to_disk(str(unfinished / "splits"))
        about = {"fingerprints": fingerprints, "report": report, "notes": notes}
        (unfinished / "about.json").write_bytes(_canonical(about))


def _load(folder: Path, task: Task) -> Prepared:
    from datasets import DatasetDict

    about = json.loads((folder / "about.json").read_bytes())
    splits = dict(DatasetDict.load_from_disk(str(folder / "splits")))
    fingerprints = about["fingerprints"]
    return Prepared(
        splits=splits,
        classes=task.classes(splits["train"]),
        fingerprints=fingerprints,
        fingerprint=_sha256([f"{fingerprints['train']} {fingerprints['validation']}".encode()]),
        report=tuple(about["report"]),
        notes=tuple(about["notes"]),
    )


def _is_sound(folder: Path) -> bool:
    """Whether a copy is there and its bytes are what was written."""
    try:
        check_folder(folder)
    except StorageError:
        return False
    return True


def _fingerprint(rows: Dataset) -> str:
    digest = hashlib.sha256(_canonical(rows.column_names))
    for batch in rows.iter(batch_size=1000):
        for row in zip(*(batch[name] for name in rows.column_names), strict=True):
            digest.update(_canonical(row))
    return digest.hexdigest()


def _check_length(folder: Path, max_length: int) -> None:
    """Positions beyond the table would end training with an index error; RoBERTa's first are never used."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: config.json cannot be read: {error}") from error
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int):
        return
    if config.get("model_type") in {"roberta", "xlm-roberta", "camembert"}:
        positions -= int(config.get("pad_token_id") or 0) + 1
    if max_length > positions:
        raise UserError(f"data.max_length {max_length}: {folder} takes at most {positions} tokens")


@contextlib.contextmanager
def _sole_owner(folder: Path) -> Iterator[None]:
    """Waits until no other process makes the same copy."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """Gives a folder for what `datasets` makes of files: its cache would take an edited file for the old."""
    place = cache / "datasets"
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix="read-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the progress bars and the log lines of `datasets` and of the hub to themselves."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    levels = datasets.logging.get_verbosity(), hub_logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    """Returns what went wrong first, on one line: `datasets` wraps it in errors that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _canonical(value: object, default: Callable[[object], str] | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=default).encode()


def _sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
