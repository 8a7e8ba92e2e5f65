"""Which part of a model is trained, and the drawing of weights that were not pretrained."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _NormBase

from finetune_sweep.train.adapters import MARK
from finetune_sweep.train.architecture import Architecture, Depth, is_frozen

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def trained_names(model: nn.Module, arch: Architecture, depth: Depth) -> set[str]:
    """The parameters that are trained: those that are not frozen; of a block with adapters, only these."""
    parts = {name: arch.part_of(name) for name, _ in model.named_parameters()}
    adapted = {part for name, part in parts.items() if MARK in name}
    return {
        name
        for name, part in parts.items()
        if not is_frozen(part, depth) and (part not in adapted or MARK in name)
    }


def freeze(model: nn.Module, arch: Architecture, depth: Depth) -> None:
    """Sets `requires_grad` of every parameter, whatever it was before: False for what is not trained alone.

    The frozen part comes first in the forward pass, so no graph is recorded for it and the backward pass
    ends where it does. Gradients left by an earlier training are dropped.

    Args:
        model: The model; changed in place.
        arch: Where its embeddings, blocks and head are.
        depth: As `resolve_depth` returns it.
    """
    trained = trained_names(model, arch, depth)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None


def train_mode(model: nn.Module, arch: Architecture, depth: Depth) -> None:
    """Puts the trained part in training mode, the frozen part in eval mode: no dropout, fixed statistics."""
    for name, module in model.named_modules():
        # Parts are told by the names of parameters, which a dropout has none of: one is made up.
        module.training = not is_frozen(arch.part_of(f"{name}.weight"), depth)


def changed_tensors(model: nn.Module, arch: Architecture, depth: Depth) -> dict[str, Tensor]:
    """What training can change, by its name in the model's `state_dict`: live tensors, not copies.

    These are the trained parameters, and the running statistics of batch norms outside the frozen part.
    """
    trained = trained_names(model, arch, depth)
    changed = {name: parameter.detach() for name, parameter in model.named_parameters() if name in trained}
    statistics = _running_statistics(model)
    return changed | {n: t.detach() for n, t in statistics if not is_frozen(arch.part_of(n), depth)}


def _running_statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            yield from module.named_buffers(prefix, recurse=False)


def initialize_new(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """Draws parameters anew as the model's own `_init_weights` does, and leaves everything else as it is.

    The numbers are drawn on the CPU, so that they are the same on every device. The parameters stay there:
    move the model afterwards.

    Args:
        model: The model; changed in place.
        names: The parameters to draw.
        seed: Determines the values, together with the set of names.
    """
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        # transformers marks what a checkpoint has given with this attribute, and its initialisers skip it.
        tensor._is_hf_initialized = name not in names  # type: ignore[attr-defined]  # noqa: SLF001
        if name in names:
            tensor.data = tensor.data.cpu()
    for module in model.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]  # noqa: SLF001
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.initialize_weights()  # type: ignore[no-untyped-call]
