"""What runs on a worker: one work unit at a time, with model and data loaded once a process.

A worker tells what happened as journal events in the results that it reports; the driver writes them down. Nothing
that goes wrong in a trial is raised to Ray Tune, whose verdicts the sweep does not use.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import ray
import torch
from ray import tune

from finetune_sweep.errors import StorageError, TrialError
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
from finetune_sweep.layout import CHANGED_TENSORS, Layout, folder_aside
from finetune_sweep.plan import Plan
from finetune_sweep.train import loop
from finetune_sweep.train.state import Evaluation, LoopState
from finetune_sweep.trial import Trial, WorkUnit
from finetune_sweep.tune.loaded import Loaded

if TYPE_CHECKING:
    from torch import Tensor

_TRACEBACK_CHARACTERS: Final = 8000


@dataclass(frozen=True)
class Assignment:
    """A work unit as it is handed to a worker.

    Args:
        unit: What to train.
        bar: The score that a trial must reach for its checkpoint to be worth keeping; None for any.
        rebuild: Key of the one trial, finished before, that is trained again for its checkpoint.
    """

    unit: WorkUnit
    bar: float | None = None
    rebuild: str | None = None


class UnitTrainable(tune.Trainable):
    """Ray Tune's view of a worker: a step is an evaluation. Actors are reused for one unit after another."""

    def setup(self, config: dict[str, Any], plan: Plan, layout: Layout) -> None:  # type: ignore[override]
        """Takes the first unit; `plan` and `layout` stay the same for the actor's life."""
        self._loaded, self._plan, self._layout = Loaded(plan), plan, layout
        torch.set_num_threads(plan.sweep.resources_per_trial.threads)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next unit; nothing of the last one is left but what is loaded."""
        self._events = run_unit(new_config["assignment"], self._plan, self._layout, self._loaded)
        return True

    def step(self) -> dict[str, Any]:
        """Goes on to the next moment worth recording."""
        events = next(self._events, None)
        return {"events": events or (), "done": events is None}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the sweep's own, never Ray Tune's."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing: a unit continues from the sweep's own checkpoints."""


def run_unit(
    assignment: Assignment, plan: Plan, layout: Layout, loaded: Loaded
) -> Iterator[tuple[Event, ...]]:
    """Trains a unit, and yields what is to be journalled as it happens.

    A fault of a trial ends the trials of the unit that have no result yet; it is recorded, not raised.
    """
    unit = assignment.unit
    keys = tuple(trial.key for trial in unit.trials)
    if assignment.rebuild is None:
        yield (UnitStarted(unit.name, keys, worker_info(plan)),)
    run = _UnitRun(assignment, plan, layout, loaded)
    try:
        yield from run.events()
    except TrialError as error:
        yield run.end_open(Failure(error.failure, error.message))
    except Exception as error:  # noqa: BLE001 - here a trial ends, whatever ended it
        trace = traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
        yield run.end_open(Failure("fault", f"{type(error).__name__}: {error}", trace))


@dataclass
class _Best:
    """The best evaluation of a trajectory so far, with the tensors that belong to it."""

    score: float
    epoch: int
    tensors: Mapping[str, Tensor]
    written: bool = False


@dataclass
class _UnitRun:
    """One unit while it is trained."""

    assignment: Assignment
    plan: Plan
    layout: Layout
    loaded: Loaded
    best: _Best | None = None
    ended: set[str] = field(default_factory=set)
    epochs_done: int = 0

    def events(self) -> Iterator[tuple[Event, ...]]:
        trials = self.assignment.unit.trials
        job, state = self.loaded.job(trials[-1])
        for evaluation in loop.fit(job, state):
            self.epochs_done = evaluation.epoch
            best = self._note(evaluation, state)
            reached = [
                t for t in trials if t.epochs == evaluation.epoch or (evaluation.stopped and self._open(t))
            ]
            if self.assignment.rebuild is None:
                yield (
                    self._evaluated(evaluation),
                    *(self._end(trial, evaluation, best) for trial in reached),
                )
            elif reached:
                yield (CheckpointWritten(self.assignment.rebuild, self._write(best)),)
                return

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

    def _note(self, evaluation: Evaluation, state: LoopState) -> _Best:
        """Keeps the tensors of the evaluation if it is the one that counts so far; ties go to the earliest."""
        score = evaluation.metrics[self.plan.sweep.metric.name]
        last = self.plan.sweep.metric.epoch == "last"
        if self.best is None or last or self._better(score, self.best.score):
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in state.changed.items()}
            self.best = _Best(score, evaluation.epoch, copies)
        return self.best

    def _better(self, score: float, than: float) -> bool:
        return score > than if self.plan.mode == "max" else score < than

    def _end(self, trial: Trial, evaluation: Evaluation, best: _Best) -> TrialEnded:
        self.ended.add(trial.key)
        bar = self.assignment.bar
        worth_keeping = bar is None or not self._better(bar, best.score)
        return TrialEnded(
            key=trial.key,
            state="finished",
            epochs_done=evaluation.epoch,
            best_epoch=best.epoch,
            score=best.score,
            stopped_early_at=evaluation.epoch
            if evaluation.stopped and evaluation.epoch < trial.epochs
            else None,
            checkpoint=self._write(best) if worth_keeping else None,
        )

    def _write(self, best: _Best) -> str:
        """Stores the tensors of the best epoch, once; the path is relative to the sweep's folder."""
        from safetensors.torch import save_file

        target = self.layout.checkpoint(self.assignment.unit.name, best.epoch)
        if not best.written:
            with folder_aside(target) as folder:
                save_file(
                    {name: t.contiguous() for name, t in best.tensors.items()}, folder / CHANGED_TENSORS
                )
            best.written = True
        return str(target.relative_to(self.layout.root))

    def end_open(self, failure: Failure) -> tuple[Event, ...]:
        """The end of the trials that have no result: they share the failure."""
        state: TrialState = "diverged" if failure.kind == "diverged" else "failed"
        trials = [trial for trial in self.assignment.unit.trials if self._open(trial)]
        if self.assignment.rebuild is not None:
            raise StorageError(
                f"the checkpoint of {self.assignment.rebuild} cannot be made again: {failure.message}"
            )
        return tuple(
            TrialEnded(trial.key, state, epochs_done=self.epochs_done, failure=failure) for trial in trials
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
