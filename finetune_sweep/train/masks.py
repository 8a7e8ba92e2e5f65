"""The head of a model, of which many are computed at once: dropout is given to it as masks, drawn for each seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune_sweep.train.packing import apply_head, shallow
from finetune_sweep.train.state import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune_sweep.train.architecture import Architecture


class Head(nn.Module):
    """The head of a model as a function of its tensors and of what dropout leaves."""

    def __init__(self, model: PreTrainedModel, arch: Architecture) -> None:
        super().__init__()
        self._arch = arch
        self._dropout = _Dropout()
        self.model = shallow(model)
        for name in arch.family.head:
            if name != "relu":
                self._without_dropout(self.model, name)

    def _without_dropout(self, holder: nn.Module, name: str) -> None:
        """Puts masks in the place of each dropout of a module, in copies of what holds it."""
        *path, last = name.split(".")
        for part in path:
            holder._modules[part] = holder = shallow(holder.get_submodule(part))  # noqa: SLF001
        module = holder.get_submodule(last)
        if isinstance(module, nn.Dropout):
            holder._modules[last] = _Masking(self._dropout, module.p)  # noqa: SLF001
            return
        holder._modules[last] = copied = shallow(module)  # noqa: SLF001
        for inner, _ in list(copied.named_children()):
            self._without_dropout(copied, inner)

    def masks(self, seeds: Sequence[int], states: Tensor, epoch: int, step: int) -> list[Tensor]:
        """What dropout leaves of each row, drawn for each seed as a training alone would draw it.

        Args:
            seeds: One for each member.
            states: Of the rows of one of them, shape `(rows, hidden)`.
            epoch: Counted from 1.
            step: Counted from 0, over all epochs.

        Returns:
            One tensor for each call of a dropout, of shape `(members, rows, ...)`.
        """
        drawn: dict[int, list[Tensor]] = {}
        for seed in seeds:
            if seed not in drawn:
                torch.manual_seed(derive_seed(seed, "dropout", epoch, step, 0))
                with torch.no_grad():
                    drawn[seed] = self._dropout.record(lambda: self._logits(states))
        return [torch.stack(masks) for masks in zip(*(drawn[seed] for seed in seeds), strict=True)]

    def forward(self, states: Tensor, masks: list[Tensor]) -> Tensor:
        """Returns logits of shape `(rows, classes)` from states `(rows, hidden)`, with what `masks` returned."""
        self._dropout.given = iter(masks)
        return self._logits(states)

    def _logits(self, states: Tensor) -> Tensor:
        return apply_head(self.model, self._arch, states)


class _Dropout:
    """Where the masks of a forward pass come from: given, or drawn and noted."""

    def __init__(self) -> None:
        self.given: Iterator[Tensor] | None = None
        self._noted: list[Tensor] = []

    def record(self, forward: Callable[[], object]) -> list[Tensor]:
        self.given, self._noted = None, []
        forward()
        return self._noted

    def apply(self, states: Tensor, probability: float) -> Tensor:
        if self.given is not None:
            return states * next(self.given)
        mask = functional.dropout(torch.ones_like(states), probability)
        self._noted.append(mask)
        return states * mask


class _Masking(nn.Module):
    """Stands in the place of a dropout."""

    def __init__(self, source: _Dropout, probability: float) -> None:
        super().__init__()
        self._source, self._probability = source, probability

    def forward(self, states: Tensor) -> Tensor:
        return self._source.apply(states, self._probability)
