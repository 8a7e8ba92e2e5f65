"""Methods that act on the steps: by hand, through the real loop, and interrupted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from finetune_sweep.errors import TrialError
from finetune_sweep.phases import opened, phases, resolved
from finetune_sweep.settings import Training
from finetune_sweep.train import loop
from finetune_sweep.train.adversarial import fast_gradient
from finetune_sweep.train.branches import fit_branches
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.prefix_cache import blocks_to_keep
from finetune_sweep.train.state import Stage, derive_seed
from tests.train.runs import NEW, assert_same_weights, bert, gpt2, job_for, trained
from tests.train.test_prefix_cache import on_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.train.state import Evaluation, Job

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = {
    "learning_rate": 0.1,
    "batch_size": 20,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
}
"""One step an epoch, that is w - 0.1 times the gradient."""


def job_with(model: PreTrainedModel, **settings: object) -> Job:
    """A job; with `freeze_depth`, that is where unfreezing begins."""
    training = Training.model_validate(settings)
    job, depth = job_for(model, training), resolved(training.freeze_depth)
    job = replace(job, depth=opened(training, depth))
    found = phases(training, depth, job.arch.blocks)
    if len(found) == 1:
        return job
    stages = (Stage(phase.first_epoch, phase.depth, job.train, job.validation) for phase in found)
    return replace(job, stages=tuple(stages))


def cached(job: Job, model: PreTrainedModel, folder: Path) -> Job:
    """The job on states after what each of its stages freezes."""
    stages = []
    for stage in job.stages:
        if blocks := blocks_to_keep(stage.depth):
            states = on_states(job, model, blocks, folder)
            stage = replace(stage, train=states.train, validation=states.validation, first=blocks)  # noqa: PLW2901
        stages.append(stage)
    return replace(job, stages=tuple(stages))


def batch_of(job: Job, epoch: int) -> Batch:
    order = np.random.default_rng(derive_seed(job.seed, "order", epoch)).permutation(len(job.train))
    return job.task.collate(job.train, order, 0)


def losses_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, tensor in right.items():
        torch.testing.assert_close(left[name], tensor.detach(), rtol=0, atol=1e-6, msg=name)


# --------------------------------------------------------------------------------------- through the loop


def test_l2_sp_pulls_what_was_pretrained_and_weight_decay_what_is_new() -> None:
    model, other = bert(dropout=0.0), bert(dropout=0.0)
    job = job_with(model, **{**PLAIN, "epochs": 2, "l2_sp": 0.5, "weight_decay": 0.25})
    start(job, other, NEW)
    origins = {name: p.detach().clone() for name, p in other.named_parameters()}
    for epoch in (1, 2):
        found = gradients(other.train(), losses_of(other, batch_of(job, epoch)).mean())
        with torch.no_grad():
            for name, p in other.named_parameters():
                decay = 0.5 * (p - origins[name]) if name not in NEW else 0.25 * p * (p.ndim > 1)
                p.sub_(0.1 * (found[name] + decay))
    assert_near(trained(job, model)[1], dict(other.named_parameters()))


def test_l2_sp_pulls_weakened_weights_to_the_pretrained_values() -> None:
    """Of a training whose gradients count for nothing beside the pull, which goes half of the way in its first step."""
    model = bert(dropout=0.0)
    origin = model.get_parameter("bert.encoder.layer.0.output.dense.weight").detach().clone()
    settings = {**PLAIN, "learning_rate": 1e-3, "epochs": 1, "l2_sp": 500.0, "shrink_perturb": 0.5}
    job = job_with(model, **settings)
    state = start(job, model, NEW)
    weight = state.model.get_parameter("bert.encoder.layer.0.output.dense.weight")
    weakened = weight.detach().clone()
    assert not torch.equal(weakened, origin)
    list(fit(job, state))
    torch.testing.assert_close(weight.detach(), (weakened + origin) / 2, rtol=0, atol=1e-3)
    assert "classifier.weight" not in {anchor.name for anchor in state.anchored}


def test_layers_move_by_their_own_rates() -> None:
    """Two blocks and a decay of 1/2: the head moves by 1, the blocks by 1/2 and 1/4, the embeddings by 1/8."""
    moved = []
    for decay in (1.0, 0.5):
        model = bert(dropout=0.0)
        job = job_with(model, **{**PLAIN, "epochs": 1, "layerwise_lr_decay": decay})
        state = start(job, model, NEW)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        (evaluation,) = fit(job, state)
        assert evaluation.learning_rate == 0.1
        moved.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    scales = {"embeddings": 1 / 8, "layer.0": 1 / 4, "layer.1": 1 / 2, "pooler": 1.0, "classifier": 1.0}
    for name, step in moved[0].items():
        (scale,) = [value for part, value in scales.items() if part in name]
        torch.testing.assert_close(moved[1][name], step * scale, rtol=0, atol=2e-7, msg=name)


@pytest.mark.parametrize("unpadding", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_an_adversarial_step_learns_from_both_passes(unpadding: bool, depth: int) -> None:  # noqa: FBT001 - a case
    """With the texts end to end in one row too, each has a step of its own."""
    model, other = bert(dropout=0.0), bert(dropout=0.0)
    job = job_with(model, **{**PLAIN, "epochs": 1, "adversarial_epsilon": 0.5})
    job = replace(job, unpadding=unpadding, depth=depth)
    start(job, other, NEW)
    batch = batch_of(job, 1)
    words = other.get_input_embeddings()
    losses = fast_gradient(words, lambda: losses_of(other, batch), 0.5)
    found = gradients(other, losses.total.mean())
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.sub_(0.1 * found.get(name, torch.zeros(1)))
    evaluations, weights = trained(job, model)
    assert_near(weights, dict(other.named_parameters()))
    assert evaluations[0].train_loss == pytest.approx(losses.total.mean().item(), abs=1e-6)
    assert evaluations[0].train_metrics["loss"] == pytest.approx(losses.clean.mean().item(), abs=1e-6)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_an_adversarial_training_is_the_same_with_padding_and_without(
    build: Callable[[], PreTrainedModel],
) -> None:
    found = []
    for unpadding in (True, False):
        model = build()
        model.config.pad_token_id = 0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        job = job_with(model, learning_rate=1e-3, batch_size=8, epochs=1, adversarial_epsilon=1.0)
        found.append(trained(replace(job, unpadding=unpadding), model)[0][0].train_loss)
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_both_passes_of_an_adversarial_step_have_the_same_dropout() -> None:
    model = bert(dropout=0.5)
    job = job_with(model, **{**PLAIN, "epochs": 1, "adversarial_epsilon": 1e-6})
    (evaluation,) = trained(job, model)[0]
    assert evaluation.train_loss == pytest.approx(2 * evaluation.train_metrics["loss"], abs=1e-4)


def test_smoothed_labels_are_those_of_training_alone() -> None:
    model, other = bert(dropout=0.0), bert(dropout=0.0)
    job = job_with(model, **{**PLAIN, "epochs": 1, "label_smoothing": 0.5})
    start(job, other, NEW)
    batch = batch_of(job, 1)
    shares = other(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(1)
    targets = 0.25 + 0.5 * nn.functional.one_hot(batch["labels"], 2)
    loss = -(targets * shares).sum(1).mean()
    found = gradients(other, loss)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.sub_(0.1 * found[name])
    evaluations, weights = trained(job, model)
    assert_near(weights, dict(other.named_parameters()))
    assert evaluations[0].train_loss == pytest.approx(loss.item(), abs=1e-6)
    predictions = loop.evaluate(
        start(job, other, ()).forward,
        job.task,
        job.validation,
        device="cpu",
        precision="fp32",
        pad_token_id=0,
    )
    assert evaluations[0].metrics["loss"] == pytest.approx(predictions.losses.mean(), abs=1e-5)


# ----------------------------------------------------------------- the validation loss, unfreezing, probes


def test_a_plateau_lowers_the_rate_after_its_patience() -> None:
    """The losses of the evaluations so far decide on the rate of the next epoch."""
    schedule = {"type": "plateau", "factor": 0.25, "patience": 1, "warmup_steps": 2}
    model = bert()
    job = job_with(model, learning_rate=0.05, batch_size=8, epochs=8, lr_schedule=schedule)
    evaluations, _ = trained(job, model)
    losses = [e.metrics["loss"] for e in evaluations]
    rate, best = 0.05, math.inf
    for evaluation, loss in zip(evaluations, losses, strict=True):
        assert evaluation.learning_rate == rate
        rate, best = (rate, loss) if loss < best else (rate * 0.25, best)
    assert evaluations[-1].learning_rate < 0.05 / 4


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    parts = ("embeddings", "layer.0", "layer.1", "pooler", "classifier")
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    return {part for part in parts for name in changed if part in name}


def test_unfreezing_opens_a_block_an_epoch_and_touches_nothing_below() -> None:
    model = bert()
    job = job_with(model, learning_rate=1e-2, batch_size=8, epochs=5, freeze_depth=2, unfreeze={})
    state = start(job, model, NEW)
    origin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, modes = [], []
    for _ in fit(job, state):
        found.append(moved(origin, model.state_dict()))
        modes.append(sum(p.requires_grad for p in model.parameters()))
    head = {"pooler", "classifier"}
    assert found[0] == head
    assert found[1] == head | {"layer.1"}
    assert found[2] == head | {"layer.1", "layer.0"}
    assert found[3] == found[4] == head | {"layer.1", "layer.0", "embeddings"}
    assert modes == sorted(modes)


def test_until_it_opens_something_unfreezing_is_freezing() -> None:
    settings = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2, "freeze_depth": 2}
    model = bert()
    frozen, _ = trained(job_with(model, **settings), model)
    model = bert()
    opened_later, _ = trained(job_with(model, **settings, unfreeze={}), model)
    assert opened_later[0] == frozen[0]
    assert opened_later[1] != frozen[1]


def test_a_block_that_is_opened_begins_as_a_fresh_one() -> None:
    """Its moments count from its own first step: after epochs 2 and 3 of three steps it has taken six."""
    model = bert()
    job = job_with(model, learning_rate=1e-2, batch_size=8, epochs=3, freeze_depth=2, unfreeze={})
    state = start(job, model, NEW)
    list(fit(job, state))
    steps = {
        name: int(state.optimizer.state[p]["step"]) if state.optimizer.state[p] else 0
        for name, p in model.named_parameters()
    }
    assert steps["classifier.weight"] == 9
    assert steps["bert.encoder.layer.1.output.dense.weight"] == 6
    assert steps["bert.encoder.layer.0.output.dense.weight"] == 3
    assert steps["bert.embeddings.LayerNorm.weight"] == 0


PHASED: list[dict[str, object]] = [
    {"freeze_depth": 2, "unfreeze": {}},
    {"freeze_depth": 1, "unfreeze": {"blocks": 3}},
    {"linear_probe": {"epochs": 2}},
    {"freeze_depth": 1, "linear_probe": {"epochs": 1}, "unfreeze": {}},
]


@pytest.mark.parametrize("settings", PHASED)
@pytest.mark.parametrize("build", [bert, gpt2])
def test_phases_on_states_are_the_phases_from_the_tokens(
    build: Callable[[], PreTrainedModel], settings: dict[str, object], tmp_path: Path
) -> None:
    settings = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 4, **settings}
    model = build()
    plain, _ = trained(job_with(model, **settings), model)
    model = build()
    on_kept, _ = trained(cached(job_with(model, **settings), model, tmp_path), model)
    for left, right in zip(plain, on_kept, strict=True):
        assert right.train_loss == pytest.approx(left.train_loss, abs=1e-5)
        assert right.metrics["loss"] == pytest.approx(left.metrics["loss"], abs=1e-5)


def test_a_probe_trains_the_head_then_all_with_a_schedule_and_an_optimizer_of_its_own() -> None:
    """Three steps an epoch; the linear schedule runs over the six steps of epochs 2 and 3."""
    common = {"batch_size": 8, "learning_rate": 0.006}
    probe = {"epochs": 1, "learning_rate": 0.01}
    model = bert()
    job = job_with(model, **common, epochs=3, linear_probe=probe, lr_schedule="linear")
    state = start(job, model, NEW)
    origin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, evaluations = [], []
    for evaluation in fit(job, state):
        evaluations.append(evaluation)
        found.append(moved(origin, model.state_dict()))
    assert found[0] == {"pooler", "classifier"}
    assert found[1] == {"pooler", "classifier", "layer.0", "layer.1", "embeddings"}
    assert [e.learning_rate for e in evaluations] == [0.01, 0.006 * 4 / 6, 0.006 * 1 / 6]
    assert int(state.optimizer.state[model.get_parameter("classifier.weight")]["step"]) == 6

    model = bert()
    alone, _ = trained(job_with(model, batch_size=8, learning_rate=0.01, epochs=1, freeze_depth=2), model)
    assert evaluations[0] == alone[0]


def test_evaluations_of_the_probe_do_not_count_for_what_reacts_to_them() -> None:
    stopping = {"patience": 1, "min_delta": 100.0}
    settings = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 6, "linear_probe": {"epochs": 2}}
    model = bert()
    job = job_with(model, **settings, early_stopping=stopping)
    assert [e.stopped for e in trained(job, model)[0]] == [False, False, False, True]
    model = bert()
    schedule = {"type": "plateau", "patience": 2, "factor": 0.5}
    evaluations, _ = trained(
        job_with(model, **{**settings, "learning_rate": 1e-30}, lr_schedule=schedule), model
    )
    assert [e.learning_rate for e in evaluations] == [1e-3, 1e-3, 1e-30, 1e-30, 1e-30, 5e-31]


@pytest.mark.parametrize("settings", [{"freeze_depth": 2, "unfreeze": {}}, {"linear_probe": {"epochs": 2}}])
def test_trainings_with_a_trunk_may_have_phases(settings: dict[str, object]) -> None:
    """Under wsd each comes to what it comes to alone, also one that ends within the probe."""
    schedule = {"type": "wsd", "decay_ratio": 0.4}
    common = {"learning_rate": 1e-2, "batch_size": 8, "lr_schedule": schedule, **settings}
    jobs = [job_with(bert(), epochs=epochs, **common) for epochs in (2, 3, 5)]
    jobs = [replace(job, train=jobs[0].train, validation=jobs[0].validation) for job in jobs]
    found: list[list[Evaluation]] = [[] for _ in jobs]
    for indices, result in fit_branches(jobs, start(jobs[-1], bert(), NEW)):
        assert not isinstance(result, TrialError)
        for index in indices:
            found[index].append(result)
    assert found == [trained(job, bert())[0] for job in jobs]


# ------------------------------------------------------------------------------------------- interrupted

METHODS: dict[str, dict[str, object]] = {
    "adafactor": {"optimizer": "adafactor"},
    "l2_sp": {"l2_sp": 0.5},
    "layerwise_lr_decay": {"layerwise_lr_decay": 0.5},
    "label_smoothing": {"label_smoothing": 0.2},
    "adversarial_epsilon": {"adversarial_epsilon": 0.5},
    "plateau": {"lr_schedule": {"type": "plateau", "patience": 1}},
    "unfreeze": {"freeze_depth": 2, "unfreeze": {}},
    "linear_probe": {"linear_probe": {"epochs": 2}},
    "all": {
        "optimizer": "adafactor",
        "l2_sp": 0.5,
        "layerwise_lr_decay": 0.5,
        "label_smoothing": 0.2,
        "adversarial_epsilon": 0.5,
        "lr_schedule": {"type": "plateau", "patience": 1},
        "freeze_depth": 1,
        "unfreeze": {},
        "linear_probe": {"epochs": 1},
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_does_something(method: str) -> None:
    plain, with_it = (
        trained(job_with(bert(), learning_rate=1e-2, batch_size=8, epochs=4, **settings), bert())[0]
        for settings in ({}, METHODS[method])
    )
    assert plain != with_it
    assert all(math.isfinite(e.train_loss) for e in with_it)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [3, 4, 7, 9])
def test_interrupted_equals_uninterrupted(method: str, at: int) -> None:
    """Three steps an epoch: at the end of an epoch, and within one."""
    model = bert()
    job = job_with(model, learning_rate=1e-2, batch_size=8, epochs=4, **METHODS[method])
    whole = trained(job, model)
    interrupted = start(job, bert(), NEW)
    before = list(fit(job, interrupted, until=at))
    loop.settle(interrupted)
    snapshot = interrupted.state_dict()
    torch.rand(5)

    model = bert()
    resumed = start(job, model, NEW)
    resumed.load_state_dict(snapshot)
    assert before + list(fit(job, resumed)) == whole[0]
    assert_same_weights(model.state_dict(), whole[1])
