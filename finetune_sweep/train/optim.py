"""Optimizers, their parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from finetune_sweep.settings import Constant, Cosine, Linear, Wsd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from finetune_sweep.settings import LrSchedule, Training

_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def build_optimizer(
    model: nn.Module, settings: Training, stead: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Builds the optimizer over the parameters that require gradients.

    AdamW (Loshchilov & Hutter 2019) keeps torch's betas (0.9, 0.999) and eps 1e-8, and is fused where that is
    safe (on a CPU a seventh of the time of the loop). SGD is w - lr * (gradient + weight_decay * w), without
    momentum.

    Args:
        model: A model on its device, already frozen to its depth.
        settings: Learning rate, weight decay and the optimizer's name.
        stead: Parameters, by name, that are optimized in the place of the model's.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters |= stead or {}
    undecayed = set(_undecayed(model))
    decays = [
        ([name for name in parameters if name not in undecayed], settings.weight_decay),
        ([name for name in parameters if name in undecayed], 0.0),
    ]
    groups = [
        {"params": [parameters[name] for name in names], "names": names, "weight_decay": decay}
        for names, decay in decays
        if names
    ]
    match settings.optimizer:
        case "adamw":
            fused = all(p.device.type in _FUSED_DEVICES for p in parameters.values())
            return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused, foreach=not fused)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.learning_rate)


def _undecayed(model: nn.Module) -> Iterator[str]:
    """Names of biases, of vectors, and of whatever a norm holds (Devlin et al. 2019, the reference code)."""
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if is_norm or parameter.ndim < 2 or name.rpartition(".")[2] == "bias":
                yield name


def learning_rate(schedule: LrSchedule, base: float, step: int, total_steps: int) -> float:
    """Learning rate of one optimizer step.

    Over w warmup steps it is base/w, 2 base/w, ... base, so that no step is lost at 0. Then `constant` stays;
    `linear` falls evenly, and `cosine` by half a cosine, from `base` at the first step after the warmup to what
    would be 0 at `total_steps`; `wsd` stays until its decay, over which it falls by 1 - sqrt(x), x from 0 at the
    decay's first step to what would be 1 at `total_steps`.

    Args:
        schedule: The settings of the schedule.
        base: The peak.
        step: The step, counted from 0, below `total_steps`.
        total_steps: Steps of the whole training; `constant` does not look at it, `wsd` only for its decay.
    """
    match schedule:
        case Constant(warmup_steps=warmup):
            return base * _rise(step, warmup)
        case Linear() | Cosine():
            warmup = schedule.warmup_steps or math.ceil(schedule.warmup_ratio * total_steps)
            if step < warmup:
                return base * _rise(step, warmup)
            left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
            return base * (left if isinstance(schedule, Linear) else (1 - math.cos(math.pi * left)) / 2)
        case Wsd(warmup_steps=warmup):
            start = decay_start(schedule, total_steps)
            over = max(0, step - start) / (total_steps - start)
            return base * _rise(step, warmup) * (1 - math.sqrt(min(1.0, over)))


def decay_start(schedule: Wsd, total_steps: int) -> int:
    """The first step of the decay: up to there a training equals a longer one."""
    return total_steps - math.ceil(schedule.decay_ratio * total_steps)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Gives all parameter groups this learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = value
