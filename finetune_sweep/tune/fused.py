"""Head-only trajectories that one worker trains together: what happens to each, as events of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune_sweep.errors import TrialError
from finetune_sweep.events import Event, Failure
from finetune_sweep.plan import Plan
from finetune_sweep.train import heads
from finetune_sweep.train.state import Evaluation
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


def _bar(members: Sequence[Member], plan: Plan, before: float | None) -> float | None:
    """The score of the last of the ended trials that would keep its checkpoint, if that is above the bar so far."""
    ended = sorted((score for member in members for score in member.scores), reverse=plan.mode == "max")
    keep = plan.sweep.keep_checkpoints
    if len(ended) < keep:
        return before
    last = ended[keep - 1]
    higher = max if plan.mode == "max" else min
    return last if before is None else higher(last, before)
