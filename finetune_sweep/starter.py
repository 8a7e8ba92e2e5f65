"""A first sweep for somebody's data: looks at a file or a folder and writes a YAML file that runs as it is.

Which columns are the text and the label is guessed from the first rows. Counts, classes and lengths are those
of the data as a sweep prepares them, so whatever a sweep would refuse is refused here.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep import yamlio
from finetune_sweep.errors import UserError, nearest
from finetune_sweep.examples import MODELS
from finetune_sweep.spec import Data, Split
from finetune_sweep.sweepfile import default_cache

if TYPE_CHECKING:
    from finetune_sweep.train.data import Prepared

_TEXT_NAMES: Final = (
    *("text", "sentence", "review", "content", "body", "message", "comment", "tweet", "document", "abstract"),
    *("question", "utterance", "description", "title"),
)
_LABEL_NAMES: Final = (
    *("label", "class", "category", "sentiment", "stars", "rating", "labels", "target", "topic", "intent"),
    *("emotion", "tag"),
)
_SUFFIXES: Final = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}
_LOOKED_AT: Final = 20_000
_MOST_NUMBERS: Final = 50
_FEW_ROWS: Final = 500
_VERY_FEW_TO_TRAIN: Final = 200
_FEW_TO_TRAIN: Final = 2000
_MANY_TO_TRAIN: Final = 4000
_LENGTHS: Final = (32, 64, 128, 256, 512)
_EXAMPLE: Final = "minilm-l6"
_SAME_ON_THE_HUB: Final = "sentence-transformers/all-MiniLM-L6-v2"

Rows = Sequence[Mapping[str, object]]


def write_sweep(data: Path, output: Path | None, cache: Path | None = None) -> Path:
    """Writes a sweep over text data.

    Args:
        data: A csv, tsv, json, jsonl or parquet file, or a folder of splits or classes.
        output: The file to write; by default it is named for the data, in the working directory.
        cache: Where the prepared data are kept, for the run that follows.

    Returns:
        The file that was written, absolute.

    Raises:
        UserError: The data are no table of texts with classes, or the file exists.
    """
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.train.data import prepare

    if not data.exists():
        hint = " (data on the hub go into `source` of a sweep file)" if str(data).startswith("hub:") else ""
        raise UserError(f"{data}: no such file or folder{_beside(data)}{hint}")
    name = _name(data)
    target = (output if output is not None else Path(f"{name}.yaml")).absolute()
    if target.exists():
        raise UserError(f"{target} exists and is not overwritten; name another file with --output")
    settings = _settings(data.resolve())
    prepared = prepare(settings, TASKS["text-classification"], Path(), cache or default_cache())
    _refuse_regression(prepared.classes, str(settings.columns.get("label", "label")))
    source = data.resolve()
    folder = target.parent.resolve()
    shown = source.relative_to(folder) if source.is_relative_to(folder) else source
    text = _sweep_text(name, str(shown), settings, prepared)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    return target


def _settings(data: Path) -> Data:
    """The `data:` section that the first rows suggest."""
    peeked = _peeked_file(data)
    if peeked is None:
        return Data(source=str(data))
    rows = _peek(peeked)
    if not rows:
        raise UserError(f"{peeked}: holds no rows")
    split = Split(validation=0.2, test=0.2) if len(rows) < _FEW_ROWS else Split()
    return Data(source=str(data), columns=_guess_columns(rows, peeked), split=split)


def _beside(path: Path) -> str:
    names = (other.name for other in path.parent.iterdir()) if path.parent.is_dir() else ()
    return nearest(path.name, names)


def _name(data: Path) -> str:
    """A name for the sweep, from that of the data."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", data.resolve().stem if data.is_file() else data.resolve().name)
    return plain.strip("._-")[:64] or "sweep"


# ------------------------------------------------------------------------------------------ the first rows


def _peeked_file(data: Path) -> Path | None:
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


def _peek(file: Path) -> Rows:
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
        for batch in table.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


# -------------------------------------------------------------------------------------------- the columns


