"""Where files lie, and how they are written so that a kill at any moment leaves them whole.

Everything durable of a sweep goes through here: a file is written aside, synced and renamed; a folder is filled
aside and renamed; the journal is appended and synced; one driver at a time holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from finetune_sweep.errors import StorageError, SweepError, SweepLocked, UserError

MANIFEST: Final = "manifest.json"
CHANGED_TENSORS: Final = "changed.safetensors"
"""The file in a trial's checkpoint."""
VALIDATION_PREDICTIONS: Final = "validation.npz"
"""The file in the folder of a run's predictions."""
_BLOCK_BYTES: Final = 1 << 20
_LOCK_ATTEMPTS: Final = 3
_LOCK_PAUSE_S: Final = 0.05


@dataclass(frozen=True)
class Layout:
    """The paths of one sweep.

    Args:
        storage: The folder that holds sweeps, absolute.
        sweep: The sweep's name; it has been checked to be a plain file name.
    """

    storage: Path
    sweep: str

    @property
    def root(self) -> Path:
        """The sweep's folder."""
        return self.storage / self.sweep

    @property
    def lock(self) -> Path:
        """Who drives the sweep."""
        return self.root / "lock"

    @property
    def resolved(self) -> Path:
        """The resolved spec, versions, model and data fingerprints, hardware."""
        return self.root / "sweep.lock.yaml"

    @property
    def journal(self) -> Path:
        """The folder of the journal's segments."""
        return self.root / "journal"

    @property
    def stop(self) -> Path:
        """Stands there while the driver asks its workers to store where they are, and to stop."""
        return self.root / "stop"

    @property
    def best(self) -> Path:
        """The promoted checkpoint, a complete Hugging Face folder."""
        return self.root / "best"

    def within(self, relative: str) -> Path:
        """The folder of a trial's checkpoint that the journal names.

        Raises:
            StorageError: If it leads elsewhere.
        """
        path, trials = self.root / relative, (self.root / "trials").resolve()
        if trials not in path.resolve().parents:
            raise StorageError(
                f"the journal of {self.root} names {relative!r}, which leads out of its trials"
            )
        return path

    def segments(self) -> list[Path]:
        """The journal's segments, oldest first."""
        return sorted(self.journal.glob("[0-9]*.jsonl"))

    def next_segment(self) -> Path:
        """The path of a segment after all that exist."""
        existing = self.segments()
        number = int(existing[-1].stem) + 1 if existing else 1
        return self.journal / f"{number:06d}.jsonl"

    def trial(self, key: str) -> Path:
        """The folder of a trial's checkpoints."""
        return self.root / "trials" / key

    def hang(self, key: str) -> Path:
        """Where a worker that was ended because it hung has written what it was doing."""
        return self.trial(key) / "hang.txt"

    def checkpoint(self, key: str, epoch: int) -> Path:
        """The checkpoint of a trial after an epoch, counted from 1."""
        return self.trial(key) / f"epoch-{epoch:04d}"

    def predictions(self, key: str, epoch: int) -> Path:
        """What the model of a finalist's run said of each validation row after an epoch."""
        return self.root / "predictions" / key / f"epoch-{epoch:04d}"


def parse_storage(reference: str) -> Path:
    """The folder that a storage option names.

    Raises:
        UserError: If it is a store that is not supported yet.
    """
    scheme, separator, rest = reference.partition("://")
    if separator and scheme != "file":
        raise UserError(
            f"storage {scheme}:// is not supported yet, got {reference!r}; give a folder, also a shared one"
        )
    return Path(rest if separator else reference).expanduser().absolute()


