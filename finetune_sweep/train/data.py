"""The rows of a sweep, clean and tokenised, with a fingerprint of what they are; kept in the cache.

A copy lies under a hash of the files' content and of the settings, so that a second call only reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.durable import check_folder, explained, folder_aside, sha256
from finetune_sweep.errors import StorageError
from finetune_sweep.tasks.arrays import Encoded
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import IMAGE_PROCESSOR, TOKENIZER_FILES
from finetune_sweep.train.architecture import check_length
from finetune_sweep.train.cleaning import make_splits
from finetune_sweep.train.rows import check_columns, read_rows
from finetune_sweep.train.source import SplitName, locate
from finetune_sweep.train.tables import quiet
from finetune_sweep.train.weights import read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from datasets import Dataset

    from finetune_sweep.spec import Data
    from finetune_sweep.tasks.contract import Task
    from finetune_sweep.train.copies import Columns
    from finetune_sweep.yamlio import Value

FORMAT: Final = 2
"""Of the copies in the cache: raised when cleaning or an encoding becomes another."""
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
    check_columns(data, task)
    parts = locate(data, task, base, cache)
    settings = data.model_dump(mode="json", include={"columns", "split", "limit", "clean"})
    pictures = next((str(data.columns.get(c.name, c.name)) for c in task.columns if c.kind == "image"), None)
    with _scratch(cache) as scratch:
        contents = {split: part.digest(pictures, scratch) for split, part in sorted(parts.items())}
    key = hash_of([FORMAT, task.name, settings, contents])
    folder = cache / "data" / key
    with sole_owner(folder):
        if not is_sound(folder):
            with _scratch(cache) as scratch:
                rows = {split: read_rows(part, split, data, task, scratch) for split, part in parts.items()}
            splits, report, notes = make_splits(rows, data, task)
            _save(splits, (report, notes), folder)
    return _load(folder, task)


@dataclass(frozen=True)
class Rewritten:
    """A split that is changed before it is tokenised.

    Args:
        split: One of the splits.
        identity: All that the change depends on beside the rows of the split.
        rewrite: From the columns of the rows to those of other rows, perhaps more or fewer.
    """

    split: str
    identity: Value
    rewrite: Callable[[Columns], Columns]

    @property
    def digest(self) -> str:
        """A sha256 of the change."""
        return hash_of([self.identity])


def encode_split(
    prepared: Prepared, split: str | Rewritten, task: Task, folder: Path, max_length: int, cache: Path
) -> Encoded:
    """Tokenises a split, or finds it in the cache; the arrays are mapped into memory.

    Args:
        prepared: The rows.
        split: One of `prepared.splits`, as it is or rewritten.
        task: What turns rows into numbers.
        folder: The model, whose tokenizer is used.
        max_length: Tokens after which an input is cut.
        cache: Where the arrays are kept, by content.

    Raises:
        UserError: The folder has no tokenizer, or the model takes fewer than `max_length` tokens.
    """
    check_length(read_config(folder), max_length, str(folder))
    name = split.split if isinstance(split, Rewritten) else split
    files = [folder / name for name in (*TOKENIZER_FILES, *_TOKENIZER_SETTINGS, IMAGE_PROCESSOR)]
    used = [
        FORMAT,
        task.name,
        prepared.fingerprints[name],
        list(prepared.classes),
        max_length,
        importlib.metadata.version("tokenizers"),
        {file.name: sha256(file) for file in files if file.is_file()},
        *([split.identity] if isinstance(split, Rewritten) else []),
    ]
    target = cache / "tokens" / hash_of(used)
    with sole_owner(target):
        if not is_sound(target):
            rows = prepared.splits[name]
            if isinstance(split, Rewritten):
                rows = rewritten(rows, split)
            encoded = task.encode(rows, load_processor(folder, task), prepared.classes, max_length)
            with folder_aside(target) as unfinished:
                encoded.save(unfinished)
    return Encoded.load(target)


def rewritten(rows: Dataset, how: Rewritten) -> Dataset:
    """The rows of a split after their change."""
    from datasets import Dataset

    columns = {name: list(rows[name]) for name in rows.column_names}
    return Dataset.from_dict(dict(how.rewrite(columns)), features=rows.features)


def _save(splits: Mapping[SplitName, Dataset], told: tuple[list[str], list[str]], folder: Path) -> None:
    from datasets import DatasetDict

    fingerprints = {split: _fingerprint(rows) for split, rows in splits.items()}
    report, notes = told
    with folder_aside(folder) as unfinished, quiet():
        DatasetDict(splits).save_to_disk(str(unfinished / "splits"))
        about = {"fingerprints": fingerprints, "report": report, "notes": notes}
        (unfinished / "about.json").write_bytes(_canonical(about))


def _load(folder: Path, task: Task) -> Prepared:
    from datasets import DatasetDict

    about = json.loads((folder / "about.json").read_bytes())
    splits = dict(DatasetDict.load_from_disk(str(folder / "splits")))
    fingerprints = about["fingerprints"]
    both = f"{fingerprints['train']} {fingerprints['validation']}"
    return Prepared(
        splits=splits,
        classes=task.classes(splits["train"]),
        fingerprints=fingerprints,
        fingerprint=hashlib.sha256(both.encode()).hexdigest(),
        report=tuple(about["report"]),
        notes=tuple(about["notes"]),
    )


def is_sound(folder: Path) -> bool:
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


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Waits until no other process makes the same copy of something in the cache."""
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


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_of_bytes).encode()


def _of_bytes(value: object) -> str:
    """The bytes of a picture, as JSON can hold them."""
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} is no value of a row")
    return hashlib.sha256(value).hexdigest()


def hash_of(value: object) -> str:
    """The name of a copy in the cache: a sha256 of what it is made of."""
    return hashlib.sha256(_canonical(value)).hexdigest()
