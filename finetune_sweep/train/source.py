"""Where the rows of a sweep come from: the files or the hub's copy of each split, and reading them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from finetune_sweep import examples
from finetune_sweep.errors import UserError, nearest
from finetune_sweep.layout import sha256

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from datasets import Dataset

    from finetune_sweep.spec import Data

SplitName = Literal["train", "validation", "test"]

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
_LONGEST_FIELD: Final = 2**31 - 1  # csv's own limit of 131,072 is below a long document
_SHARD = re.compile(r"-\d+-of-\d+$")
_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?")


@dataclass(frozen=True)
class Files:
    """A split in files of one format, or in folders of `.txt` files named for their classes."""

    where: str
    files: tuple[Path, ...]
    by_class: bool = False

    def digest(self) -> str:
        """Returns a hash of the content, the format, and the classes that folders name."""
        lines = [
            f"{file.suffix} {file.parent.name if self.by_class else ''} {sha256(file)}\n"
            for file in self.files
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, scratch: Path) -> Dataset:
        """Reads all rows; `scratch` may be removed once they were used."""
        return _read_class_folders(self.files) if self.by_class else _read_files(self.files, scratch)


@dataclass(frozen=True)
class Fetched:
    """A split of a hub data set, in the cache of `datasets`."""

    where: str
    rows: Dataset

    def digest(self) -> str:
        """Returns a hash of the rows and their types."""
        digest = hashlib.sha256(repr(self.rows.features).encode())
        for batch in self.rows.with_format("arrow").iter(batch_size=1000):
            rows = json.dumps(batch.to_pylist(), sort_keys=True, separators=(",", ":"), default=repr)
            digest.update(rows.encode())
        return digest.hexdigest()

    def read(self, scratch: Path) -> Dataset:  # noqa: ARG002  (as `Files`)
        """Returns the rows."""
        return self.rows


Part = Files | Fetched


def locate(data: Data, base: Path, cache: Path) -> dict[SplitName, Part]:
    """Finds each split of the source; nothing but the hub's is read yet.

    Args:
        data: The settings, of which `source` and `files` count.
        base: The folder that relative paths are relative to.
        cache: Where shipped examples and what comes from the hub are kept.

    Raises:
        UserError: There is no such source, or it does not say what is the training split.
    """
    try:
        return _locate(data, base, cache)
    except OSError as error:
        raise UserError(f"data: {error.filename}: {error.strerror}") from error


def _locate(data: Data, base: Path, cache: Path) -> dict[SplitName, Part]:
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
        return {_ALIASES[split]: Files(f"{source} ({split})", (file,)) for split, file in shipped}
    if source.startswith("hub:"):
        return _fetch(source.removeprefix("hub:"), cache)
    path = base / Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    return {"train": _one_file(path)}


def reader_of(file: Path) -> str | None:
    """Returns the format that a file's ending names, as `datasets` calls it; None for any other ending."""
    return _READERS.get(file.suffix.lower())


def separator_of(file: Path) -> str:
    """Returns what separates the columns of a csv or tsv file."""
    return "\t" if file.suffix.lower() == ".tsv" else ","


def csv_rows(file: Path) -> Generator[list[str], None, None]:
    """Reads a csv or tsv file row by row, the header first; blank lines are none.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: It cannot be read.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.reader(lines, delimiter=separator_of(file)):
            if len(row) > 1 or "".join(row).strip():
                yield row


def _one_file(file: Path) -> Part:
    if file.is_dir():
        return _split_folder(file)
    if not file.is_file():
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"data: {file}: no such file or folder{nearest(file.name, beside)}")
    if reader_of(file) is None:
        raise UserError(
            f"data: {file}: must be one of {', '.join(_READERS)}, got {file.suffix or 'no ending'}"
        )
    return Files(str(file), (file,))


def _in_folder(folder: Path) -> dict[SplitName, Part]:
    """Finds splits by name, as files or as folders; else one file, or one folder a class."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    named: dict[SplitName, dict[str, list[Path]]] = {}
    for entry in entries:
        word = _SHARD.sub("", entry.stem if entry.is_file() else entry.name)
        if word.lower() in _ALIASES and (entry.is_dir() or reader_of(entry)):
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


