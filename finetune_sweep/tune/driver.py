"""The driver: hands the work units that are missing to Ray Tune, and writes down what comes of them.

Ray Tune executes and nothing more. When its run returns, the journal says what is still missing, and a new run takes
that on; what Tune itself thinks of a trial is never asked.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ray import tune

from finetune_sweep import disk, siblings
from finetune_sweep.beginnings import beginnings
from finetune_sweep.durable import check_folder, remove_folder, temporary_folder, write_atomic
from finetune_sweep.errors import Interrupted, StorageError, SweepError
from finetune_sweep.events import CheckpointRemoved, CheckpointWritten, Event, Failure, Suggested, TrialEnded
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan, remaining, unasked
from finetune_sweep.record import TrialRecord
from finetune_sweep.trial import Trial, WorkUnit
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.engine import Engine
from finetune_sweep.tune.search import UnitSearcher
from finetune_sweep.tune.trainable import STORAGE_ERROR, UnitTrainable, quieten
from finetune_sweep.tune.watch import stacks_of_hang

_STOP_S: Final = 18.0
"""How long workers may take to store where they are; a session that was asked to stop ends within 30 s."""
_STACK_CHARACTERS: Final = 8000


@dataclass
class Driver:
    """One sweep being trained.

    Args:
        on_change: Called after every change of the journal, and now and then.
        is_stopping: Whether the run is to end; workers then store where they are.
        finals: Whether the plan's trials are the finalists' runs, which keep their predictions and do not compete for
            checkpoints.
        failures: How often the trials of this run failed by a fault of their own.
        started: When `max_hours` began, by `time.monotonic`.
    """

    plan: Plan
    layout: Layout
    journal: Journal
    engine: Engine
    on_change: Callable[[], None]
    is_stopping: Callable[[], bool]
    finals: bool = False
    failures: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def train(self) -> None:
        """Trains what is missing, in rounds, until every trial has a result or has failed by its own fault.

        Raises:
            SweepError: If the first work unit has a fault, since all others would have it too.
            Interrupted: If the run is to end.
        """
        self.remove_orphans()
        disk.check_floor(self.plan, self.layout.root)
        for _ in range(self.plan.sweep.retries + 1):
            units = remaining(self.plan, self.journal.record, self.failures)
            count = len(units) + self.unasked()
            if not count or self.is_late():
                return
            self._fit(UnitSearcher(self._assignments(units), self._is_over), count)
        if self.is_late():
            return  # what the limit of time kept from starting was not lost
        for unit in remaining(self.plan, self.journal.record, self.failures):
            failure = self._loss(unit)
            self.journal.append(*(TrialEnded(t.key, "failed", failure=failure) for t in unit.trials))

    def is_late(self) -> bool:
        """Whether `max_hours` of the search have passed: then nothing more is started."""
        hours = None if self.finals else self.plan.sweep.search.max_hours
        return hours is not None and time.monotonic() > self.started + hours * 3600

    def _is_over(self) -> bool:
        return self.is_late() or self.is_stopping()

    def _loss(self, unit: WorkUnit) -> Failure:
        """Why a unit has no result after the last round: its worker hung and said where, or died without a word."""
        times = "" if not self.plan.sweep.retries else f", {self.plan.sweep.retries + 1} times"
        stacks = stacks_of_hang(self.layout.hangs(), {trial.key for trial in unit.trials})
        if not stacks:
            return Failure("lost_worker", f"the worker was lost{times}")
        message = f"no step within trial_timeout_s ({self.plan.sweep.trial_timeout_s:g} s){times}"
        return Failure("hang", message, stacks[-_STACK_CHARACTERS:])

    def ensure_checkpoint(self, key: str) -> None:
        """Trains a finished trial again if its checkpoint is gone or damaged; its recorded values stand.

        Raises:
            StorageError: If it could not be made again.
        """
        if self._has_checkpoint(self.journal.record.trials[key]):
            return
        copied = siblings.copied(self.journal.record.trials[key], self.layout)
        if copied is not None:
            self.journal.append(copied)
            return
        self.train_again(key)
        if not self._has_checkpoint(self.journal.record.trials[key]):
            raise StorageError(f"the checkpoint of trial {key} is missing and could not be made again")

    def train_again(self, key: str) -> None:
        """Trains a finished trial again for what it left behind; its recorded values stand."""
        trial = next(trial for trial in self.plan.trials if trial.key == key)
        rebuild = Assignment(WorkUnit((trial,)), rebuild=key, predictions=self.finals)
        known = len(self.journal.entries)
        for _ in range(self.plan.sweep.retries + 1):
            self._fit(UnitSearcher(iter([rebuild])), 1)
            if any(isinstance(entry.event, CheckpointWritten) for entry in self.journal.entries[known:]):
                break
        self.remove_orphans()

    def _assignments(self, units: Sequence[WorkUnit]) -> Iterator[Assignment]:
        """The units that are known, the costliest first, so that slots end together; then what the search asks for."""
        for unit in sorted(units, key=lambda unit: -unit.cost):
            yield Assignment(unit, self.bar(), predictions=self.finals)
        while self.unasked():
            trial = self._ask()
            if trial is not None:
                yield Assignment(WorkUnit((trial,)), self.bar())

    def unasked(self) -> int:
        """How many suggestions a search that learns from results still has."""
        return 0 if self.finals else unasked(self.plan.sweep, self.journal.record)

    def _ask(self) -> Trial | None:
        """Journals the next suggestion; None if its trial was suggested before."""
        from finetune_sweep.tune.suggest import suggest

        record = self.journal.record
        number = len(record.suggestions)
        trial = self.plan.searched(suggest(self.plan, record, number))
        is_new = trial.key not in {known.key for known in self.plan.trials}
        self.journal.append(trial.planned(), Suggested(number, trial.key))
        if not is_new:
            return None
        self.plan = replace(self.plan, trials=(*self.plan.trials, trial))
        self.journal.append(*beginnings(self.plan, [trial], record))
        return None if record.trials[trial.key].done else trial

    def bar(self) -> float | None:
        """The score of the last trial that keeps its checkpoint; None while there is room for any."""
        if self.finals:
            return None
        keep = self.plan.sweep.keep_checkpoints
        best = self.journal.record.ranking(keep)
        return best[-1].score if len(best) == keep else None

    def record(self, events: Sequence[Event]) -> None:
        """Writes down what a worker reported, and gives up the checkpoints that can no longer win."""
        if not events:
            return
        self.journal.append(*events)
        for event in events:
            if isinstance(event, TrialEnded) and event.failure is not None:
                self.failures[event.key] += 1
                self._stop_at_a_fault(event.failure)
        if any(isinstance(event, TrialEnded) for event in events):
            self.retain()
            disk.check_floor(self.plan, self.layout.root)
        self.on_change()

    def _fit(self, searcher: UnitSearcher, units: int) -> None:
        """One run of Ray Tune over what a searcher hands out."""
        quieten()
        self.layout.stop.unlink(missing_ok=True)
        context = replace(self.plan, trials=())
        trainable = tune.with_parameters(UnitTrainable, plan=context, layout=self.layout)
        recorder = _Recorder(self)
        with temporary_folder() as folder:
            tuner = tune.Tuner(
                tune.with_resources(trainable, self.engine.resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=units,
                    max_concurrent_trials=self.engine.slots,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=str(folder),
                    callbacks=[recorder],
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            try:
                tuner.fit()
            except Exception:
                if recorder.error is None:
                    raise
            self.layout.stop.unlink(missing_ok=True)
            if recorder.error is not None:
                raise recorder.error
            if self.is_stopping():
                raise Interrupted

    def _stop_at_a_fault(self, failure: Failure) -> None:
        """The first unit's fault is every unit's: a missing package, a column of the wrong type, a bug."""
        if failure.kind == "fault" and not any(trial.done for trial in self.journal.record.current()):
            raise SweepError(
                f"the first trial failed, and all others would too: {failure.message}\n{failure.traceback}"
            )

    def retain(self) -> None:
        """Deletes the checkpoints that cannot be promoted any more."""
        promotable = self.journal.record.promotable(self.plan.sweep.keep_checkpoints)
        kept = {trial.checkpoint for trial in promotable}
        named = {t.checkpoint for t in self.journal.record.trials.values() if t.checkpoint is not None}
        for checkpoint in sorted(named - kept):
            self._forget(checkpoint)
            remove_folder(self.layout.within(checkpoint))

    def _forget(self, checkpoint: str) -> None:
        """Notes that a checkpoint is gone, for all trials of its trajectory that have it, before any of it is."""
        trials = self.journal.record.trials.values()
        self.journal.append(*(CheckpointRemoved(t.key) for t in trials if t.checkpoint == checkpoint))

    def remove_orphans(self) -> None:
        """Deletes what a killed run left: checkpoints of no trial, and those for resuming one that has ended."""
        trials = self.journal.record.trials
        known = {trial.checkpoint for trial in trials.values()}
        for folder in (self.layout.root / "trials").glob("*/*"):
            if not folder.is_dir():
                folder.unlink()
                continue
            trial = trials.get(folder.parent.name)
            is_for_resuming = folder.name.startswith("resume-") and trial is not None and not trial.done
            if not is_for_resuming and str(folder.relative_to(self.layout.root)) not in known:
                remove_folder(folder)

    def _has_checkpoint(self, trial: TrialRecord) -> bool:
        if trial.checkpoint is None or trial.checkpoint.rpartition("-")[2] != f"{trial.best_epoch:04d}":
            return False
        try:
            check_folder(self.layout.within(trial.checkpoint))
        except StorageError:
            self._forget(trial.checkpoint)
            return False
        return True


class _Recorder(tune.Callback):
    """Ray Tune's view of the driver. An exception here ends Tune's run; the driver raises it again."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._give_up = math.inf
        self.error: BaseException | None = None

    def __getstate__(self) -> dict[str, object]:
        return {}  # as for the searcher: a restore is never asked for

    def on_trial_result(self, *_: Any, result: dict[str, Any], **__: Any) -> None:  # type: ignore[override]  # noqa: ANN401 - Ray Tune's types
        self._guard(lambda: self._record(result))

    def _record(self, result: Mapping[str, Any]) -> None:
        if STORAGE_ERROR in result:
            raise StorageError(result[STORAGE_ERROR])
        self._driver.record(result.get("events", ()))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ANN401, ARG002 - Ray Tune's signature
        self._guard(lambda: self._look(trials))

    def _look(self, trials: list[Any]) -> None:
        """Goes on, or asks the workers to stop and waits until they have, though not for ever."""
        self._driver.on_change()
        if not self._driver.is_stopping():
            return
        if self._give_up == math.inf:
            self._give_up = time.monotonic() + _STOP_S
            write_atomic(self._driver.layout.stop, b"")
        if time.monotonic() > self._give_up or not any(trial.status == "RUNNING" for trial in trials):
            raise Interrupted

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self.error = error
            raise
