"""What is put into our own sweep to measure it: times of durable writes, each trial alone, trials that do nothing.

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
from typing import Any, Final

from finetune_sweep import durable, journal, run
from finetune_sweep.events import Evaluated, Event, TrialEnded, UnitStarted
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan
from finetune_sweep.tune import driver, resume, worker
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.trainable import UnitTrainable

_SECONDS: Final = "seconds.jsonl"


def _replace(module: ModuleType, name: str, value: object) -> None:
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
    _replace(driver, "UnitTrainable", TimedTrainable)


class TimedTrainable(UnitTrainable):
    """A worker that times the folders it writes: checkpoints for resuming, and those of results."""

    def setup(self, config: dict[str, Any], plan: Plan, layout: Layout) -> None:  # type: ignore[override]
        """Replaces what the worker writes folders with, then takes the first unit."""
        watch = Stopwatch(layout.root)
        _replace(resume, "folder_aside", _timed_folder(watch, "resume"))
        _replace(worker, "folder_aside", _timed_folder(watch, "results"))
        super().setup(config, plan, layout)


def _timed_folder(watch: Stopwatch, what: str) -> Any:  # noqa: ANN401 - a context manager as `folder_aside` is one
    @contextlib.contextmanager
    def folder_aside(target: Path) -> Iterator[Path]:
        with watch.timed(what), durable.folder_aside(target) as folder:
            yield folder

    return folder_aside


def train_nothing() -> None:
    """Every trial ends at once with made-up metrics, and none is promoted; all else is as it is."""
    _replace(driver, "UnitTrainable", NoopTrainable)
    _replace(run, "_promote", lambda *_: None)


class NoopTrainable(UnitTrainable):
    """A worker that starts as any other, and loads neither model nor rows, since no unit asks for them."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next unit."""
        self._events = _made_up(new_config["assignment"], self._plan)
        return True


def _made_up(assignment: Assignment, plan: Plan) -> Iterator[tuple[Event, ...]]:
    """What a unit of one epoch tells."""
    unit = assignment.unit
    keys = tuple(trial.key for trial in unit.trials)
    yield (UnitStarted(unit.name, keys, worker.worker_info(plan)),)
    rate = unit.trials[-1].training.learning_rate
    metrics = {"accuracy": rate, "loss": 1.0}
    evaluated = Evaluated(unit.name, keys, 1, 1, 1.0, rate, metrics, metrics, 0.0, 0.0, 1)
    yield (evaluated, *(TrialEnded(key, "finished", 1, 1, rate) for key in keys))
