"""Head-only trajectories that one worker trains together, and how a trial is trained that stands alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune_sweep.errors import TrialError
from finetune_sweep.events import Event, Failure
from finetune_sweep.plan import Plan
from finetune_sweep.train import heads, loop
from finetune_sweep.train.heads import Trained
from finetune_sweep.train.state import Evaluation
from finetune_sweep.trial import Trial, can_fuse
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.member import Member


def train_together(members: Sequence[Member], plan: Plan, loaded: Loaded) -> Iterator[tuple[Event, ...]]:
    """Trains all, and yields after each epoch what happened to each of them.

    Args:
        members: One for each trajectory.
        plan: The sweep.
        loaded: Data and model.

    Raises:
        TrialError: What ends all of them.
        StorageError: If the storage refuses.
    """
    state = loaded.heads([member.unit.trials[-1] for member in members])
    metric, sign = plan.sweep.metric.name, 1.0 if plan.mode == "max" else -1.0

    def promise(told: tuple[int, Evaluation | TrialError]) -> float:
        """The best come first: what they leave behind is not worth writing."""
        return -sign * told[1].metrics[metric] if isinstance(told[1], Evaluation) else 0.0

    for told in heads.fit(state, loaded.watchdog.beat):
        events: list[Event] = []
        for index, result in sorted(told, key=promise):
            member = members[index]
            if isinstance(result, TrialError):
                events += member.end_open(Failure(result.failure, result.message))
                continue
            if member.competes:
                member.bar = _bar(members, plan, member.bar)
            member.note(result, state.members[index])
            events += member.tell(result)
        yield tuple(events)
        if members[0].stop_sign.is_up():
            return  # so quickly trained that nothing is stored on the way


def train_alone(trial: Trial, plan: Plan, loaded: Loaded) -> Iterator[tuple[Evaluation, Trained]]:
    """Trains a trial in the way that a sweep would, and yields each evaluation with the training that it belongs to.

    A head alone is a stack of one: what it comes to does not depend on the others that it was trained with.

    Raises:
        TrialError: What ends the training.
    """
    if not is_stacked([trial], plan):
        job, state = loaded.job(trial)
        for evaluation in loop.fit(job, state):
            yield evaluation, state
        return
    stack = loaded.heads([trial])
    for told in heads.fit(stack, loaded.watchdog.beat):
        for index, result in told:
            if isinstance(result, TrialError):
                raise result
            yield result, stack.members[index]


def is_stacked(trials: Sequence[Trial], plan: Plan) -> bool:
    """Whether `train_together` trains the trials of a unit, be there only one: all of a unit are, or none."""
    return can_fuse(trials[-1], plan.sweep.speed)


def _bar(members: Sequence[Member], plan: Plan, before: float | None) -> float | None:
    """The score of the last of the ended trials that would keep its checkpoint, if that is above the bar so far."""
    ended = sorted((score for member in members for score in member.scores), reverse=plan.mode == "max")
    keep = plan.sweep.keep_checkpoints
    if len(ended) < keep:
        return before
    last = ended[keep - 1]
    higher = max if plan.mode == "max" else min
    return last if before is None else higher(last, before)
