from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from finetune_sweep.settings import Constant, Cosine, Linear, LrSchedule, Plateau, Training, Wsd
from finetune_sweep.train.architecture import Architecture
from finetune_sweep.train.optim import (
    Anchor,
    anchors,
    build_optimizer,
    decay_start,
    learning_rate,
    pull,
    rate_scale,
    reduction,
    set_learning_rate,
)


class RMSNorm(nn.Module):
    """A norm that is no class of torch's, with a matrix for a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"embedding": nn.Embedding(5, 2), "dense": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "rms": RMSNorm()}
    )


def names_by_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["weight_decay"]: {names[p] for p in group["params"]} for group in optimizer.param_groups}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_weight_decay_is_not_on_biases_and_norms(optimizer: str) -> None:
    model = small_model()
    built = build_optimizer(model, Training.model_validate({"optimizer": optimizer, "weight_decay": 0.1}))
    assert names_by_decay(model, built) == {
        0.1: {"embedding.weight", "dense.weight"},
        0.0: {"dense.bias", "norm.weight", "norm.bias", "rms.weight"},
    }


def test_the_optimizer_holds_trainable_parameters_only() -> None:
    model = small_model()
    model.requires_grad_(False)
    model.get_parameter("dense.bias").requires_grad_(True)
    built = build_optimizer(model, Training(weight_decay=0.1))
    assert names_by_decay(model, built) == {0.0: {"dense.bias"}}


def test_adamw_is_fused_on_a_cpu() -> None:
    built = build_optimizer(small_model(), Training())
    assert isinstance(built, torch.optim.AdamW)
    assert built.defaults["fused"] is True


def test_sgd_is_the_weight_minus_the_rate_times_the_gradient() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(1.0)
    built = build_optimizer(model, Training(optimizer="sgd", weight_decay=0.25, learning_rate=0.5))
    model.weight.grad = torch.tensor([[3.0]])
    model.bias.grad = torch.tensor([4.0])
    built.step()
    assert model.weight.item() == 2.0 - 0.5 * (3.0 + 0.25 * 2.0)
    assert model.bias.item() == 1.0 - 0.5 * 4.0


def test_the_first_step_of_adamw_is_the_rate_after_the_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    built = build_optimizer(model, Training(weight_decay=0.5, learning_rate=0.125))
    model.weight.grad = torch.tensor([[3.0]])
    built.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.125 * 0.5) - 0.125, abs=1e-6)


def test_the_first_step_of_adafactor_is_the_rate_times_the_root_mean_square() -> None:
    """Its second moment is then the squared gradient, so the update is the gradient's sign."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(4.0)
        model.bias.fill_(2.0)
    built = build_optimizer(model, Training(optimizer="adafactor", weight_decay=0.5, learning_rate=0.125))
    model.weight.grad, model.bias.grad = torch.tensor([[-3.0]]), torch.tensor([7.0])
    built.step()
    assert model.weight.item() == pytest.approx(4.0 * (1 - 0.125 * 0.5) + 0.125 * 4.0, abs=1e-6)
    assert model.bias.item() == pytest.approx(2.0 - 0.125 * 2.0, abs=1e-6)


