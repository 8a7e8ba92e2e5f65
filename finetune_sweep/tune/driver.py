"""The driver: hands the work units that are missing to Ray Tune, and writes down what comes of them.

Ray Tune executes and nothing more. When its run returns, the journal says what is still missing, and a new run takes
that on; what Tune itself thinks of a trial is never asked.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray import tune

from finetune_sweep.errors import StorageError, SweepError
from finetune_sweep.events import CheckpointRemoved, Event, Failure, Suggested, TrialEnded
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout, check_folder, remove_folder
from finetune_sweep.plan import Plan, remaining
from finetune_sweep.record import TrialRecord
from finetune_sweep.spec import Tpe
from finetune_sweep.trial import Trial, WorkUnit
from finetune_sweep.tune.engine import Engine
from finetune_sweep.tune.search import UnitSearcher
from finetune_sweep.tune.worker import STORAGE_ERROR, Assignment, UnitTrainable


@dataclass
class Driver:
    """One sweep being trained.

    Args:
        on_change: Called after every change of the journal, and now and then; may raise what is to end the run.
        finals: Whether the plan's trials are the finalists' runs, which keep their predictions and do not compete for
            checkpoints.
        failures: How often the trials of this run failed by a fault of their own.
    """

    plan: Plan
    layout: Layout
    journal: Journal
    engine: Engine
    on_change: Callable[[], None]
    finals: bool = False
    failures: Counter[str] = field(default_factory=Counter)

    def train(self) -> None:
        """Trains what is missing, in rounds, until every trial has a result or has failed by its own fault.

        Raises:
            SweepError: If the first work unit has a fault, since all others would have it too.
            BaseException: What `on_change` raised.
        """
        self._remove_orphans()
        self._check_disk()
        hours = None if self.finals else self.plan.sweep.search.max_hours
        deadline = time.monotonic() + hours * 3600 if hours is not None else None
        for _ in range(self.plan.sweep.retries + 1):
            units = remaining(self.plan, self.journal.record, self.failures)
            count = len(units) + self.unasked()
            if not count or (deadline is not None and time.monotonic() > deadline):
                return
            self._fit(UnitSearcher(self._assignments(units), deadline), count)
        if deadline is not None and time.monotonic() > deadline:
            return  # what the limit of time kept from starting was not lost
        lost = remaining(self.plan, self.journal.record, self.failures)
        failure = Failure("lost_worker", f"the worker was lost {self.plan.sweep.retries + 1} times")
        self.journal.append(
            *(TrialEnded(t.key, "failed", failure=failure) for unit in lost for t in unit.trials)
        )

    def ensure_checkpoint(self, key: str) -> None:
        """Trains a finished trial again if its checkpoint is gone or damaged; its recorded values stand.

        Raises:
            StorageError: If it could not be made again.
        """
        if self._has_checkpoint(self.journal.record.trials[key]):
            return
        self.train_again(key)
        if not self._has_checkpoint(self.journal.record.trials[key]):
            raise StorageError(f"the checkpoint of trial {key} is missing and could not be made again")

    def train_again(self, key: str) -> None:
        """Trains a finished trial again for what it left behind; its recorded values stand."""
        trial = next(trial for trial in self.plan.trials if trial.key == key)
        rebuild = Assignment(WorkUnit((trial,)), rebuild=key, predictions=self.finals)
        self._fit(UnitSearcher(iter([rebuild])), 1)

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
        search = self.plan.sweep.search
        if self.finals or not isinstance(search, Tpe):
            return 0
        return search.trials - len(self.journal.record.suggestions)

    def _ask(self) -> Trial | None:
        """Journals the next suggestion; None if its trial was suggested before."""
        from finetune_sweep.tune.suggest import suggest

        record = self.journal.record
        number = len(record.suggestions)
        trial = self.plan.trial(suggest(self.plan, record, number))
        is_new = trial.key not in {known.key for known in self.plan.trials}
        self.journal.append(trial.planned(), Suggested(number, trial.key))
        if not is_new:
            return None
        self.plan = replace(self.plan, trials=(*self.plan.trials, trial))
        return None if record.trials[trial.key].done else trial

    def bar(self) -> float | None:
        """The score of the last trial that keeps its checkpoint; None while there is room for any."""
        if self.finals:
            return None
        ranking = self.journal.record.ranking()
        keep = self.plan.sweep.keep_checkpoints
        return ranking[keep - 1].score if len(ranking) >= keep else None

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
            self._check_disk()
        self.on_change()

    def _fit(self, searcher: UnitSearcher, units: int) -> None:
        """One run of Ray Tune over what a searcher hands out."""
        context = replace(self.plan, trials=())
        trainable = tune.with_parameters(UnitTrainable, plan=context, layout=self.layout)
        recorder = _Recorder(self)
        with tempfile.TemporaryDirectory(prefix="finetune_sweep-", ignore_cleanup_errors=True) as folder:
            tuner = tune.Tuner(
                tune.with_resources(trainable, self.engine.resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=units,
                    max_concurrent_trials=self.engine.slots,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=folder,
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
            if recorder.error is not None:
                raise recorder.error

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
        for trial in self.journal.record.trials.values():
            checkpoint = trial.checkpoint
            if checkpoint is not None and checkpoint not in kept:
                self.journal.append(CheckpointRemoved(trial.key))
                remove_folder(self.layout.root / checkpoint)

    def _check_disk(self) -> None:
        """Stops while there is room to write down that it stopped.

        Raises:
            StorageError: If less is free than `min_free_bytes`.
        """
        free, floor = shutil.disk_usage(self.layout.root).free, self.plan.sweep.min_free_bytes
        if free < floor:
            raise StorageError(
                f"{self.layout.root} has {free:,} bytes free, below min_free_bytes ({floor:,}); make room, and run"
                " again: what is finished stays"
            )

    def _remove_orphans(self) -> None:
        """Deletes what a killed run left: checkpoints of no trial, and those for resuming one that has ended."""
        trials = self.journal.record.trials
        known = {trial.checkpoint for trial in trials.values()}
        for folder in (self.layout.root / "trials").glob("*/*"):
            trial = trials.get(folder.parent.name)
            is_for_resuming = folder.name.startswith("resume-") and trial is not None and not trial.done
            if not is_for_resuming and str(folder.relative_to(self.layout.root)) not in known:
                remove_folder(folder)

    def _has_checkpoint(self, trial: TrialRecord) -> bool:
        if trial.checkpoint is None or trial.checkpoint.rpartition("-")[2] != f"{trial.best_epoch:04d}":
            return False
        try:
            check_folder(self.layout.root / trial.checkpoint)
        except StorageError:
            self.journal.append(CheckpointRemoved(trial.key))
            return False
        return True


class _Recorder(tune.Callback):
    """Ray Tune's view of the driver. An exception here ends Tune's run; the driver raises it again."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
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
        self._guard(self._driver.on_change)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self.error = error
            raise
