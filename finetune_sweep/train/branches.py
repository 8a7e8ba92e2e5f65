"""Trainings that are equal up to their decays: what comes before is trained once, and each decays from its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from finetune_sweep.errors import TrialError
from finetune_sweep.phases import probe_epochs
from finetune_sweep.settings import Wsd
from finetune_sweep.train import loop, optim
from finetune_sweep.train.state import Evaluation, Job, LoopState


def branch_step(job: Job) -> int:
    """Steps that a training has in common with longer ones that differ only in `epochs`."""
    steps, probe, schedule = loop.steps_per_epoch(job), probe_epochs(job.settings), job.settings.lr_schedule
    total_steps = max(0, job.settings.epochs - probe) * steps
    if not isinstance(schedule, Wsd):
        return 0
    return min(probe, job.settings.epochs) * steps + optim.decay_start(schedule, total_steps)


def fit_branches(
    jobs: Sequence[Job], state: LoopState, is_stopping: Callable[[], bool] = lambda: False
) -> Iterator[tuple[range, Evaluation | TrialError]]:
    """Trains all, and yields each evaluation with the indices of the jobs that it belongs to.

    When an evaluation is yielded, the state belongs to it, as for `loop.fit`. A decay that diverges is told once, and
    the others go on from before it.

    Args:
        jobs: By ascending epochs; they differ in nothing else.
        state: At the start, or anywhere before the first decay.
        is_stopping: Asked before every step; once it says yes, the generator ends. The state is then that of the
            longest job at its last step, or at the beginning of the decay that was interrupted.

    Raises:
        TrialError: What ends all that have not ended.
    """
    longest = jobs[-1]
    for index, job in enumerate(jobs):
        for evaluation in loop.fit(longest, state, branch_step(job), is_stopping):
            yield range(index, len(jobs)), evaluation
            if evaluation.stopped:
                return
        if state.step < branch_step(job):
            return
        if job is longest:
            yield from ((range(index, index + 1), told) for told in loop.fit(job, state, None, is_stopping))
            return
        branch = state.branch()
        yield from ((range(index, index + 1), told) for told in _decay(job, state, is_stopping))
        is_cut = is_stopping() and state.epoch < job.settings.epochs
        state.return_to(branch)
        if is_cut:
            return


def _decay(job: Job, state: LoopState, is_stopping: Callable[[], bool]) -> Iterator[Evaluation | TrialError]:
    """Trains to the end of a job; what diverges is told, not raised."""
    try:
        yield from loop.fit(job, state, None, is_stopping)
    except TrialError as error:
        if error.failure != "diverged":
            raise
        yield error
