"""Workers that are measured, and workers that do nothing, in the place of the package's own.

As in the package, what a training needs is imported in the worker alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.instruments import Stopwatch, replace
from finetune_sweep import durable
from finetune_sweep.events import Evaluated, Event, TrialEnded, UnitStarted
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.trainable import UnitTrainable


class TimedTrainable(UnitTrainable):
    """A worker that times the folders it writes: checkpoints for resuming, and those of results."""

    def setup(self, config: dict[str, Any], plan: Plan, layout: Layout) -> None:  # type: ignore[override]
        """Replaces what the worker writes folders with, then takes the first unit."""
        from finetune_sweep.tune import resume, worker

        watch = Stopwatch(layout.root)
        replace(resume, "folder_aside", _timed_folder(watch, "resume"))
        replace(worker, "folder_aside", _timed_folder(watch, "results"))
        super().setup(config, plan, layout)


def _timed_folder(watch: Stopwatch, what: str) -> Any:  # noqa: ANN401 - a context manager as `folder_aside` is one
    @contextlib.contextmanager
    def folder_aside(target: Path) -> Iterator[Path]:
        with watch.timed(what), durable.folder_aside(target) as folder:
            yield folder

    return folder_aside


class NoopTrainable(UnitTrainable):
    """A worker that starts as any other, and loads neither model nor rows, since no unit asks for them."""

    def events_of(self, assignment: Assignment) -> Iterator[tuple[Event, ...]]:
        """Trains nothing."""
        return _made_up(assignment, self._plan)


def _made_up(assignment: Assignment, plan: Plan) -> Iterator[tuple[Event, ...]]:
    """What a unit of one epoch tells."""
    from finetune_sweep.tune.worker import worker_info

    unit = assignment.unit
    keys = tuple(trial.key for trial in unit.trials)
    yield (UnitStarted(unit.name, keys, worker_info(plan)),)
    rate = unit.trials[-1].training.learning_rate
    metrics = {"accuracy": rate, "loss": 1.0}
    evaluated = Evaluated(unit.name, keys, 1, 1, 1.0, rate, metrics, metrics, 0.0, 0.0, 1)
    yield (evaluated, *(TrialEnded(key, "finished", 1, 1, rate) for key in keys))
