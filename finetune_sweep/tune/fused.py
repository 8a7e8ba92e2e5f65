"""Head-only trajectories that one worker trains together, and how a trial is trained that stands alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from finetune_sweep.tune.resume import Checkpoints, Pace, Resumed


def train_together(members: Sequence[Member], plan: Plan, loaded: Loaded) -> Iterator[tuple[Event, ...]]:
    """Trains all, and yields after each epoch what happened to each of them.

    Those that have a checkpoint of the same step go on from there together, those without begin together.

    Args:
        members: One for each trajectory.
        plan: The sweep.
        loaded: Data and model.

    Raises:
        TrialError: What ends all of them.
        StorageError: If the storage refuses.
    """
    groups: dict[int, list[tuple[Member, Resumed | None]]] = {}
    for member in members:
        checkpoints = _checkpoints(member)
        if member.begins_anew:
            checkpoints.clear()
        resumed = checkpoints.newest()
        groups.setdefault(resumed.snapshot.step if resumed else 0, []).append((member, resumed))
    for _, group in sorted(groups.items(), reverse=True):
        if members[0].stop_sign.is_up():
            return
        stacked, stored = zip(*group, strict=True)
        yield from _Together(stacked, plan, loaded).train([each for each in stored if each is not None])


def _checkpoints(member: Member) -> Checkpoints:
    return Checkpoints(member.layout, member.unit.name, is_stacked=True)


@dataclass(frozen=True)
class _Together:
    """Trajectories that are trained as one stack.

    Attributes:
        members: In the order of the stack.
        plan: The sweep.
        loaded: Data and model.
    """

    members: Sequence[Member]
    plan: Plan
    loaded: Loaded

    def train(self, resumed: Sequence[Resumed]) -> Iterator[tuple[Event, ...]]:
        """Trains from checkpoints of one step, one for each member, or from the start if there are none."""
        members, pace = self.members, Pace()
        stack = self.loaded.heads([member.unit.trials[-1] for member in members])
        if resumed:
            stack.load([part.snapshot for part in resumed])
            for member, part in zip(members, resumed, strict=True):
                member.best = part.best
            for evaluations in zip(*(part.snapshot.history for part in resumed), strict=True):
                pairs = zip(members, evaluations, strict=True)
                yield tuple(event for member, evaluation in pairs for event in member.tell(evaluation))
        stored, ended = stack.step, set[int]()
        for told in heads.fit(stack, self.loaded.watchdog.beat, members[0].stop_sign.is_up):
            yield self._tell(told, stack)
            done = set(range(len(members))).difference(stack.going())
            for index in done - ended:
                _checkpoints(members[index]).clear()
            ended = done
            if pace.is_due():
                with pace.storing():
                    self._write(stack)
                stored = stack.step
        if stack.step > stored:
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
        """Stores where the members stand that train on."""
        for index, snapshot in stack.snapshots().items():
            _checkpoints(self.members[index]).write(snapshot, self.members[index].best)


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