@dataclass(frozen=True)
class _Column:
    """What the first rows say about a column; `values` are those that are not missing, as texts."""

    name: str
    values: Sequence[str]
    is_plain: bool

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


def _guess_columns(rows: Rows, file: Path) -> dict[str, str | int]:
    """The columns that hold the text and the label: by name, else by shape.

    Raises:
        UserError: There are none, the labels are measurements, or there is one class.
    """
    names = dict.fromkeys(name for row in rows[:1000] for name in row if name.strip())
    columns = [_column(name, rows) for name in names]
    listed = f"it has {', '.join(column.name for column in columns)}"
    named = _by_name(columns, _LABEL_NAMES)
    texts = [column for column in columns if column.could_be_text and column != named]
    text = _by_name(texts, _TEXT_NAMES) or max(texts, key=lambda column: column.mean_length, default=None)
    if text is None:
        raise UserError(f"{file}: no column holds texts; {listed}")
    if named is not None:
        _check_label(named, file)
        return {"text": text.name, "label": named.name}
    labels = [column for column in columns if column.could_be_label and column != text]
    if not labels:
        raise UserError(f"{file}: no column looks like a label (a few values that repeat); {listed}")
    return {"text": text.name, "label": min(labels, key=lambda column: column.distinct).name}


def _column(name: str, rows: Rows) -> _Column:
    present = [value for row in rows if (value := row.get(name)) is not None and value != ""]
    is_plain = all(isinstance(value, str | int | float) for value in present)
    return _Column(name, [str(value).strip() for value in present], is_plain)


def _by_name(columns: Sequence[_Column], names: Sequence[str]) -> _Column | None:
    """The column with one of these names, else with one of them as a word of its own; earlier names first."""
    for words in (lambda name: [name.lower()], lambda name: re.split(r"[^a-z]+", name.lower())):
        for wanted in names:
            for column in columns:
                if column.is_plain and wanted in words(column.name):
                    return column
    return None


def _check_label(column: _Column, file: Path) -> None:
    if column.is_numeric:
        _refuse_regression(set(column.values), column.name)
    if column.distinct < 2:
        found = f"only {column.values[0]!r}" if column.values else "nothing"
        raise UserError(f"{file}: classification needs at least two classes, {column.name!r} holds {found}")
    if not column.could_be_label:
        raise UserError(
            f"{file}: {column.name!r} has {column.distinct:,} values in {len(column.values):,} rows,"
            " these are no classes"
        )


