"""Head-only trajectories that one worker trains together, and how a trial is trained that stands alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune_sweep.errors import TrialError
from finetune_sweep.events import Event, Failure
from finetune_sweep.plan import Plan
from finetune_sweep.train import heads, loop
from finetune_sweep.train.heads import Trained
from finetune_sweep.train.stack import Stack
from finetune_sweep.train.state import Evaluation
from finetune_sweep.trial import Trial, can_fuse
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.member import Member
from finetune_sweep.tune.resume import Resumed, StackCheckpoints


def train_together(members: Sequence[Member], plan: Plan, loaded: Loaded) -> Iterator[tuple[Event, ...]]:
    """Trains all, and yields after each epoch what happened to each of them.

    Those that a checkpoint was written of go on from it together; those without begin anew, as a stack of their own.

    Args:
        members: One for each trajectory.
        plan: The sweep.
        loaded: Data and model.

    Raises:
        TrialError: What ends all of them.
        StorageError: If the storage refuses.
    """
    rest = list(members)
    while rest and not rest[0].stop_sign.is_up():
        checkpoints = StackCheckpoints(rest[0].layout, [member.unit.name for member in rest])
        if rest[0].begins_anew:
            checkpoints.clear()
        resumed = checkpoints.newest()
        stacked = [member for member in rest if member.unit.name in resumed] or rest
        rest = [member for member in rest if member.unit.name not in resumed] if resumed else []
        yield from _Together(stacked, plan, loaded, checkpoints).train(resumed)


@dataclass(frozen=True)
class _Together:
    """Trajectories that are trained as one stack.

    Attributes:
        members: In the order of the stack.
        plan: The sweep.
        loaded: Data and model.
        checkpoints: Theirs.
    """

    members: Sequence[Member]
    plan: Plan
    loaded: Loaded
    checkpoints: StackCheckpoints

    def train(self, resumed: Mapping[str, Resumed]) -> Iterator[tuple[Event, ...]]:
        """Trains from a checkpoint of all of them, or from the start if it is empty."""
        members = self.members
        stack = self.loaded.heads([member.unit.trials[-1] for member in members])
        if resumed:
            parts = [resumed[member.unit.name] for member in members]
            stack.load([part.snapshot for part in parts])
            for member, part in zip(members, parts, strict=True):
                member.best = part.best
            for evaluations in zip(*(part.snapshot.history for part in parts), strict=True):
                pairs = zip(members, evaluations, strict=True)
                yield tuple(event for member, evaluation in pairs for event in member.tell(evaluation))
        stored = stack.step
        for told in heads.fit(stack, self.loaded.watchdog.beat, members[0].stop_sign.is_up):
            yield self._tell(told, stack)
            names = {members[index].unit.name for index in stack.going()}
            has_lost_its_place = self.checkpoints.holder not in {"", *names}
            if names and (self.checkpoints.is_due() or has_lost_its_place):
                self._write(stack)
                stored = stack.step
        if not stack.going():
            self.checkpoints.clear()
        elif stack.step > stored:
            self._write(stack)

    def _tell(self, told: Sequence[tuple[int, Evaluation | TrialError]], stack: Stack) -> tuple[Event, ...]:
        """What an epoch brought, as events."""
        metric, sign = self.plan.sweep.metric.name, 1.0 if self.plan.mode == "max" else -1.0

        def promise(of_member: tuple[int, Evaluation | TrialError]) -> float:
            """The best come first: what they leave behind is not worth writing."""
            _, result = of_member
            return -sign * result.metrics[metric] if isinstance(result, Evaluation) else 0.0

        events: list[Event] = []
        for index, result in sorted(told, key=promise):
            member = self.members[index]
            if isinstance(result, TrialError):
                events += member.end_open(Failure(result.failure, result.message))
                continue
            if member.competes:
                member.bar = _bar(self.members, self.plan, member.bar)
            member.note(result, stack.members[index])
            events += member.tell(result)
        return tuple(events)

    def _write(self, stack: Stack) -> None:
        """Stores where the members stand that train on, with the one of them that trains longest."""
        snapshots = stack.snapshots()
        parts = {
            self.members[index].unit.name: Resumed(snapshot, self.members[index].best)
            for index, snapshot in snapshots.items()
        }
        longest = max(snapshots, key=lambda index: self.members[index].unit.trials[-1].epochs)
        self.checkpoints.write(self.members[longest].unit.name, parts)


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
