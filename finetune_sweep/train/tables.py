"""Tables in files: csv, json and parquet, each read as it stands."""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from datasets import Dataset

READERS: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_LONGEST_FIELD: Final = 2**31 - 1  # csv's own limit of 131,072 is below a long document


def reader_of(file: Path) -> str | None:
    """Returns the format that a file's ending names, as `datasets` calls it; None for any other ending."""
    return READERS.get(file.suffix.lower())


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


def read_table(files: Sequence[Path], scratch: Path) -> Dataset:
    """Reads files of one format into one table.

    Args:
        files: In their order; the first one's ending names the format.
        scratch: A folder that may be removed once the rows were used.

    Raises:
        UserError: A file is empty, or not of the format, or they differ in their columns.
    """
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
        broken = next(filter(None, map(_broken_line, files)), None) if reader == "json" else None
        raise UserError(broken or f"{files[0]}: cannot be read as {reader}: {first_line(error)}") from error
    return table.remove_columns(nameless)  # such as the index that pandas writes before the columns


def _broken_line(file: Path) -> str | None:
    """Says what line of a json file, of one array or an object a line, is wrong; None if it is something else."""
    try:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError:
        return None
    try:
        json.loads(content)
    except ValueError as error:
        if content.lstrip().startswith(b"["):
            return f"{file}: cannot be read as json: {error}"  # with the line
    else:
        return None
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            found = json.loads(line) if line.strip() else {}
        except ValueError as error:
            shown = line.strip().decode(errors="replace")[:60]
            return f"{file}: line {number}: cannot be read as json: {_reason(error)}: {shown}"
        if not isinstance(found, dict):
            return f"{file}: line {number}: must be an object of columns and values, got {str(found)[:60]}"
    return None


def _reason(error: ValueError) -> str:
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


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


def first_line(error: BaseException) -> str:
    """Returns what went wrong first, on one line: `datasets` wraps it in errors that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
