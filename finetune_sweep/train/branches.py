"""Trainings that are equal up to their decays: what comes before is trained once, and each decays from its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune_sweep.errors import TrialError
from finetune_sweep.settings import Wsd
from finetune_sweep.train import loop, optim
from finetune_sweep.train.state import Evaluation, Job, LoopState


def branch_step(job: Job) -> int:
    """Steps that a training has in common with longer ones that differ only in `epochs`."""
    total_steps = job.settings.epochs * loop.steps_per_epoch(job)
    schedule = job.settings.lr_schedule
    return optim.decay_start(schedule, total_steps) if isinstance(schedule, Wsd) else 0


def fit_branches(jobs: Sequence[Job], state: LoopState) -> Iterator[tuple[range, Evaluation | TrialError]]:
    """Trains all, and yields each evaluation with the indices of the jobs that it belongs to.

    When an evaluation is yielded, the state belongs to it, as for `loop.fit`. A decay that diverges is told once, and
    the others go on from before it.

    Args:
        jobs: By ascending epochs; they differ in nothing else.
        state: At the start, or anywhere before the first decay.

    Raises:
        TrialError: What ends all that have not ended.
    """
    longest = jobs[-1]
    for index, job in enumerate(jobs):
        for evaluation in loop.fit(longest, state, until=branch_step(job)):
            yield range(index, len(jobs)), evaluation
            if evaluation.stopped:
                return
        if job is longest:
            for evaluation in loop.fit(job, state):
                yield range(index, index + 1), evaluation
            return
        branch = state.branch()
        try:
            for evaluation in loop.fit(job, state):
                yield range(index, index + 1), evaluation
        except TrialError as error:
            if error.failure != "diverged":
                raise
            yield range(index, index + 1), error
        state.return_to(branch)
