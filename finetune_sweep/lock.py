"""One driver at a time: the lock of a sweep, its owner, and the token by which an old owner is known."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Final, Self

from finetune_sweep.durable import explained
from finetune_sweep.errors import SweepLocked
from finetune_sweep.layout import Layout

_LOCK_ATTEMPTS: Final = 3
_LOCK_PAUSE_S: Final = 0.05


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
