"""Adversarial training by the fast gradient method: each example is learned also where its embeddings hurt most.

Miyato, Dai & Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text Classification".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Losses:
    """What `fast_gradient` gives; the loss to learn from is the sum of both.

    Args:
        clean: The loss of each example as it is, shape `(batch,)`.
        adversarial: The same with its embeddings moved, shape `(batch,)`.
    """

    clean: Tensor
    adversarial: Tensor

    @property
    def total(self) -> Tensor:
        """What is learned from, shape `(batch,)`."""
        return self.clean + self.adversarial


def perturbation(gradient: Tensor, epsilon: float, lengths: Tensor | None = None) -> Tensor:
    """The step of length `epsilon` that raises the loss most, to first order: `epsilon * g / ||g||`.

    Args:
        gradient: Of the loss by the embeddings, shape `(batch, ...)`; the norm is taken over each example. Or of shape
            `(1, tokens, hidden)`, where the texts of a batch lie end to end.
        epsilon: The length of each example's step.
        lengths: The tokens of each text, shape `(batch,)`; needed where they lie end to end.

    Returns:
        The same shape and type; zero where the gradient is zero. Norms are computed in float32.
    """
    rows = gradient.detach().float()
    if lengths is not None and len(rows) != len(lengths):
        text = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths.to(rows.device))
        squares = rows[0].square().sum(1)
        sums = torch.zeros(len(lengths), device=rows.device).index_add_(0, text, squares)
        norms = sums.sqrt().index_select(0, text)[None, :, None]
    else:
        norms = torch.linalg.vector_norm(rows.flatten(1), dim=1).view(-1, *[1] * (rows.ndim - 1))
    step = torch.where(norms > 0, epsilon * rows / norms.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return step.to(gradient.dtype)


def fast_gradient(
    embeddings: nn.Module, losses: Callable[[], Tensor], epsilon: float, lengths: Tensor | None = None
) -> Losses:
    """Computes the losses of a batch, and again with its embeddings moved by `perturbation`.

    The step itself is a constant: gradients of the result reach the weights through both passes, the embeddings'
    too, but not through the step. It works with frozen embeddings as well.

    Args:
        embeddings: The module whose output is moved: the word embeddings, a tensor of shape `(batch, ...)` whose
            first axis is the examples, or `(1, tokens, hidden)` with the texts of a batch end to end. Where it is
            called again in a pass, as for the decoder, that output stays.
        losses: A forward pass of the same batch, giving the loss of each example, shape `(batch,)`. It is called
            twice: for the same dropout in both, let it seed the generator.
        epsilon: The length of the step, above 0.
        lengths: The tokens of each text, shape `(batch,)`; needed where they lie end to end.
    """
    with _output(embeddings) as outputs:
        clean = losses()
    (gradient,) = torch.autograd.grad(clean.sum(), outputs[:1], retain_graph=True)
    with _moved(embeddings, perturbation(gradient, epsilon, lengths)):
        return Losses(clean, losses())


@contextmanager
def _output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the output of a module, with a gradient even if nothing before it has one."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        found.append(output if output.requires_grad else output.detach().requires_grad_())
        return found[-1]

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _moved(module: nn.Module, by: Tensor) -> Iterator[None]:
    """Adds a constant to the output of a module, the first time that it is called."""
    once = [by]
    handle = module.register_forward_hook(
        lambda _module, _args, output: output + once.pop() if once else output
    )
    try:
        yield
    finally:
        handle.remove()
