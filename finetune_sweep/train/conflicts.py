"""Settings of layers that a model cannot have, or that could have no effect beside the others.

It knows names and numbers only, so that a sweep file is checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.settings import LAYER_SETTINGS, Training
from finetune_sweep.space import Config, Space, endpoints, is_active
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import training_of
from finetune_sweep.tasks import TASKS
from finetune_sweep.train.architecture import Architecture, Depth, resolve_depth
from finetune_sweep.train.families import FAMILIES

_MOST_CELLS: Final = 10_000


def problems(sweep: Sweep, model: str, arch: Architecture, parameters: Collection[str]) -> list[Problem]:
    """What is wrong with the settings of layers, fixed and searched, for one model: the first problem of each.

    Args:
        sweep: The file.
        model: The model.
        arch: It, with all of its blocks.
        parameters: The names of the parameters in its files.

    Returns:
        Problems whose path is the setting.
    """
    reads_one_state = TASKS[sweep.task].packs
    found: dict[str, Problem] = {}
    for config in _cells(sweep.space, model):
        try:
            settings = training_of(sweep, config)
            check(settings, arch, parameters, reads_one_state=reads_one_state)
        except UserError as error:
            for problem in error.problems:
                message = problem.message + _remedy(sweep.space, problem.path, config)
                found.setdefault(problem.path, Problem(message, problem.path or "freeze_depth"))
    return list(found.values())


def _cells(space: Space, model: str) -> Iterator[Config]:
    """What the settings of layers can be together, with what they depend on: of a range, its ends."""
    wanted = set(LAYER_SETTINGS)
    dimensions = [dim for dim in space.dimensions if dim.name.partition(".")[0] in wanted]
    needed = {"model", *(dim.name for dim in dimensions)}
    for dim in reversed(space.dimensions):  # a dimension stands behind those that it depends on
        needed |= set(dim.when) if dim.name in needed else set()
    cells: list[Config] = [{}]
    for dim in (dim for dim in space.dimensions if dim.name in needed):
        values = [model] if dim.name == "model" else endpoints(dim.domain)
        cells = [
            {**cell, dim.name: value} if is_active(dim, cell) else cell
            for cell in cells
            for value in (values if is_active(dim, cell) else values[:1])
        ][:_MOST_CELLS]
    yield from cells


def _remedy(space: Space, setting: str, config: Config) -> str:
    """How a searched setting keeps away from the values of others that it does not go with."""
    others = {name: value for name, value in config.items() if name in LAYER_SETTINGS and name != setting}
    if not others or all(dim.name != setting for dim in space.dimensions):
        return ""
    beside = ", ".join(f"{name} {value}" for name, value in others.items())
    return f" (beside {beside}; `when: {{{next(iter(others))}: [...]}}` can keep them apart)"


def resolve(settings: Training, arch: Architecture) -> tuple[Architecture, Depth]:
    """What is left of a model under some settings, and up to where that is frozen.

    Raises:
        UserError: The model has too few blocks; the problem's path is the setting.
    """
    setting = "drop_layers"
    try:
        left = arch.without(settings.drop_layers)
        left = replace(left, own_head=settings.head == settings.pooling == "default")
        setting = "freeze_depth"
        depth = resolve_depth(settings.freeze_depth, left)
    except UserError as error:
        raise UserError([Problem(problem.message, setting) for problem in error.problems]) from None
    # LoRA trains no embeddings: its adapters lie within blocks.
    return left, "embeddings" if settings.lora and depth == 0 else depth


def opened(settings: Training, arch: Architecture) -> Depth:
    """Up to where a model stays frozen throughout.

    Raises:
        UserError: The model has too few blocks; the problem's path is the setting.
    """
    if settings.unfreeze is None:
        return resolve(settings, arch)[1]
    last = settings.model_copy(update={"freeze_depth": settings.unfreeze.to_depth})
    return resolve(last, arch)[1]


def check(
    settings: Training, arch: Architecture, parameters: Collection[str], *, reads_one_state: bool = True
) -> None:
    """Refuses what could have no effect, and what the model cannot have.

    Args:
        settings: Of one trial.
        arch: Of the pretrained model, with all of its blocks.
        parameters: The names of the parameters in its files.
        reads_one_state: Whether the head of the task reads one state of each input.

    Raises:
        UserError: The problem's path is the setting.
    """
    left, depth = resolve(settings, arch)
    frozen = depth if isinstance(depth, int) else 0
    base = {name.removeprefix(f"{arch.family.prefix}.") for name in parameters}
    if not (reads_one_state and left.own_head):
        base = {name for name in base if not name.startswith("pooler.")}  # it is not used
    has_pooler = "pooler" in arch.family.closing and any(name.startswith("pooler.") for name in base)
    told = [
        ("reinit_layers", _reinit_problem(settings.reinit_layers, frozen, left)),
        ("reinit_pooler", "" if has_pooler or not settings.reinit_pooler else _pooler_problem(arch)),
        ("shrink_perturb", _shrink_problem(settings, left, frozen, base)),
        ("lora", _lora_problem(settings, left, frozen)),
        (_head_setting(settings), _head_problem(settings, left, reads_one_state=reads_one_state)),
    ]
    found = [Problem(message, setting) for setting, message in told if message]
    if found:
        raise UserError(found)


def _reinit_problem(count: int, frozen: int, left: Architecture) -> str:
    most = (left.blocks - frozen) // left.shared * left.shared
    if count > left.blocks - frozen:
        frozen_too = f", of which the first {frozen} are frozen" if frozen else ""
        right = f"0 to {most}" if most else "0"
        why = " (new weights that are never trained would be noise)" if frozen else ""
        return f"reinit_layers {count}: {left.name} has {left.blocks} blocks{frozen_too}{why}; write {right}"
    if count % left.shared:
        right = f"0 or {most}" if most else "0"
        return (
            f"reinit_layers {count}: {left.shared} blocks of {left.name} in a row share their weights;"
            f" write {right}"
        )
    return ""


def _pooler_problem(arch: Architecture) -> str:
    return (
        f"reinit_pooler true: {arch.name} has no pretrained pooler that this training would use, so there is nothing to"
        " erase; write false"
    )


def _shrink_problem(settings: Training, left: Architecture, frozen: int, base: Collection[str]) -> str:
    """Whether pretrained weights are left that are trained and not drawn anew anyway."""
    if settings.shrink_perturb < 1 and settings.lora:
        return (
            f"shrink_perturb {settings.shrink_perturb:g}: lora does not train the pretrained weights, so weakened they"
            " would stay; write 1, or leave lora out"
        )
    if settings.shrink_perturb == 1 or left.blocks - frozen > settings.reinit_layers:
        return ""
    is_open = frozen == 0 and settings.freeze_depth != "embeddings"
    closing = [module for module in left.family.closing if module != "pooler" or not settings.reinit_pooler]
    if is_open or any(name.startswith(f"{module}.") for name in base for module in closing):
        return ""
    return (
        f"shrink_perturb {settings.shrink_perturb:g}: no pretrained weights are trained that it could weaken,"
        f" as freeze_depth is {settings.freeze_depth} and reinit_layers {settings.reinit_layers};"
        " write 1, or freeze or erase less"
    )


def _lora_problem(settings: Training, left: Architecture, frozen: int) -> str:
    if settings.lora is None or left.blocks - frozen > settings.reinit_layers:
        return ""
    return (
        f"lora r {settings.lora.r}: no block of {left.name} is left to adapt, as freeze_depth is"
        f" {settings.freeze_depth} and reinit_layers {settings.reinit_layers}; freeze or erase less, or leave lora out"
    )


def _head_setting(settings: Training) -> str:
    return "head" if settings.pooling == "default" else "pooling"


def _head_problem(settings: Training, left: Architecture, *, reads_one_state: bool) -> str:
    if left.own_head:
        return ""
    name = _head_setting(settings)
    value = getattr(settings, name)
    if not reads_one_state:
        return f"{name} {value}: only heads that read one state of a text can be replaced; write default"
    if not (left.family.pools and left.width):
        known = ", ".join(model_type for model_type, family in FAMILIES.items() if family.pools)
        return f"{name} {value}: the head of {left.name} cannot be replaced; write default, or take one of {known}"
    if settings.pooling == "cls" and left.family.reads == "last":
        return (
            f"pooling cls: the first token of a text sees no other in {left.name}; write default (the last token), mean"
            " or max"
        )
    return ""
