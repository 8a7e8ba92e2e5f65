"""Trainings with a common trunk come to what each comes to alone, to the last digit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from finetune_sweep.errors import TrialError
from finetune_sweep.settings import Training
from finetune_sweep.train.branches import branch_step, fit_branches
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.state import Evaluation, LoopState
from tests.train.runs import NEW, assert_same_weights, bert, job_for, trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from finetune_sweep.train.state import Job

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 3  # of an epoch: 20 rows, 8 at a time


def jobs_of(epochs: Sequence[int], decay_ratio: float, **settings: object) -> list[Job]:
    schedule = {"type": "wsd", "warmup_steps": 2, "decay_ratio": decay_ratio}
    common = {"learning_rate": 1e-2, "batch_size": 8, "lr_schedule": schedule, **settings}
    first = job_for(bert())
    return [
        replace(first, settings=Training.model_validate({**common, "epochs": number}), depth=1)
        for number in epochs
    ]


def branched(
    jobs: Sequence[Job], state: LoopState
) -> tuple[list[list[Evaluation]], list[dict[str, Tensor]], int]:
    """Evaluations and last weights of each job, and how many evaluations were computed."""
    found: list[list[Evaluation]] = [[] for _ in jobs]
    weights: list[dict[str, Tensor]] = [{} for _ in jobs]
    computed = 0
    for indices, result in fit_branches(jobs, state):
        assert not isinstance(result, TrialError)
        computed += 1
        for index in indices:
            found[index].append(result)
            weights[index] = {name: tensor.clone() for name, tensor in state.changed.items()}
    return found, weights, computed


@pytest.mark.parametrize(
    ("decay_ratio", "steps", "computed"),
    # Apart there are 1 + 2 + 4 evaluations. The first epoch of 2 and of 4 is common, unless the decay is all.
    [(0.2, [2, 4, 9], 6), (0.5, [1, 3, 6], 6), (1.0, [0, 0, 0], 7)],
)
def test_each_comes_to_what_it_comes_to_alone(decay_ratio: float, steps: list[int], computed: int) -> None:
    jobs = jobs_of((1, 2, 4), decay_ratio)
    found, weights, count = branched(jobs, start(jobs[-1], bert(), NEW))
    assert [branch_step(job) for job in jobs] == steps
    for index, job in enumerate(jobs):
        model = bert()
        alone, _ = trained(job, model)
        assert found[index] == alone
        assert_same_weights(weights[index], {name: model.state_dict()[name] for name in weights[index]})
    assert count == computed


def test_a_training_goes_on_from_the_middle_of_an_epoch_as_if_it_had_not_stopped() -> None:
    job = jobs_of((3,), 0.2)[0]
    model = bert()
    state = start(job, model, NEW)
    rest = []
    for until in (1, 3, 4, 8, None):
        rest += list(fit(job, state, until))
    assert rest == trained(job, bert())[0]


def test_a_branch_is_not_moved_by_what_comes_after_it() -> None:
    job = jobs_of((2,), 0.2)[0]
    state = start(job, bert(), NEW)
    list(fit(job, state, until=4))
    branch = state.branch()
    first = list(fit(job, state))
    torch.rand(3)
    state.return_to(branch)
    assert (state.epoch, state.step, len(state.pending.losses)) == (1, 4, 1)
    assert list(fit(job, state)) == first


def test_early_stopping_on_the_trunk_ends_all() -> None:
    jobs = jobs_of((8, 9), 0.1, early_stopping={"patience": 2, "min_delta": 100.0})
    found, _, _ = branched(jobs, start(jobs[-1], bert(), NEW))
    for index, job in enumerate(jobs):
        assert found[index] == trained(job, bert())[0]
        assert found[index][-1].stopped


@pytest.mark.parametrize("wild", [0, 1])
def test_a_decay_that_diverges_is_told_and_does_not_move_those_after_it(wild: int) -> None:
    jobs = jobs_of((1, 2, 4), 0.2)
    calm = jobs[wild]
    jobs[wild] = replace(calm, settings=calm.settings.model_copy(update={"learning_rate": 1e30}))
    found: list[list[Evaluation | TrialError]] = [[] for _ in jobs]
    weights: list[dict[str, Tensor]] = [{} for _ in jobs]
    state = start(jobs[-1], bert(), NEW)
    for indices, result in fit_branches(jobs, state):
        for index in indices:
            found[index].append(result)
            weights[index] = {name: tensor.clone() for name, tensor in state.changed.items()}

    for index, job in enumerate(jobs):
        if index == wild:
            error = found[index].pop()
            assert isinstance(error, TrialError)
            assert error.failure == "diverged"
            assert found[index] == trained(calm, bert())[0][:-1]
            continue
        model = bert()
        assert found[index] == trained(job, model)[0]
        assert_same_weights(weights[index], {name: model.state_dict()[name] for name in weights[index]})


def test_a_decay_that_is_out_of_memory_ends_those_that_have_not_ended() -> None:
    """The first of the three has its result; those after it would need no less."""
    jobs = jobs_of((1, 2, 4), 0.2)
    state = start(jobs[-1], bert(), NEW)
    assert branch_step(jobs[1]) < 5 < branch_step(jobs[2])

    def check(_module: nn.Module, _args: object) -> None:
        if state.step == 5:
            raise torch.OutOfMemoryError

    state.model.get_submodule("bert.pooler").register_forward_pre_hook(check)
    told: list[range] = []
    with pytest.raises(TrialError, match="one example at a time") as raised:
        told.extend(indices for indices, _ in fit_branches(jobs, state))
    assert raised.value.failure == "out_of_memory"
    assert told == [range(1), range(1, 3)]
