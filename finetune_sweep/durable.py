"""Writing that a kill at any moment leaves whole: a file, a folder, lines at the end of a file.

A file is written aside, synced and renamed; a folder is filled aside, gets its manifest, and takes the other's place;
what is appended is synced before anything is done because of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from finetune_sweep.errors import StorageError, SweepError
from finetune_sweep.exchange import exchange

MANIFEST: Final = "manifest.json"
_BLOCK_BYTES: Final = 1 << 20
_TEMPORARY: Final = "finetune_sweep-"
_LEFT_S: Final = 60.0
"""A temporary folder that nobody holds is new before this, and left by a kill after it."""


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
    """Puts the old folder back if a kill came between the two renames of a replacement that needs two."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(aside: Path, target: Path) -> None:
    recover_folder(target)
    if target.exists() and exchange(aside, target):
        _sync_folder(target.parent)
        return  # the caller deletes what is aside now
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


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder on this machine that is gone after the block; what kills left of such folders goes first.

    Its process holds a lock on it, by which another one sees that it is in use.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError), _held(left):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _held(folder):
            yield folder


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder.

    Raises:
        OSError: If another process has it, or the folder is not ours to open.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


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
