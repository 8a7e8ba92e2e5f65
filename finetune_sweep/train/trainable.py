"""How much of a model a training changes, and which layers LoRA adapts, from the names and shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from finetune_sweep.settings import Training
from finetune_sweep.tasks.contract import Task
from finetune_sweep.train.architecture import Architecture, Depth, is_dropped, is_frozen, trained_parameters

_NO_LAYER: Final = "relative_attention_bias"  # T5's table of positions has the shape of a linear layer
ANSWERS: Final = (
    "classifier",
    "pre_classifier",
    "score",
    "classification_head",
    "class_labels_classifier",
    "bbox_predictor",
)
"""The modules of heads that tell classes, a number or boxes, unlike those for pretraining."""


def deciding(settings: Training) -> tuple[int, bool, int, str]:
    """What of the settings decides, beside the model and its depth, how much is trained."""
    own_head = settings.head == settings.pooling == "default"
    if settings.lora is None:
        return settings.drop_layers, own_head, 0, ""
    adapters = f"r {settings.lora.r} {settings.lora.target_modules}"
    return settings.drop_layers, own_head, settings.reinit_layers, adapters


def taken(
    shapes: Mapping[str, tuple[int, ...]], arch: Architecture, task: Task
) -> dict[str, tuple[int, ...]]:
    """What the model of a task takes out of a file: no head of another task, as that of a pretraining is.

    Nor a pooler that the head of the task does not read. Models that write texts have the head of their pretraining.

    Args:
        shapes: Of the file, parameter name to shape.
        arch: Where they belong.
        task: Decides on the head.
    """
    if task.columns[-1].kind == "text":
        return dict(shapes)
    prefix = f"{arch.family.prefix}."
    is_whole = any(name.startswith(prefix) for name in shapes)  # files of a base model do not have it
    reads_pooler = task.packs and arch.own_head
    closing = [module for module in arch.family.closing if module != "pooler" or reads_pooler]
    heads = [*(ANSWERS if arch.own_head else ()), *(["pooler"] if reads_pooler else [])]
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        modules = closing if name.startswith(prefix) or not is_whole else heads
        plain = name.removeprefix(prefix)
        if arch.part_of(name) != "head" or any(plain.startswith(f"{module}.") for module in modules):
            found[name] = shape
    return found


def adapted_layers(
    shapes: Mapping[str, tuple[int, ...]], arch: Architecture, depth: Depth, settings: Training
) -> dict[str, tuple[int, ...]]:
    """The linear layers that get adapters: those of open blocks that do not start from new weights.

    Args:
        shapes: Parameter name to shape.
        arch: Where they belong, without the blocks that are dropped.
        depth: As `resolve_depth` returns it.
        settings: Of the training; without LoRA there are none.

    Returns:
        The shape of each layer's weight, by the layer's name.
    """
    if settings.lora is None:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    last = arch.blocks - settings.reinit_layers
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        part = arch.part_of(name)
        is_open = isinstance(part, int) and part < last and not is_frozen(part, depth)
        is_meant = settings.lora.target_modules == "all-linear" or layer.endswith(
            tuple(f".{end}" for end in arch.family.adapted)
        )
        if is_open and is_meant and kind == "weight" and len(shape) == 2 and not layer.endswith(_NO_LAYER):
            found[layer] = shape
    return found


def count_trained(
    shapes: Mapping[str, tuple[int, ...]], arch: Architecture, depth: Depth, settings: Training
) -> tuple[int, int]:
    """Counts what a training changes, as `trained_parameters` does, with adapters in the place of what they adapt.

    Returns:
        Number of trained values, and of all values of the model with its adapters.
    """
    pooler = () if arch.own_head else ("pooler.", f"{arch.family.prefix}.pooler.")
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(pooler)}
    trained, total = trained_parameters(shapes, arch, depth)
    if settings.lora is None:
        return trained, total
    layers = adapted_layers(shapes, arch, depth, settings)
    adapters = sum(settings.lora.r * sum(shape) for shape in layers.values())
    adapted = {arch.part_of(f"{layer}.weight") for layer in layers}
    parts = {name: arch.part_of(name) for name in shapes}
    whole = sum(
        prod(shapes[name])
        for name, part in parts.items()
        if not is_frozen(part, depth) and part not in adapted and not is_dropped(part, arch)
    )
    return whole + adapters, total + adapters
