"""Where the rows of a sweep come from: the files or the hub's copy of each split, and reading them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from finetune_sweep import examples
from finetune_sweep.durable import sha256
from finetune_sweep.errors import UserError, nearest
from finetune_sweep.train import coco, conll
from finetune_sweep.train.tables import READERS, first_line, quiet, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from finetune_sweep.spec import Data
    from finetune_sweep.tasks.contract import Task

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
_SHARD = re.compile(r"-\d+-of-\d+$")
_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?")


PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
ORIGIN: Final = "\norigin"
"""A column of what is read: where in its file a row stands. No column of a file has such a name."""
FRAME: Final = "\nframe"
"""A column of what is read: the width and the height of a picture as its file of boxes has them, perhaps None."""
_BESIDE: Final = "file_name"
"""The column of a table beside pictures that names them, as `datasets` has it for folders of pictures."""


@dataclass(frozen=True)
class Files:
    """A split in files of one format, or in folders, named for their classes, of texts or pictures."""

    where: str
    files: tuple[Path, ...]
    by_class: bool = False

    @property
    def folder(self) -> Path:
        """What the paths of pictures in the rows are relative to."""
        return self.files[0].parent

    def digest(self, picture: str | None, scratch: Path) -> str:
        """Returns a hash of the content, the format, and the classes that folders name.

        Args:
            picture: The column with paths of pictures, whose bytes count too; None if rows have no pictures.
            scratch: A folder that may be removed afterwards.
        """
        lines = [
            f"{file.suffix} {file.parent.name if self.by_class else ''} {sha256(file)}\n"
            for file in self.files
        ]
        if picture is not None and not self.by_class:
            lines += [f"{sha256(file)}\n" for file in self._pictures(picture, scratch)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _pictures(self, column: str, scratch: Path) -> list[Path]:
        """The files that rows name; those that are not there are a matter of reading the rows."""
        table = self.read(scratch)
        name = picture_column(table, column)
        cells = map(stored, undecoded(table, name)[name] if name in table.column_names else [])
        named = (self.folder / cell for cell in cells if isinstance(cell, str))
        return [file for file in named if file.is_file()]

    def read(self, scratch: Path) -> Dataset:
        """Reads all rows; `scratch` may be removed once they were used."""
        from datasets import Dataset

        if self.by_class:
            return _read_class_folders(self.files)
        if self.files[0].suffix.lower() in (*conll.ENDINGS, conll.PLAIN):
            columns: Mapping[str, object] = conll.read_conll(self.files)
        elif coco.is_coco(self.files[0]):
            columns = coco.read_coco(self.files[0])
        else:
            return read_table(self.files, scratch)
        hidden = {"origin": ORIGIN, "frame": FRAME}
        return Dataset.from_dict({hidden.get(name, name): cells for name, cells in columns.items()})


@dataclass(frozen=True)
class Fetched:
    """A split of a hub data set, in the cache of `datasets`."""

    where: str
    rows: Dataset
    folder: Path = Path()

    def digest(self, picture: str | None, scratch: Path) -> str:  # noqa: ARG002  (as `Files`)
        """Returns a hash of the rows and their types; pictures are in the rows."""
        digest = hashlib.sha256(repr(self.rows.features).encode())
        for batch in self.rows.with_format("arrow").iter(batch_size=1000):
            rows = json.dumps(batch.to_pylist(), sort_keys=True, separators=(",", ":"), default=repr)
            digest.update(rows.encode())
        return digest.hexdigest()

    def read(self, scratch: Path) -> Dataset:  # noqa: ARG002  (as `Files`)
        """Returns the rows."""
        return self.rows


Part = Files | Fetched


@dataclass(frozen=True)
class Endings:
    """Of what a task reads.

    Args:
        files: Of files that hold rows.
        members: Of files in folders of classes, each a row.
    """

    files: tuple[str, ...]
    members: frozenset[str]


def locate(data: Data, task: Task, base: Path, cache: Path) -> dict[SplitName, Part]:
    """Finds each split of the source; nothing but the hub's is read yet.

    Args:
        data: The settings, of which `source` and `files` count.
        task: What says which files can be read.
        base: The folder that relative paths are relative to.
        cache: Where shipped examples and what comes from the hub are kept.

    Raises:
        UserError: There is no such source, or it does not say what is the training split.
    """
    try:
        return _locate(data, _endings(task), base, cache)
    except OSError as error:
        raise UserError(f"data: {error.filename}: {error.strerror}") from error


def _endings(task: Task) -> Endings:
    kinds = {column.kind for column in task.columns}
    plain = (conll.PLAIN,) if "tokens" in kinds else ()
    members = PICTURES if "image" in kinds else frozenset({".txt"})
    return Endings((*READERS, *conll.ENDINGS, *plain), members)


def _locate(data: Data, endings: Endings, base: Path, cache: Path) -> dict[SplitName, Part]:
    source = data.source
    if data.files is not None:
        named = {
            cast("SplitName", split): base / Path(file).expanduser() for split, file in data.files.items()
        }
        return {split: _one_file(file, endings) for split, file in named.items()}
    if source is None:
        raise UserError("data: needs `source` or `files`")
    if source.startswith("example:"):
        shipped = examples.data_files(source.removeprefix("example:"), cache).items()
        return {_ALIASES[split]: Files(f"{source} ({split})", (file,)) for split, file in shipped}
    if source.startswith("hub:"):
        return _fetch(source.removeprefix("hub:"), cache)
    path = base / Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, endings)
    return {"train": _one_file(path, endings)}


def picture_column(table: Dataset, column: str) -> str:
    """Returns the column that names pictures: the one asked for, or `file_name` where there is no such."""
    return _BESIDE if column not in table.column_names and _BESIDE in table.column_names else column


def undecoded(table: Dataset, name: str) -> Dataset:
    """Leaves pictures as the bytes or the paths of their files, where `datasets` would decode them."""
    from datasets import Image

    is_picture = isinstance(table.features[name], Image)
    return table.cast_column(name, Image(decode=False)) if is_picture else table


def stored(cell: object) -> object:
    """The bytes of a picture, or else its path, of a cell as `datasets` stores it; any other cell as it is."""
    return cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell


def _is_readable(file: Path, endings: Endings) -> bool:
    return file.suffix.lower() in endings.files


def _one_file(file: Path, endings: Endings) -> Part:
    if file.is_dir():
        return _split_folder(file, endings)
    if not file.is_file():
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"data: {file}: no such file or folder{nearest(file.name, beside)}")
    if not _is_readable(file, endings):
        raise UserError(
            f"data: {file}: must be one of {', '.join(endings.files)}, got {file.suffix or 'no ending'}"
        )
    return Files(str(file), (file,))


def _in_folder(folder: Path, endings: Endings) -> dict[SplitName, Part]:
    """Finds splits by name, as files or as folders; else one file, or one folder a class."""
    entries = _shown(folder)
    named: dict[SplitName, dict[str, list[Path]]] = {}
    for entry in entries:
        word = _SHARD.sub("", entry.stem if entry.is_file() else entry.name)
        if word.lower() in _ALIASES and (entry.is_dir() or _is_readable(entry, endings)):
            as_one = word + (entry.suffix if entry.is_file() else "/")
            named.setdefault(_ALIASES[word.lower()], {}).setdefault(as_one, []).append(entry)
    for split, found in named.items():
        if len(found) > 1:
            raise UserError(f"data: {folder}: {' and '.join(found)} both are the {split} split; keep one")
    if named:
        if "train" not in named:
            raise UserError(f"data: {folder}: has {', '.join(named)} and no train")
        shards = {split: next(iter(found.values())) for split, found in named.items()}
        return {split: _files_or_folder(paths, endings) for split, paths in shards.items()}
    return {"train": _split_folder(folder, endings)}


def _files_or_folder(paths: Sequence[Path], endings: Endings) -> Part:
    return _split_folder(paths[0], endings) if paths[0].is_dir() else Files(str(paths[0]), tuple(paths))


def _shown(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files such as macOS and Jupyter leave there."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _split_folder(folder: Path, endings: Endings) -> Part:
    entries = _shown(folder)
    files = [file for file in entries if file.is_file() and _is_readable(file, endings)]
    members = [file for entry in entries if entry.is_dir() for file in _shown(entry)]
    of_class = tuple(file for file in members if file.suffix.lower() in endings.members)
    if len({file.parent for file in of_class}) > 1:
        files = [file for file in files if _holds_rows(file)]
    if of_class and not files:
        return Files(str(folder), of_class, by_class=True)
    if not files:
        found = ", ".join(entry.name for entry in entries[:10]) or "nothing"
        raise UserError(
            f"data: {folder}: needs train, validation and test as files ({', '.join(endings.files)})"
            f" or folders, one such file, or one folder a class of {', '.join(sorted(endings.members))} files; it"
            f" holds {found}"
        )
    if len({_SHARD.sub("", file.stem) + file.suffix for file in files}) > 1:
        raise UserError(
            f"data: {folder}: holds {', '.join(file.name for file in files[:10])}: name them train,"
            " validation and test, or say `files: {train: ...}`"
        )
    return Files(str(files[0] if len(files) == 1 else folder), tuple(files))


def _holds_rows(file: Path) -> bool:
    """Whether a file beside folders of classes can be a table: `classes.json` with their names is none."""
    if file.suffix.lower() != ".json":
        return True
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return True  # an object a line, or damaged, which reading it tells
    return coco.is_coco(file) or (isinstance(content, list) and any(isinstance(row, dict) for row in content))


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
        raise UserError(f"data: hub:{reference}: {first_line(error)}") from error
    parts: dict[SplitName, Part] = {}
    for name, rows in loaded.items():
        split = _ALIASES.get(name.lower())
        if split is not None and split not in parts:
            parts[split] = Fetched(f"hub:{reference} ({name})", rows)
    if "train" not in parts:
        raise UserError(f"data: hub:{reference}: has no split named train, it has {', '.join(loaded)}")
    return parts


def _read_class_folders(files: Sequence[Path]) -> Dataset:
    from datasets import Dataset

    origins = [f"{file.parent.name}/{file.name}" for file in files]
    labels = [file.parent.name for file in files]
    if files[0].suffix.lower() in PICTURES:
        return Dataset.from_dict(
            {"image": [str(file.absolute()) for file in files], "label": labels, ORIGIN: origins}
        )
    texts: list[str] = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    return Dataset.from_dict({"text": texts, "label": labels, ORIGIN: origins})
