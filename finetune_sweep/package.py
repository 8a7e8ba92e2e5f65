"""What is sent to a cluster: a sweep that needs nothing of the machine it was written on.

What a sweep file names by path is on the machine where it was written. A package holds it, and a sweep file
in which everything is resolved: overrides, the space, and paths, which point into the shared storage. There the
package is unpacked before the run, once for the same content: all nodes read it, and so do later commands.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finetune_sweep import yamlio
from finetune_sweep.durable import check_folder, folder_aside, sha256
from finetune_sweep.errors import StorageError, UserError
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.space import Choice, Dimension, FloatRange, IntRange, Space
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import default_cache

SWEEP_FILE: Final = "sweep.yaml"
"""The resolved sweep in a package."""
INPUTS: Final = "inputs"
"""The folder, in a package and in the sweep's folder, of what was sent with it."""
LARGEST_BYTES: Final = 480 * 2**20
"""What a package may weigh; Ray holds it in the memory of the head node, and takes 512 MiB."""

_MIB: Final = 2**20
_LOCAL: Final = frozenset({"model", "augment.synonyms"})
"""Dimensions whose values may be paths."""
_DIGEST_DIGITS: Final = 16
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A sweep, ready to be sent.

    Args:
        sweep: The sweep as the cluster sees it.
        inputs: What goes along: files by their name in the package, such as `inputs/<digest>/reviews.csv`.
    """

    sweep: Sweep
    inputs: Mapping[str, Path]

    def write(self, file: Path) -> str:
        """Writes the package as a zip, the same bytes for the same content.

        Returns:
            Its sha256.
        """
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_entry(SWEEP_FILE), dump(self.sweep))
            for name, path in sorted(self.inputs.items()):
                with path.open("rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
        return sha256(file)


def pack(sweep: Sweep, shared: Sequence[Path] = ()) -> Package:
    """Takes what a sweep names on this machine into a package.

    Args:
        sweep: The checked sweep, its paths absolute.
        shared: Folders that all nodes see under the same path; the storage is one. What lies there stays there.

    Raises:
        UserError: If something is not there, or all of it is too large to be sent.
    """
    layout = Layout(parse_storage(sweep.storage or ""), sweep.name)
    packing = _Packing(layout.root / INPUTS, (layout.storage, *(path.resolve() for path in shared)))
    data = sweep.data
    files = {split: packing.take(path) for split, path in data.files.items()} if data.files else None
    source = packing.take(data.source) if data.source else None
    augment = sweep.training.augment
    if augment is not None and augment.synonyms:
        augment = augment.model_copy(update={"synonyms": packing.take(augment.synonyms)})
    dimensions = tuple(_with_models(dimension, packing) for dimension in sweep.space.dimensions)
    update = {
        "model": packing.take(sweep.model),
        "data": data.model_copy(update={"source": source, "files": files}),
        "training": sweep.training.model_copy(update={"augment": augment} if augment else {}),
        "space": Space(dimensions),
        "cache": None if sweep.cache == str(default_cache()) else sweep.cache,
    }
    return Package(sweep.model_copy(update=update), packing.files)


def unpack(package: Path, layout: Layout) -> None:
    """Puts what was sent into the sweep's folder, where the packaged sweep expects it.

    Args:
        package: The folder into which Ray extracted the package.
        layout: Whose folder it is.

    Raises:
        StorageError: If the storage cannot be written.
    """
    for sent in sorted((package / INPUTS).glob("*")):
        target = layout.root / INPUTS / sent.name
        try:
            check_folder(target)
        except StorageError:
            with folder_aside(target) as folder:
                shutil.copytree(sent, folder, dirs_exist_ok=True)


def dump(sweep: Sweep) -> str:
    """A sweep as a file that `load_sweep` reads as the same sweep."""
    content = sweep.model_dump(mode="json", exclude={"space"}, exclude_unset=True)
    space = {dimension.name: _domain(dimension) for dimension in sweep.space.dimensions}
    return yamlio.dump({**content, "space": space})


def _domain(dimension: Dimension) -> yamlio.Value:
    """A dimension as it is written in a file."""
    domain: dict[str, yamlio.Value]
    match dimension.domain:
        case Choice(values):
            domain = {"values": list(values)}
        case IntRange(low, high, step, log, count):
            domain = {"low": low, "high": high, "step": step if step != 1 else None, "count": count}
            domain["log"] = log or None
        case FloatRange(low, high, fraction, log, count):
            domain = {"low": low, "high": high, "step": fraction, "count": count, "log": log or None}
    domain["when"] = {name: list(values) for name, values in dimension.when.items()} or None
    return {name: value for name, value in domain.items() if value is not None}


def _with_models(dimension: Dimension, packing: _Packing) -> Dimension:
    """A dimension in which folders of models, also in its condition, are those of the package."""

    def there(name: str, values: Iterable[yamlio.Value]) -> tuple[yamlio.Value, ...]:
        return tuple(packing.take(str(value)) if name in _LOCAL else value for value in values)

    domain = dimension.domain
    if isinstance(domain, Choice):
        domain = Choice(there(dimension.name, domain.values))
    when = {name: there(name, values) for name, values in dimension.when.items()}
    return Dimension(dimension.name, domain, when, dimension.file, dimension.line)


@dataclass
class _Packing:
    """Collects local files, and says what they are called on the cluster.

    Args:
        there: The folder on the shared storage where they will lie.
        shared: Folders from which nothing needs to be sent.
    """

    there: Path
    shared: tuple[Path, ...]
    files: dict[str, Path] = field(default_factory=dict)
    _bytes: int = 0

    def take(self, reference: str) -> str:
        """The reference of a model or of data on the cluster; a path is packed unless it is shared."""
        if reference.startswith("scratch:"):
            return "scratch:" + self.take(reference.removeprefix("scratch:"))
        if ":" in reference:
            return reference
        path = Path(reference)
        if any(path.is_relative_to(folder) for folder in self.shared):
            return reference
        if not path.exists():
            raise UserError(f"there is no {reference!r} here, so it cannot be sent; --shared names its folder if"
                            " all nodes of the cluster see it")  # fmt: skip
        found = dict(_files(path))
        self._weigh(reference, (file for file in found.values()))
        digest = _digest(found)
        self.files |= {f"{INPUTS}/{digest}/{name}": file for name, file in found.items()}
        return str(self.there / digest / path.name)

    def _weigh(self, reference: str, files: Iterable[Path]) -> None:
        self._bytes += sum(file.stat().st_size for file in files)
        if self._bytes > LARGEST_BYTES:
            raise UserError(
                f"{reference} makes the package {self._bytes / _MIB:.0f} MiB, more than the"
                f" {LARGEST_BYTES / _MIB:.0f} MiB that can be sent with a job; put it into a folder that all nodes"
                " see, and name that with --shared"
            )


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a file or a folder, by their names below its parent; hidden ones are left out."""
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path.parent)
        hidden = any(part.startswith(".") for part in name.parts[1:])
        if file.is_file() and not hidden:
            yield name.as_posix(), file


def _digest(files: Mapping[str, Path]) -> str:
    lines = "".join(f"{sha256(file)} {name}\n" for name, file in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGEST_DIGITS]


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry without the time and owner, so that equal content gives equal bytes."""
    entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
