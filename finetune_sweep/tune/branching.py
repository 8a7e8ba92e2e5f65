"""Trajectories with a common trunk that one worker trains as a unit: what happens to each, as events of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from finetune_sweep.errors import TrialError
from finetune_sweep.events import Event, Failure
from finetune_sweep.train import loop
from finetune_sweep.train.branches import branch_step, fit_branches
from finetune_sweep.train.state import Evaluation, Job, LoopState
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.member import Member
from finetune_sweep.tune.resume import Checkpoints, Resumed


def train_branches(members: Sequence[Member], loaded: Loaded) -> Iterator[tuple[Event, ...]]:
    """Trains all, from the newest checkpoint of the trunk, or from the start.

    A checkpoint is one of the longest member. Those whose decay begins before it are trained anew, first.

    Args:
        members: By ascending epochs.
        loaded: Data and model.

    Raises:
        TrialError: What ends all that have not ended.
        StorageError: If the storage refuses.
    """
    checkpoints = Checkpoints(members[-1].layout, members[-1].unit.name)
    resumed = checkpoints.newest()
    passed = 0
    if resumed is not None:
        jobs = [loaded.job(member.unit.trials[-1])[0] for member in members[:-1]]
        passed = sum(branch_step(job) < resumed.snapshot.step for job in jobs)
    if passed:
        yield from _train(members[:passed], loaded, None, None)
    if not members[-1].stop_sign.is_up():
        yield from _train(members[passed:], loaded, checkpoints, resumed)


def _train(
    members: Sequence[Member], loaded: Loaded, checkpoints: Checkpoints | None, resumed: Resumed | None
) -> Iterator[tuple[Event, ...]]:
    jobs = [loaded.job(member.unit.trials[-1])[0] for member in members[:-1]]
    longest, state = loaded.job(members[-1].unit.trials[-1])
    jobs.append(longest)
    if resumed is not None:
        state.load_state_dict(resumed.snapshot)
        for member in members:
            member.best = resumed.best
        for evaluation in resumed.snapshot.history:
            yield _tell(members, evaluation)
    for indices, result in fit_branches(jobs, state, members[-1].stop_sign.is_up):
        told = [members[index] for index in indices]
        if isinstance(result, TrialError):
            yield told[0].end_open(Failure(result.failure, result.message))
            continue
        best = told[0].note(result, state)
        for member in told[1:]:
            member.best = best  # they have had the same evaluations
        yield _tell(told, result)
        is_trunk = told[-1] is members[-1] and not result.stopped and result.epoch < longest.settings.epochs
        if is_trunk and checkpoints is not None and checkpoints.is_due():
            checkpoints.write(state.state_dict(), best)
    if checkpoints is not None:
        _leave(members[-1], longest, state, checkpoints)


def _leave(member: Member, job: Job, state: LoopState, checkpoints: Checkpoints) -> None:
    """Stores where the trunk stands if the training was interrupted."""
    is_complete = state.epoch == job.settings.epochs or bool(state.history and state.history[-1].stopped)
    if is_complete:
        checkpoints.clear()
    elif state.step:
        loop.settle(state)
        checkpoints.write(state.state_dict(), member.best)


def _tell(members: Sequence[Member], evaluation: Evaluation) -> tuple[Event, ...]:
    """An evaluation of all these members, who share the time that it took."""
    share = replace(
        evaluation,
        train_seconds=evaluation.train_seconds / len(members),
        eval_seconds=evaluation.eval_seconds / len(members),
    )
    return tuple(event for member in members for event in member.tell(share))