def _refuse_regression(classes: Sequence[str] | set[str], column: str) -> None:
    if len(classes) > _MOST_NUMBERS and all(map(_is_number, classes)):
        raise UserError(
            f"{column!r} has {len(classes):,} different numbers: that is regression, text-classification"
            f" takes up to {_MOST_NUMBERS} of them as classes"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ the YAML


def _sweep_text(name: str, source: str, settings: Data, prepared: Prepared) -> str:
    """The sweep file."""
    train = prepared.splits["train"]
    rates, epochs, size = _searched(len(train))
    lines = [
        f"# Fine-tunes a text classifier on {_comment(source)}. It runs as it is; change what you like.",
        *_seen_lines(prepared),
        f"name: {_scalar(name)}",
        "task: text-classification",
        _model_line(),
        *_data_lines(source, settings, prepared),
        _line("space:", f"what is searched: every combination is a trial{size}"),
        f"  learning_rate: [{rates}]",
        _line("  freeze_depth: [0, 50%]", "the part of the model that stays as pretrained: none, or half"),
        _line(f"  epochs: [{epochs}]", "a shorter training is a part of a longer one, and costs nothing"),
        "search: {type: grid}",
        _metric_line(Counter(train["label"])),
        f"training: {{lr_schedule: {{type: constant, warmup_steps: {min(20, len(train) // 16)}}}}}",
        _selection_line(len(train)),
        _line("resources_per_trial: {cpu: 1}", "gpu: 1 gives each trial a GPU"),
    ]
    return "\n".join(lines) + "\n"


def _searched(rows: int) -> tuple[str, str, str]:
    """Learning rates and epochs for a number of training rows, and what the file says about how many they are.

    A few hundred rows have a validation split so small that settings close to each other score alike.
    """
    if rows < _VERY_FEW_TO_TRAIN:
        return "5e-5, 2e-4", "4, 8", "; few, as rows are few"
    if rows < _FEW_TO_TRAIN:
        return "5e-5, 1e-4, 2e-4", "2, 4, 6", ""
    return "2e-5, 5e-5, 1e-4", "2, 3, 4", ""


def _selection_line(rows: int) -> str:
    if rows < _VERY_FEW_TO_TRAIN:
        return _line("selection: {finalists: 0}", "so few validation rows tell no settings apart")
    return _line(
        "selection: {finalists: 3, seeds: 3}", "the best few again, beside a baseline, on fresh seeds"
    )


def _line(setting: str, comment: str) -> str:
    return f"{setting:<35}  # {comment}"


def _seen_lines(prepared: Prepared) -> Iterator[str]:
    """Comments: what `init` saw in the data."""
    counts = Counter(prepared.splits["train"]["label"])
    rows = ", ".join(f"{split} {len(part):,}" for split, part in prepared.splits.items())
    classes = ", ".join(f"{label} ({counts[label]:,})" for label in prepared.classes[:10])
    more = f" and {len(prepared.classes) - 10} more" if len(prepared.classes) > 10 else ""
    yield f"# Rows: {rows}. {len(prepared.classes)} classes, in training: {_comment(classes)}{more}."
    yield from (f"# {_comment(line)}" for line in (*prepared.report, *prepared.notes))


def _model_line() -> str:
    packages = MODELS[_EXAMPLE].packages
    if any(importlib.util.find_spec(package.place.partition("/")[0]) for package in packages):
        return _line(f"model: example:{_EXAMPLE}", "small, English; or hub:ORG/NAME, or ./folder")
    return _line(f"model: hub:{_SAME_ON_THE_HUB}", "small, English; or ./folder")


def _data_lines(source: str, settings: Data, prepared: Prepared) -> Iterator[str]:
    train = prepared.splits["train"]
    yield "data:"
    yield f"  source: {_scalar(source)}"
    if settings.columns:
        columns = ", ".join(f"{name}: {_scalar(str(column))}" for name, column in settings.columns.items())
        yield _line(f"  columns: {{{columns}}}", "which columns hold the text and its class")
    yield _line(f"  max_length: {_max_length(train['text'])}", "tokens; what is longer is cut")
    split = settings.split
    if split != Split() and any("training rows" in note for note in prepared.notes):
        yield _line(f"  split: {{validation: {split.validation}, test: {split.test}}}", "large: rows are few")
    if len(train) > _MANY_TO_TRAIN:
        limit = f"{{train: {_MANY_TO_TRAIN}, validation: {_MANY_TO_TRAIN // 4}}}"
        yield _line(f"  limit: {limit}", "for speed; take it out to use all rows")


def _metric_line(counts: Mapping[str, int]) -> str:
    if max(counts.values()) > 3 * min(counts.values()):
        return _line("metric: macro_f1", "all classes count alike, as their sizes differ much")
    return _line("metric: accuracy", "of the validation rows; the test rows are used once, for the winner")


def _max_length(texts: Sequence[str]) -> int:
    """The least of a few lengths that 95 % of the texts stay below, by about 1.4 tokens a word."""
    tokens = sorted(max(1.4 * len(text.split()), len(text) / 5) + 2 for text in texts)
    most = tokens[int(0.95 * (len(tokens) - 1))]
    return next((length for length in _LENGTHS if length >= most), _LENGTHS[-1])


def _scalar(text: str) -> str:
    """A text as YAML, in quotes where it would not be read as this text."""
    is_plain = re.fullmatch(r"[\w./-]*[A-Za-z][\w./-]*", text, re.ASCII) is not None and text[0] != "-"
    return text if is_plain and yamlio.parse_scalar(text) == text else json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    """A text that can stand in a comment: one line, nothing that YAML refuses."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