def test_adafactor_is_that_of_torch() -> None:
    ours, theirs = small_model(), small_model()
    settings = Training(optimizer="adafactor", weight_decay=0.0, learning_rate=0.01)
    built = build_optimizer(ours, settings)
    plain = torch.optim.Adafactor(theirs.parameters(), lr=0.01)
    for step in range(3):
        torch.manual_seed(step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        built.step()
        plain.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_pull_is_the_strength_times_the_way_from_the_pretrained_value() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    first, second = model.parameters()
    origins = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    anchored = anchors(model, origins, ["1.weight"])
    assert [(anchor.name, anchor.origin.item()) for anchor in anchored] == [("0.weight", first.item())]

    with torch.no_grad():
        first.fill_(5.0)
    pull([Anchor("0.weight", first, torch.tensor([[2.0]]))], 0.25)
    assert first.grad is None
    first.grad, second.grad = torch.tensor([[1.0]]), torch.tensor([[1.0]])
    pull([Anchor("0.weight", first, torch.tensor([[2.0]]))], 0.25)
    assert (first.grad.item(), second.grad.item()) == (1.0 + 0.25 * (5.0 - 2.0), 1.0)
    assert anchors(model, {}, ["1.weight"]) == ()


def test_rates_fall_from_the_head_to_the_embeddings() -> None:
    arch = Architecture("bert", 2, "small")
    names = {
        "classifier.weight": 1.0,
        "bert.pooler.dense.bias": 1.0,
        "bert.encoder.layer.1.output.dense.weight": 0.5,
        "bert.encoder.layer.0.output.dense.weight": 0.25,
        "bert.embeddings.LayerNorm.weight": 0.125,
    }
    assert {name: rate_scale(name, arch, 0.5) for name in names} == names
    assert {rate_scale(name, arch, 1.0) for name in names} == {1.0}


def test_the_rate_is_set_for_all_groups() -> None:
    built = build_optimizer(small_model(), Training())
    set_learning_rate(built, 0.25)
    assert [group["lr"] for group in built.param_groups] == [0.25, 0.25]


def test_a_plateau_is_reduced_after_so_many_evaluations_without_a_lower_loss() -> None:
    # 0.9 is the lowest, then two are not lower: half. 0.8, two that are not lower: half of that; and two more.
    schedule = Plateau(type="plateau", factor=0.5, patience=2)
    losses = [1.0, 0.9, 0.95, 0.9, 0.8, 0.85, 0.8, 0.9, 0.9]
    found = [reduction(schedule, losses[:count]) for count in range(len(losses) + 1)]
    assert found == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert reduction(Constant(type="constant"), losses) == 1.0
    assert rates(Plateau(type="plateau", warmup_steps=2), 4) == [4.0, 8.0, 8.0, 8.0]


def rates(schedule: LrSchedule, total_steps: int) -> list[float]:
    return [learning_rate(schedule, 8.0, step, total_steps) for step in range(total_steps)]


def test_constant_is_the_base_from_the_first_step() -> None:
    assert rates(Constant(type="constant"), 3) == [8.0, 8.0, 8.0]


def test_constant_rises_over_the_warmup_and_does_not_look_at_the_length() -> None:
    schedule = Constant(type="constant", warmup_steps=4)
    assert rates(schedule, 6) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert rates(schedule, 3) == [2.0, 4.0, 6.0]


def test_linear_falls_from_the_base_to_zero_at_the_total() -> None:
    schedule = Linear(type="linear")
    assert rates(schedule, 4) == [8.0, 6.0, 4.0, 2.0]
    assert learning_rate(schedule, 8.0, 4, 4) == 0.0


def test_linear_rises_over_the_warmup_then_falls() -> None:
    assert rates(Linear(type="linear", warmup_steps=2), 6) == [4.0, 8.0, 8.0, 6.0, 4.0, 2.0]


def test_a_warmup_ratio_is_rounded_up_to_steps() -> None:
    assert rates(Linear(type="linear", warmup_ratio=0.25), 5) == rates(
        Linear(type="linear", warmup_steps=2), 5
    )


def test_a_warmup_longer_than_the_training_only_rises() -> None:
    assert rates(Linear(type="linear", warmup_steps=8), 3) == [1.0, 2.0, 3.0]
    assert learning_rate(Linear(type="linear", warmup_steps=3), 8.0, 3, 3) == 0.0


def test_cosine_falls_by_half_a_cosine() -> None:
    # left = 1, 3/4, 1/2, 1/4: (1 - cos(pi left)) / 2 = 1, (1 + sqrt(1/2)) / 2, 1/2, (1 - sqrt(1/2)) / 2
    root = math.sqrt(0.5)
    expected = [8.0, 4 * (1 + root), 4.0, 4 * (1 - root)]
    assert rates(Cosine(type="cosine"), 4) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(Cosine(type="cosine"), 8.0, 4, 4) == 0.0
    assert rates(Cosine(type="cosine", warmup_steps=2), 6) == pytest.approx(
        [4.0, 8.0, *expected[:1], *expected[1:]]
    )


def test_wsd_rises_stays_and_falls_by_the_root() -> None:
    # Ten steps, of which the last four decay: x = 0, 1/4, 1/2, 3/4, and 1 - sqrt(x) = 1, 1/2, 1 - sqrt(1/2), ...
    schedule = Wsd(type="wsd", warmup_steps=2, decay_ratio=0.4)
    expected = [4.0, *[8.0] * 5, 8.0, 4.0, 8 * (1 - math.sqrt(0.5)), 8 * (1 - math.sqrt(0.75))]
    assert decay_start(schedule, 10) == 6
    assert rates(schedule, 10) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(schedule, 8.0, 10, 10) == 0.0


def test_wsd_is_constant_up_to_its_decay_whatever_the_length() -> None:
    schedule = Wsd(type="wsd", warmup_steps=3)
    constant = rates(Constant(type="constant", warmup_steps=3), 20)
    for total in range(1, 20):
        start = decay_start(schedule, total)
        assert start == total - math.ceil(0.2 * total)
        assert rates(schedule, total)[: start + 1] == constant[: start + 1]


@pytest.mark.parametrize(
    "schedule", [Wsd(type="wsd", warmup_steps=9), Cosine(type="cosine", warmup_ratio=0.9)]
)
def test_rates_of_short_trainings_are_finite_and_positive(schedule: LrSchedule) -> None:
    for total in range(1, 20):
        assert all(math.isfinite(rate) and 0 < rate <= 8.0 for rate in rates(schedule, total))


def test_all_rates_are_finite_and_positive() -> None:
    for total in range(1, 20):
        for warmup in range(20):
            found = rates(Linear(type="linear", warmup_steps=warmup), total)
            assert all(math.isfinite(rate) and 0 < rate <= 8.0 for rate in found)