# --------------------------------------------------------------------------------------------------- writing


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old content or the new one, also after a crash.

    Raises:
        StorageError: If the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, to be filled; it takes target's place if the block succeeds.

    Files are synced and listed with size and sha256 in a manifest, which is written last. A folder that stood
    there is replaced.

    Raises:
        StorageError: If the disk refuses.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with explained(target):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    try:
        with _full_disk_explained(target):
            yield aside
        with explained(target):
            _write_manifest(aside)
            _replace_folder(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Puts the old folder back if a kill came between the two renames of a replacement."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(aside: Path, target: Path) -> None:
    recover_folder(target)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    aside.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    for path in files:
        _sync(path)
    write_atomic(folder / MANIFEST, json.dumps(listed, indent=1).encode())


def check_folder(folder: Path) -> None:
    """Checks a folder against its manifest.

    Raises:
        StorageError: If the manifest is missing, or a file differs from it.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder} has no valid manifest: {error}") from None
    if not isinstance(listed, dict):
        raise StorageError(f"{folder} has no valid manifest: it must list files, got {listed!r}")
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            raise StorageError(f"{path} is missing, its manifest lists it")
        found = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if found != expected:
            raise StorageError(f"{path} is damaged: its manifest says {expected}, found {found}")


def remove_folder(folder: Path) -> None:
    """Deletes a folder of a sweep; the manifest first, so that a half-deleted one counts as absent."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes what kills left in a folder, half written; whoever calls this is the only one who writes there."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the system's refusals into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise StorageError(f"{path} could not be written: {reason}") from error


@contextlib.contextmanager
def _full_disk_explained(path: Path) -> Iterator[None]:
    """The same for a full disk alone, also where a library that writes without Python says so in words of its own."""
    try:
        yield
    except SweepError:
        raise
    except Exception as error:
        full = {errno.ENOSPC, errno.EDQUOT}
        if getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full):
            raise StorageError(f"{path} could not be written: the disk is full") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_folder = _sync


class DurableFile:
    """A file that only grows, each append synced before it returns."""

    def __init__(self, path: Path) -> None:
        """Creates the file; it must not exist.

        Raises:
            StorageError: If it exists or cannot be created.
        """
        self.path = path
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            _sync_folder(path.parent)

    def append(self, content: bytes) -> None:
        """Adds bytes at the end and syncs them, or leaves the file as it was.

        Raises:
            StorageError: If the disk refuses.
        """
        with explained(self.path):
            length = os.fstat(self._descriptor).st_size
            try:
                while content:
                    content = content[os.write(self._descriptor, content) :]
                os.fsync(self._descriptor)
            except BaseException:  # also a signal's
                os.ftruncate(self._descriptor, length)
                raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def cut_off(path: Path, length: int) -> None:
    """Shortens a file durably.

    Raises:
        StorageError: If the disk refuses.
    """
    with explained(path), path.open("r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------------- the lock


@dataclass(frozen=True)
class Owner:
    """Who holds a sweep, since when (seconds since 1970), with which fencing token."""

    host: str
    pid: int
    since: float
    token: int


class SweepLock:
    """The right to drive a sweep, held by one process; the kernel frees it when that process ends."""

    def __init__(self, layout: Layout) -> None:
        """Takes the lock.

        Raises:
            SweepLocked: If another driver holds it; names host, process and start.
            StorageError: If the storage cannot be written.
        """
        path = layout.lock
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _acquire(self._descriptor):
            os.close(self._descriptor)
            raise SweepLocked(_held_by(layout, read_owner(layout)))
        previous = read_owner(layout)
        token = previous.token + 1 if previous else 1
        self.owner = Owner(socket.gethostname(), os.getpid(), time.time(), token)
        content = json.dumps(asdict(self.owner)).encode()
        with explained(path):
            os.pwrite(self._descriptor, content, 0)
            os.ftruncate(self._descriptor, len(content))
            os.fsync(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _acquire(descriptor: int) -> bool:
    for _ in range(_LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOCK_PAUSE_S)  # someone who only asks `is_locked` holds it for an instant
    return False


def read_owner(layout: Layout) -> Owner | None:
    """Who wrote the lock file last, whether or not it still holds the lock."""
    try:
        return Owner(**json.loads(layout.lock.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def is_locked(layout: Layout) -> bool:
    """Whether a living driver holds the sweep."""
    try:
        descriptor = os.open(layout.lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _held_by(layout: Layout, owner: Owner | None) -> str:
    if owner is None:
        return f"the sweep {layout.sweep!r} in {layout.storage} is held by another driver"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
    return (
        f"the sweep {layout.sweep!r} in {layout.storage} is driven by process {owner.pid} on {owner.host}"
        f" since {since}; wait for it or stop it"
    )
