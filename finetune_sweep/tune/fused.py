"""Head-only trajectories that one worker trains together: what happens to each, as events of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from finetune_sweep.errors import TrialError
from finetune_sweep.events import Event, Failure
from finetune_sweep.plan import Plan
from finetune_sweep.train import heads
from finetune_sweep.train.state import Evaluation
from finetune_sweep.trial import Trial
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.watch import StopSign

if TYPE_CHECKING:
    from finetune_sweep.train.heads import Trained


class Run(Protocol):
    """One of the trajectories, as a worker records it.

    Attributes:
        bar: The score that a trial must reach for its checkpoint to be worth keeping; None for any.
        scores: Those of its trials that have ended.
        stop_sign: Whether to stop.
    """

    bar: float | None
    scores: list[float]
    stop_sign: StopSign

    def note(self, evaluation: Evaluation, trained: Trained) -> object:
        """Keeps the tensors if the evaluation is the one that counts so far."""

    def tell(self, evaluation: Evaluation) -> tuple[Event, ...]:
        """The evaluation as an event, and the ends of trials that it brings."""

    def end_open(self, failure: Failure) -> tuple[Event, ...]:
        """The ends of all trials that have none yet."""


def train_together(
    runs: Sequence[Run], trials: Sequence[Trial], plan: Plan, loaded: Loaded
) -> Iterator[tuple[Event, ...]]:
    """Trains all, and yields after each epoch what happened to each of them.

    Args:
        runs: One for each trajectory.
        trials: The longest trial of each.
        plan: The sweep.
        loaded: Data and model.

    Raises:
        TrialError: What ends all of them.
        StorageError: If the storage refuses.
    """
    state = loaded.heads(trials)
    metric, sign = plan.sweep.metric.name, 1.0 if plan.mode == "max" else -1.0

    def promise(told: tuple[int, Evaluation | TrialError]) -> float:
        """The best come first: what they leave behind is not worth writing."""
        return -sign * told[1].metrics[metric] if isinstance(told[1], Evaluation) else 0.0

    for told in heads.fit(state):
        events: list[Event] = []
        for index, result in sorted(told, key=promise):
            run = runs[index]
            if isinstance(result, TrialError):
                events += run.end_open(Failure(result.failure, result.message))
                continue
            run.bar = _bar(runs, plan, run.bar)
            run.note(result, state.members[index])
            events += run.tell(result)
        yield tuple(events)
        if runs[0].stop_sign.is_up():
            return  # so quickly trained that nothing is stored on the way
        loaded.watchdog.beat()


def _bar(runs: Sequence[Run], plan: Plan, before: float | None) -> float | None:
    """The score of the last of the ended trials that would keep its checkpoint, if that is above the bar so far."""
    ended = sorted((score for run in runs for score in run.scores), reverse=plan.mode == "max")
    keep = plan.sweep.keep_checkpoints
    if len(ended) < keep:
        return before
    last = ended[keep - 1]
    higher = max if plan.mode == "max" else min
    return last if before is None else higher(last, before)
