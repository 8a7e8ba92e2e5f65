"""What runs on a worker: one work unit at a time, with model and data loaded once a process.

A worker tells what happened as journal events in the results that it reports; the driver writes them down. Nothing
that goes wrong in a trial is raised to Ray Tune, whose verdicts the sweep does not use.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import ray
import torch
from safetensors.torch import save_file

from finetune_sweep.durable import folder_aside
from finetune_sweep.errors import FailureClass, StorageError, TrialError
from finetune_sweep.events import (
    CheckpointWritten,
    Evaluated,
    Event,
    Failure,
    TrialEnded,
    TrialState,
    UnitStarted,
    WorkerInfo,
)
from finetune_sweep.layout import CHANGED_TENSORS, VALIDATION_PREDICTIONS, Layout
from finetune_sweep.plan import Plan
from finetune_sweep.train import loop
from finetune_sweep.train.heads import Trained
from finetune_sweep.train.memory import is_out_of_memory
from finetune_sweep.train.state import Evaluation
from finetune_sweep.trial import Trial, WorkUnit
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.branching import train_branches
from finetune_sweep.tune.fused import is_stacked, train_together
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.resume import Best, Checkpoints
from finetune_sweep.tune.watch import StopSign

_TRACEBACK_CHARACTERS: Final = 8000


def run_unit(
    assignment: Assignment, plan: Plan, layout: Layout, loaded: Loaded
) -> Iterator[tuple[Event, ...]]:
    """Trains a unit, and yields what is to be journalled as it happens.

    A fault of a trial ends the trials of the unit that have no result yet; it is recorded, not raised.

    Raises:
        StorageError: If the storage refuses; the trials stay open, and a later run goes on.
    """
    members = [dataclasses.replace(assignment, unit=member) for member in assignment.unit.members]
    runs = [_UnitRun(member, plan, layout, loaded, bar=assignment.bar) for member in members]
    keys = [trial.key for run in runs for trial in run.unit.trials]
    if assignment.rebuild is None:
        yield tuple(run.started() for run in runs)
    try:
        with loaded.watchdog.over(layout.hang(assignment.unit.name), keys):
            yield from _events(runs, plan, loaded)
    except StorageError:
        raise
    except TrialError as error:
        yield _end_open(runs, Failure(error.failure, error.message))
    except Exception as error:  # noqa: BLE001 - here a trial ends, whatever ended it
        trace = traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
        kind: FailureClass = "out_of_memory" if is_out_of_memory(error) else "fault"
        yield _end_open(runs, Failure(kind, f"{type(error).__name__}: {error}", trace))


def _events(runs: Sequence[_UnitRun], plan: Plan, loaded: Loaded) -> Iterator[tuple[Event, ...]]:
    if is_stacked(runs[0].unit.trials, plan):
        yield from train_together(runs, plan, loaded)
    elif len(runs) > 1:
        yield from train_branches(runs, loaded)
    else:
        yield from runs[0].events()


def _end_open(runs: Sequence[_UnitRun], failure: Failure) -> tuple[Event, ...]:
    return tuple(event for run in runs for event in run.end_open(failure))


@dataclass
class _UnitRun:
    """One trajectory while it is trained."""

    assignment: Assignment
    plan: Plan
    layout: Layout
    loaded: Loaded
    bar: float | None = None
    scores: list[float] = field(default_factory=list)
    best: Best | None = None
    written: str = ""
    history: list[Evaluation] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Nothing is looked up before `events` is asked for."""
        self.stop_sign = StopSign(self.layout.stop)

    @property
    def unit(self) -> WorkUnit:
        """The trajectory's trials."""
        return self.assignment.unit

    @property
    def competes(self) -> bool:
        """Whether its checkpoint competes with those of other trials; finalists' runs are kept by another rule."""
        return not self.assignment.predictions

    @property
    def begins_anew(self) -> bool:
        """Whether it must begin anew: a checkpoint from after the epoch that counts lacks what was said then."""
        return self.assignment.rebuild is not None and self.assignment.predictions

    def started(self) -> UnitStarted:
        """The beginning of the trajectory."""
        unit = self.assignment.unit
        return UnitStarted(unit.name, tuple(trial.key for trial in unit.trials), worker_info(self.plan))

    def events(self) -> Iterator[tuple[Event, ...]]:
        """Trains from the newest checkpoint, or from the start; what was evaluated before is told again.

        Where the driver asks to stop, where the training stands is stored, and its trials have no end yet.
        """
        job, state = self.loaded.job(self.assignment.unit.trials[-1])
        checkpoints = Checkpoints(self.layout, self.assignment.unit.name)
        if self.begins_anew:
            checkpoints.clear()
        resumed = checkpoints.newest()
        if resumed is not None:
            state.load_state_dict(resumed.snapshot)
            self.best = resumed.best
            for evaluation in resumed.snapshot.history:
                yield self.tell(evaluation)
        is_complete, stored = False, state.step
        for evaluation in loop.fit(job, state, is_stopping=self.stop_sign.is_up):
            best = self.note(evaluation, state)
            yield self.tell(evaluation)
            is_complete = evaluation.stopped or evaluation.epoch == job.settings.epochs
            if not is_complete and checkpoints.is_due():
                checkpoints.write(state.state_dict(), best)
        if is_complete:
            checkpoints.clear()
        elif state.step > stored:
            loop.settle(state)
            checkpoints.write(state.state_dict(), self.best)

    def tell(self, evaluation: Evaluation) -> tuple[Event, ...]:
        """An evaluation, and the ends of the trials that it completes."""
        self.history.append(evaluation)
        trials = self.assignment.unit.trials
        reached = [
            t for t in trials if t.epochs == evaluation.epoch or (evaluation.stopped and self._open(t))
        ]
        if self.assignment.rebuild is None:
            return (self._evaluated(evaluation), *(self._end(trial, evaluation) for trial in reached))
        if reached:
            self._keep_predictions(self.assignment.rebuild)
        return (CheckpointWritten(self.assignment.rebuild, self._write()),) if reached else ()

    def _open(self, trial: Trial) -> bool:
        return trial.key not in self.ended

    def _evaluated(self, evaluation: Evaluation) -> Evaluated:
        unit = self.assignment.unit
        fields = {
            f.name: getattr(evaluation, f.name)
            for f in dataclasses.fields(Evaluated)
            if f.name not in {"unit", "keys"}
        }
        return Evaluated(
            unit.name, tuple(t.key for t in unit.trials if t.epochs >= evaluation.epoch), **fields
        )

    def note(self, evaluation: Evaluation, trained: Trained) -> Best:
        """Keeps the tensors of the evaluation if it is the one that counts so far; ties go to the earliest."""
        score = evaluation.metrics[self.plan.sweep.metric.name]
        if self.best is None or self._counts_last or self._better(score, self.best.score):
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in trained.changed.items()}
            self.best = Best(score, evaluation.epoch, copies, trained.predictions)
        return self.best

    @property
    def _counts_last(self) -> bool:
        return self.plan.sweep.metric.epoch == "last"

    def _better(self, score: float, than: float) -> bool:
        return score > than if self.plan.mode == "max" else score < than

    def _counting(self) -> Evaluation:
        """The evaluation that counts among those so far."""
        if self._counts_last:
            return self.history[-1]
        counting = self.history[0]
        for evaluation in self.history[1:]:
            score, than = (e.metrics[self.plan.sweep.metric.name] for e in (evaluation, counting))
            counting = evaluation if self._better(score, than) else counting
        return counting

    def _end(self, trial: Trial, evaluation: Evaluation) -> TrialEnded:
        self.ended.add(trial.key)
        counting, bar = self._counting(), self.bar
        score = counting.metrics[self.plan.sweep.metric.name]
        self.scores.append(score)
        # After a resume, the tensors of an earlier best epoch are gone: then the trial has no checkpoint for now.
        is_held = self.best is not None and self.best.epoch == counting.epoch
        is_worth_keeping = bar is None or not self._better(bar, score)
        if is_held:
            self._keep_predictions(trial.key)
        return TrialEnded(
            key=trial.key,
            state="finished",
            epochs_done=evaluation.epoch,
            best_epoch=counting.epoch,
            score=score,
            stopped_early_at=evaluation.epoch if evaluation.epoch < trial.epochs else None,
            checkpoint=self._write() if is_held and is_worth_keeping else None,
        )

    def _write(self) -> str:
        """Stores the tensors of the best epoch, once; the path is relative to the sweep's folder."""
        if self.best is None:
            raise TrialError("there is no evaluation whose tensors could be stored")
        target = self.layout.checkpoint(self.assignment.unit.name, self.best.epoch)
        path = str(target.relative_to(self.layout.root))
        if path != self.written:
            with folder_aside(target) as folder:
                save_file({n: t.contiguous() for n, t in self.best.tensors.items()}, folder / CHANGED_TENSORS)
            self.written = path
        return path

    def _keep_predictions(self, key: str) -> None:
        """Stores what the best epoch's model said, if it is known: after a resume it is that of later epochs only."""
        if not self.assignment.predictions or self.best is None or self.best.predictions is None:
            return
        with folder_aside(self.layout.predictions(key, self.best.epoch)) as folder:
            self.best.predictions.save(folder / VALIDATION_PREDICTIONS)

    def end_open(self, failure: Failure) -> tuple[Event, ...]:
        """The end of the trials that have no result: they share the failure."""
        state: TrialState = "diverged" if failure.kind == "diverged" else "failed"
        trials = [trial for trial in self.assignment.unit.trials if self._open(trial)]
        if self.assignment.rebuild is not None:
            raise StorageError(
                f"the checkpoint of {self.assignment.rebuild} cannot be made again: {failure.message}"
            )
        return tuple(
            TrialEnded(trial.key, state, epochs_done=len(self.history), failure=failure) for trial in trials
        )


def worker_info(plan: Plan) -> WorkerInfo:
    """Where this process runs, and what it was given."""
    return WorkerInfo(
        host=socket.gethostname(),
        pid=os.getpid(),
        device=plan.device,
        threads=torch.get_num_threads(),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        node=ray.get_runtime_context().get_node_id()[:8] if ray.is_initialized() else "",
    )
