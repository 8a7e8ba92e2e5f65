"""Settings of layers that a model cannot have, or that could have no effect beside the others.

It knows names and numbers only, so that a sweep file is checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Collection

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.settings import Training
from finetune_sweep.train.architecture import Architecture, Depth, resolve_depth


def resolve(settings: Training, arch: Architecture) -> tuple[Architecture, Depth]:
    """What is left of a model under some settings, and up to where that is frozen.

    Raises:
        UserError: The model has too few blocks; the problem's path is the setting.
    """
    setting = "drop_layers"
    try:
        left = arch.without(settings.drop_layers)
        setting = "freeze_depth"
        depth = resolve_depth(settings.freeze_depth, left)
    except UserError as error:
        raise UserError([Problem(problem.message, setting) for problem in error.problems]) from None
    # LoRA trains no embeddings: its adapters lie within blocks.
    return left, "embeddings" if settings.lora and depth == 0 else depth


def check(settings: Training, arch: Architecture, parameters: Collection[str]) -> None:
    """Refuses what could have no effect.

    Args:
        settings: Of one trial.
        arch: Of the pretrained model, with all of its blocks.
        parameters: The names of the parameters in its files.

    Raises:
        UserError: The problem's path is the setting.
    """
    left, depth = resolve(settings, arch)
    frozen = depth if isinstance(depth, int) else 0
    base = {name.removeprefix(f"{arch.family.prefix}.") for name in parameters}
    has_pooler = "pooler" in arch.family.closing and any(name.startswith("pooler.") for name in base)
    problems = [
        ("reinit_layers", _reinit_problem(settings.reinit_layers, frozen, left)),
        ("reinit_pooler", "" if has_pooler or not settings.reinit_pooler else _pooler_problem(arch)),
        ("shrink_perturb", _shrink_problem(settings, left, frozen, base)),
        ("lora", _lora_problem(settings, left, frozen)),
    ]
    found = [Problem(message, setting) for setting, message in problems if message]
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
        f"reinit_pooler true: {arch.name} has no pretrained pooler, so there is nothing to erase; write false"
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
