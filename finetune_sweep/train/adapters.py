"""LoRA by the library `peft`: adapters put into a model, and added up with the weights that they adapt."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from transformers import PreTrainedModel

    from finetune_sweep.settings import Lora

MARK: Final = ".lora_"
"""In the names of the parameters of adapters, and of no others."""


def adapt(model: PreTrainedModel, layers: Collection[str], settings: Lora, seed: int) -> None:
    """Puts adapters into linear layers (Hu et al. 2022, https://arxiv.org/abs/2106.09685).

    A of each is drawn by the seed (on the CPU, so that it is the same on every device), B is 0: at first the
    model says what it said.

    Args:
        model: Changed in place: the name of an adapted weight gets `base_layer` before its end.
        layers: Names of the layers.
        settings: Rank and scale.
        seed: Determines A.
    """
    from peft import LoraConfig, inject_adapter_in_model

    first = model.get_submodule(next(iter(layers)))
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a number with a fraction works, too
        lora_dropout=settings.lora_dropout,
        target_modules=list(layers),
        fan_in_fan_out=isinstance(first, Conv1D),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # Of a pair, one model may have layers of the other kind: peft sets it right for each, and says so.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            inject_adapter_in_model(config, model)


def merge(model: PreTrainedModel) -> None:
    """Adds all adapters to the weights that they adapt, and takes them out: the model is a plain one again."""
    for name, layer in list(_adapted(model)):
        layer.merge()
        holder, _, last = name.rpartition(".")
        model.get_submodule(holder)._modules[last] = layer.get_base_layer()  # noqa: SLF001
    if hasattr(model, "peft_config"):
        del model.peft_config


@contextlib.contextmanager
def merged(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model compute with the weights that it has once it is merged, to the last digit."""
    kept = [
        (layer, layer.get_base_layer().weight, layer.get_base_layer().weight.detach().clone())
        for _, layer in _adapted(model)
    ]
    for layer, _, _ in kept:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight, values in kept:  # taking the product away again would not give the same digits
            weight.data.copy_(values)
            layer.merged_adapters = []


def _adapted(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Peft's layers, which have no types of their own, by name."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module