def _files_or_folder(paths: Sequence[Path]) -> Part:
    return _split_folder(paths[0]) if paths[0].is_dir() else Files(str(paths[0]), tuple(paths))


def _split_folder(folder: Path) -> Part:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and reader_of(file)]
    texts = sorted(folder.glob("*/*.txt"))
    if texts and not files:
        return Files(str(folder), tuple(texts), by_class=True)
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
    return Files(str(files[0] if len(files) == 1 else folder), tuple(files))


def _fetch(reference: str, cache: Path) -> dict[SplitName, Part]:
    """Fetches a data set from the hub, or finds it in the cache of `datasets`."""
    import datasets

    match = _HUB.fullmatch(reference)
    if match is None:
        raise UserError(f"data: 'hub:{reference}' must look like hub:ORG/NAME[:config][@revision]")
    try:
        with quiet():
            loaded = datasets.load_dataset(
                match["name"], match["config"], revision=match["revision"], cache_dir=str(cache / "datasets")
            )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data: hub:{reference}: {_first_line(error)}") from error
    parts: dict[SplitName, Part] = {}
    for name, rows in loaded.items():
        split = _ALIASES.get(name.lower())
        if split is not None and split not in parts:
            parts[split] = Fetched(f"hub:{reference} ({name})", rows)
    if "train" not in parts:
        raise UserError(f"data: hub:{reference}: has no split named train, it has {', '.join(loaded)}")
    return parts


def _read_files(files: Sequence[Path], scratch: Path) -> Dataset:
    import datasets

    if not any(file.stat().st_size for file in files):
        raise UserError(f"{files[0]}: is empty")
    reader = reader_of(files[0])
    options: dict[str, object] = {}
    nameless: list[str] = []
    if reader == "csv":
        header = _csv_header(files)
        names = [name if name.strip() else f"\n{place}" for place, name in enumerate(header)]
        nameless = [name for name, written in zip(names, header, strict=True) if name != written]
        # All as text: no guess makes "None" a missing value, "007" a 7, or the labels of one chunk floats.
        features = datasets.Features(dict.fromkeys(names, datasets.Value("string")))
        options = {"sep": separator_of(files[0]), "features": features, "keep_default_na": False}
        options |= {"names": names, "header": 0}
    paths = [str(file) for file in files]
    try:
        with quiet():
            table = datasets.load_dataset(
                reader, data_files=paths, split="train", cache_dir=tempfile.mkdtemp(dir=scratch), **options
            )
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{files[0]}: cannot be read as {reader}: {_first_line(error)}") from error
    return table.remove_columns(nameless)  # such as the index that pandas writes before the columns


def _csv_header(files: Sequence[Path]) -> list[str]:
    """Returns the names of the columns, "" for those without one.

    Raises:
        UserError: There are none, the first row has more fields (pandas would shift them silently), or the
            files differ in them.
    """
    file = files[0]
    try:
        with contextlib.closing(csv_rows(file)) as rows:
            header, first = next(rows, []), next(rows, [])
        for file in files[1:]:
            with contextlib.closing(csv_rows(file)) as rows:
                other = next(rows, header)
            if other != header:
                raise UserError(
                    f"{file}: has the columns {', '.join(other)}, {files[0].name} has {', '.join(header)}"
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as csv: {error}") from error
    file = files[0]
    if not first:
        raise UserError(f"{file}: has no rows; the first line must name the columns")
    if len(first) > len(header):
        raise UserError(f"{file}: row 1 has {len(first)} fields, the header {len(header)}: quote the texts")
    repeated = [name for name, count in Counter(header).items() if count > 1 and name.strip()]
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
