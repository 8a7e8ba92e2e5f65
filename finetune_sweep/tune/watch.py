"""What a worker does beside training: it notices that it hangs, is asked to stop, or keeps too much memory."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.durable import explained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.contract import Output
    from finetune_sweep.train.packing import Forward

_REARM_S: Final = 1.0
_LOOK_S: Final = 0.5
_GROWTH: Final = 2.0
_GROWTH_BYTES: Final = 1 << 30


class Watchdog:
    """Ends this process when it does nothing for too long, and leaves what it was doing in a file.

    The clock runs in a thread of the interpreter's own that needs no lock of Python, so that a worker stuck in a
    library is ended as well.
    """

    def __init__(self, timeout_s: float) -> None:
        """Watches nothing yet.

        Args:
            timeout_s: Seconds without a sign of life after which the process ends.
        """
        self._timeout_s = timeout_s
        self._armed = 0.0
        self._file: int | None = None

    @contextlib.contextmanager
    def over(self, note: Path, keys: Iterable[str]) -> Iterator[None]:
        """Watches a block; every forward pass of what `listening` returned is a sign of life.

        Args:
            note: Where the stacks of all threads are written if the process hangs; it is gone after the block.
            keys: The trials that the block trains, so that each of them is told why it was lost.

        Raises:
            StorageError: If the file cannot be made.
        """
        with explained(note):
            note.parent.mkdir(parents=True, exist_ok=True)
            file = note.open("w")
        with file:
            file.write(" ".join(keys) + "\n")
            file.flush()
            self._file = file.fileno()
            self._arm(self._file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._file = None
                note.unlink(missing_ok=True)

    def listening(self, forward: Forward) -> Forward:
        """The same, with each pass a sign of life."""
        return _Heard(forward, self.beat)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """A block that may take as long as it takes, such as waiting for another process."""
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            if self._file is not None:
                self._arm(self._file)

    def beat(self) -> None:
        """A sign of life."""
        if self._file is not None and time.monotonic() - self._armed >= min(_REARM_S, self._timeout_s / 2):
            self._arm(self._file)

    def _arm(self, file: int) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=file)


@dataclass(frozen=True)
class _Heard:
    """A `Forward` that gives a sign of life with each pass."""

    inner: Forward
    beat: Callable[[], None]

    @property
    def model(self) -> PreTrainedModel:
        return self.inner.model

    def __call__(self, batch: Batch) -> Output:
        self.beat()
        return self.inner(batch)

    def at(self, first: int | None) -> Forward:
        return _Heard(self.inner.at(first), self.beat)


def stacks_of_hang(notes: Iterable[Path], keys: set[str]) -> str:
    """What the threads of a worker did that hung over one of these trials; empty if none did.

    The worker may have trained them together with others, under another name than they would have now.

    Args:
        notes: Those that `Watchdog.over` may have left.
        keys: The trials.
    """
    for note in notes:
        told, _, stacks = note.read_text(encoding="utf-8", errors="replace").partition("\n")
        if stacks and keys & set(told.split()):
            return stacks
    return ""


def resident_bytes() -> int:
    """The memory of this process alone that is in RAM, without mapped files; 0 where the system does not say."""
    try:
        _size, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Gives the system back what was freed, where the C library can: else a large model's memory stays for a while."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Growth:
    """Whether a worker keeps more and more memory from one unit to the next, each against the first of its model."""

    def __init__(self, measure: Callable[[], int] = resident_bytes) -> None:
        """Knows of no unit yet.

        Args:
            measure: The bytes of memory that the worker holds.
        """
        self._measure = measure
        self._first: dict[str, int] = {}

    def is_too_much(self, model: str) -> bool:
        """Measures what the worker holds after a unit of a model; says whether the worker is to be replaced."""
        held = self._measure()
        first = self._first.setdefault(model, held)
        most = max(_GROWTH * first, first + _GROWTH_BYTES)
        if held <= most:
            return False
        return_freed_memory()
        return self._measure() > most


class StopSign:
    """Whether the driver asks its workers to stop, looked up now and then."""

    def __init__(self, file: Path) -> None:
        """Looks at nothing yet.

        Args:
            file: Stands there while workers are to stop.
        """
        self._file = file
        self._looked = -_LOOK_S
        self._is_up = False

    def is_up(self) -> bool:
        """Whether to stop at this step."""
        if time.monotonic() - self._looked >= _LOOK_S:
            self._is_up, self._looked = self._file.exists(), time.monotonic()
        return self._is_up
