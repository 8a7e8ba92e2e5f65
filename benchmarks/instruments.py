"""What is put into our own sweep to measure it: times of durable writes, trials that do nothing.

Each replaces one name in a module of the package, in the process that drives or in the workers; nothing in the
package knows of it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from finetune_sweep import journal, run, session
from finetune_sweep.events import Event

if TYPE_CHECKING:
    from finetune_sweep.plan import Plan
    from finetune_sweep.tune.driver import Driver

_SECONDS: Final = "seconds.jsonl"


def replace(module: ModuleType, name: str, value: object) -> None:
    """Sets a name that is there: one that was renamed must not go unmeasured.

    Raises:
        AttributeError: If it is not there.
    """
    getattr(module, name)
    setattr(module, name, value)


class Stopwatch:
    """Seconds by what they were spent on, in a file that all processes of a sweep append to."""

    def __init__(self, folder: Path) -> None:
        """Opens nothing yet.

        Args:
            folder: Where the file lies; it must exist.
        """
        self._file = folder / _SECONDS

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            line = json.dumps([what, time.perf_counter() - started]) + "\n"
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line)

    def totals(self) -> dict[str, float]:
        """The sums."""
        sums: dict[str, float] = {}
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        for what, seconds in map(json.loads, lines):
            sums[what] = sums.get(what, 0.0) + seconds
        return sums


def time_durable_writes(folder: Path) -> None:
    """Times appending to the journal here, and writing checkpoints in the workers."""
    watch = Stopwatch(folder)
    append = journal.Journal.append

    def timed_append(self: journal.Journal, *events: Event) -> None:
        with watch.timed("journal"):
            append(self, *events)

    journal.Journal.append = timed_append  # type: ignore[method-assign]


def use_workers(name: str) -> None:
    """Trains with a class of `workers.py`.

    It is loaded where the package loads its own: loaded here, it would put the start off.
    """
    make = session.Session.driver

    def driver_with_workers(
        self: session.Session, plan: Plan | None = None, *, finals: bool = False
    ) -> Driver:
        made = make(self, plan, finals=finals)
        from benchmarks import workers
        from finetune_sweep.tune import driver

        replace(driver, "UnitTrainable", getattr(workers, name))
        return made

    session.Session.driver = driver_with_workers  # type: ignore[method-assign]


def promote_nothing() -> None:
    """Leaves out what comes after the training."""
    replace(run, "_promote", lambda *_: None)
