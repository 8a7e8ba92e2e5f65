"""What a worker does beside training: it notices that it hangs, and that it is asked to stop."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.layout import explained

if TYPE_CHECKING:
    from torch import nn

_REARM_S: Final = 1.0
_LOOK_S: Final = 0.5


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

    @contextlib.contextmanager
    def over(self, note: Path) -> Iterator[None]:
        """Watches a block; every forward pass of a model given to `listen` is a sign of life.

        Args:
            note: Where the stacks of all threads are written if the process hangs; it is gone after the block.

        Raises:
            StorageError: If the file cannot be made.
        """
        with explained(note):
            note.parent.mkdir(parents=True, exist_ok=True)
            file = note.open("w")
        with file:
            self._arm(file.fileno())
            try:
                self._file = file.fileno()
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                note.unlink(missing_ok=True)

    @contextlib.contextmanager
    def listen(self, model: nn.Module) -> Iterator[None]:
        """Takes the forward passes of a model, in training and evaluation, as signs of life."""
        handle = model.register_forward_pre_hook(lambda *_: self.beat())
        try:
            yield
        finally:
            handle.remove()

    def beat(self) -> None:
        """A sign of life."""
        if time.monotonic() - self._armed >= min(_REARM_S, self._timeout_s / 2):
            self._arm(self._file)

    def _arm(self, file: int) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=file)


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
