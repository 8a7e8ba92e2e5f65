"""Optimizers, their parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune_sweep.settings import Constant, Cosine, Linear, Plateau, Wsd

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor

    from finetune_sweep.settings import LrSchedule, Training
    from finetune_sweep.train.architecture import Architecture

_FUSED_DEVICES = frozenset({"cpu", "cuda"})


@dataclass(frozen=True)
class Anchor:
    """A pretrained parameter that is trained, and the value that it is pulled to.

    Args:
        name: Of the parameter.
        parameter: As it is now.
        origin: As it was pretrained, of the same shape.
    """

    name: str
    parameter: nn.Parameter
    origin: Tensor


def anchors(
    model: nn.Module, origins: Mapping[str, Tensor], new_parameters: Collection[str]
) -> tuple[Anchor, ...]:
    """What L2-SP holds on to: all that is trained and pretrained, biases and norms too.

    Args:
        model: On its device, frozen to its depth.
        origins: The pretrained values by the names of the parameters; empty where nothing is held on to.
        new_parameters: Names of the parameters that begin without a pretrained value.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    known = [name for name in trained if name in origins and name not in new_parameters]
    return tuple(Anchor(name, trained[name], origins[name].to(trained[name].device)) for name in known)


def pull(anchored: Sequence[Anchor], strength: float) -> None:
    """Adds the gradient of `strength / 2 * ||w - w0||^2` to what each parameter has: `strength * (w - w0)`.

    Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks".
    Parameters without a gradient, as those that are not yet unfrozen, get none.
    """
    for anchor in anchored:
        if anchor.parameter.grad is not None:
            anchor.parameter.grad.add_(anchor.parameter.detach() - anchor.origin, alpha=strength)


def rate_scale(name: str, arch: Architecture, decay: float) -> float:
    """What the learning rate of a parameter is multiplied with: 1 after the blocks, `decay` in the last block.

    It is `decay^2` in the block before it, and so on; `decay^(blocks + 1)` in the embeddings. Howard & Ruder 2018 call
    such rates discriminative; the code of ELECTRA (Clark et al. 2020) has one power more in blocks and embeddings.
    Blocks that share their weights have the rate of the last of them.
    """
    part = arch.part_of(name)
    if part == "head":
        return 1.0
    return float(decay ** (arch.blocks - (-1 if part == "embeddings" else part)))


def build_optimizer(
    model: nn.Module,
    settings: Training,
    stead: Mapping[str, nn.Parameter] | None = None,
    *,
    arch: Architecture | None = None,
    anchored: Sequence[Anchor] = (),
) -> torch.optim.Optimizer:
    """Builds the optimizer over the parameters that require gradients.

    AdamW (Loshchilov & Hutter 2019) keeps torch's betas (0.9, 0.999) and eps 1e-8, and is fused where that is
    safe. SGD is w - lr * (gradient + weight_decay * w), without
    momentum. Adafactor (Shazeer & Stern 2018) is torch's with its defaults: the learning rate, at most 1 / sqrt(step),
    is relative to each tensor's root mean square.

    Args:
        model: A model on its device, already frozen to its depth.
        settings: Learning rate, weight decay and the optimizer's name.
        stead: Parameters, by name, that are optimized in the place of the model's.
        arch: Where the model's blocks are, if their learning rates decay.
        anchored: What has a pull of its own in the place of weight decay.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters |= stead or {}
    undecayed = {*_undecayed(model), *(anchor.name for anchor in anchored)}
    scales = {
        name: 1.0 if arch is None else rate_scale(name, arch, settings.layerwise_lr_decay)
        for name in parameters
    }
    kinds = [
        (decay, scale) for decay in (True, False) for scale in sorted(set(scales.values()), reverse=True)
    ]
    groups: list[dict[str, Any]] = []
    for decays, scale in kinds:
        names = [n for n in parameters if (n not in undecayed, scales[n]) == (decays, scale)]
        own = {"names": names, "weight_decay": settings.weight_decay if decays else 0.0, "scale": scale}
        if names:
            groups.append({"params": [parameters[name] for name in names], **own})
    match settings.optimizer:
        case "adamw":
            fused = all(p.device.type in _FUSED_DEVICES for p in parameters.values())
            return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused, foreach=not fused)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.learning_rate)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=settings.learning_rate)


def _undecayed(model: nn.Module) -> Iterator[str]:
    """Names of biases, of vectors, and of whatever a norm holds (Devlin et al. 2019, the reference code)."""
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if is_norm or parameter.ndim < 2 or name.rpartition(".")[2] == "bias":
                yield name


def learning_rate(schedule: LrSchedule, base: float, step: int, total_steps: int) -> float:
    """Learning rate of one optimizer step.

    Over w warmup steps it is base/w, 2 base/w, ... base, so that no step is lost at 0. Then `constant` stays, and
    `plateau` where nothing `reduction` reacts to happens;
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
        case Constant(warmup_steps=warmup) | Plateau(warmup_steps=warmup):
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


def reduction(schedule: LrSchedule, losses: Sequence[float]) -> float:
    """What the learning rate is multiplied with after some evaluations: 1 but for `plateau`.

    Args:
        schedule: The settings of the schedule.
        losses: The validation losses so far, in their order.
    """
    if not isinstance(schedule, Plateau):
        return 1.0
    best, waited, reductions = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == schedule.patience:
            reductions, waited = reductions + 1, 0
    return float(schedule.factor**reductions)


def decay_start(schedule: Wsd, total_steps: int) -> int:
    """The first step of the decay: up to there a training equals a longer one."""
    return total_steps - math.ceil(schedule.decay_ratio * total_steps)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Gives all parameter groups this learning rate for the next step, each times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["scale"]
