"""Methods that act on the steps: by hand, through the real loop, and interrupted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from finetune_sweep.settings import Training
from finetune_sweep.train import loop
from finetune_sweep.train.adversarial import fast_gradient
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.state import derive_seed
from tests.train.runs import NEW, assert_same_weights, bert, gpt2, job_for, trained

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.contract import Batch
    from finetune_sweep.train.state import Job

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
    return job_for(model, Training.model_validate(settings))


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


# ------------------------------------------------------------------------------------------- interrupted

METHODS: dict[str, dict[str, object]] = {
    "adafactor": {"optimizer": "adafactor"},
    "l2_sp": {"l2_sp": 0.5},
    "layerwise_lr_decay": {"layerwise_lr_decay": 0.5},
    "label_smoothing": {"label_smoothing": 0.2},
    "adversarial_epsilon": {"adversarial_epsilon": 0.5},
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
    loop.settle(job, interrupted)
    snapshot = interrupted.state_dict()
    torch.rand(5)

    model = bert()
    resumed = start(job, model, NEW)
    resumed.load_state_dict(snapshot)
    assert before + list(fit(job, resumed)) == whole[0]
    assert_same_weights(model.state_dict(), whole[1])
