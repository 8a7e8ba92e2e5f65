"""The signals that ask a session to stop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from finetune_sweep.errors import Interrupted

INTERRUPTED: Final = 130
"""The exit code of a session that a signal ended."""


@dataclass
class Signals:
    """SIGINT, SIGTERM and SIGHUP since the session began; a second one ends the process at once.

    Training looks whether one came, and stores where it is. Everything else stands a kill at any moment, so there the
    first signal raises.
    """

    _received: list[int] = field(default_factory=list)
    _is_raising: bool = False

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The handler.

        Raises:
            KeyboardInterrupt: Inside of `raised`. A wait for Ray ends at once for this one, and for no other.
        """
        if self._received:
            os._exit(INTERRUPTED)
        self._received.append(number)
        if self._is_raising:
            raise KeyboardInterrupt

    def is_stopping(self) -> bool:
        """Whether a signal came."""
        return bool(self._received)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """A block that a signal ends at once, also one that came before it.

        Raises:
            Interrupted: If a signal came.
        """
        if self._received:
            raise Interrupted
        self._is_raising = True
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted from None
        finally:
            self._is_raising = False
        if self._received:  # a library has swallowed it
            raise Interrupted


@contextlib.contextmanager
def collected() -> Iterator[Signals]:
    """Collects the signals that ask to stop; one that is ignored, as SIGHUP is under `nohup`, stays ignored."""
    signals = Signals()
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in asking if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, signals.note) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
