"""Settings of layers that a model cannot have, or that could have no effect beside the others.

It knows names and numbers only, so that a sweep file is checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.phases import phases
from finetune_sweep.settings import LAYER_SETTINGS, Training
from finetune_sweep.space import Choice, Config, Space
from finetune_sweep.space_cells import contexts
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import training_of
from finetune_sweep.tasks import TASKS
from finetune_sweep.train.architecture import Architecture, Depth, resolve_depth
from finetune_sweep.train.families import FAMILIES
from finetune_sweep.train.scratch import PREFIX

_MOST_CELLS: Final = 10_000  # of a space with more, so many are looked at; and each trial that is planned
_PHASES: Final = ("unfreeze", "linear_probe")
"""What decides, with the epochs, on how much of what is frozen at first stays so."""


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
    found: dict[str, Problem] = {}
    for config in _cells(sweep, model):
        for problem in problems_of(sweep, config, model, arch, parameters):
            found.setdefault(problem.path, problem)
    return list(found.values())


def problems_of(
    sweep: Sweep, config: Config, model: str, arch: Architecture, parameters: Collection[str]
) -> list[Problem]:
    """What is wrong with the settings of layers in one configuration of the space; see `problems`."""
    is_scratch = model.startswith(PREFIX)
    reads_one_state = TASKS[sweep.task].packs
    try:
        settings = training_of(sweep, config)
        check(settings, arch, parameters, reads_one_state=reads_one_state, is_scratch=is_scratch)
    except UserError as error:
        deciding = {"model"} if is_scratch else {*LAYER_SETTINGS, *_PHASES, "epochs"}
        others = {name: value for name, value in config.items() if _section(name) in deciding}
        return [
            replace(
                problem,
                message=problem.message + _remedy(sweep.space, problem.path, others),
                path=problem.path or "freeze_depth",
            )
            for problem in error.problems
        ]
    return []


def _cells(sweep: Sweep, model: str) -> Iterator[Config]:
    """What the settings of layers can be together, with what they depend on: of a range, its ends."""
    wanted = {"model", *LAYER_SETTINGS}
    searched = {_section(dim.name) for dim in sweep.space.dimensions}
    if any(name in searched or getattr(sweep.training, name) for name in _PHASES):
        wanted |= {"epochs", *_PHASES}
    dimensions = (
        replace(dim, domain=Choice((model,))) if dim.name == "model" else dim
        for dim in sweep.space.dimensions
    )
    return contexts(Space(tuple(dimensions)), wanted, _MOST_CELLS)


def _section(name: str) -> str:
    return name.partition(".")[0]


def _remedy(space: Space, setting: str, config: Config) -> str:
    """How a searched setting keeps away from the values of others that it does not go with."""
    others = {name: value for name, value in config.items() if name != setting}
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
    try:
        return resolve(last, arch)[1]
    except UserError as error:
        setting = {"freeze_depth": "unfreeze.to_depth"}
        raise UserError([replace(p, path=setting.get(p.path, p.path)) for p in error.problems]) from None


def frozen_to_the_end(settings: Training, arch: Architecture) -> Depth:
    """Up to where a model is frozen in the last of its epochs, and so in all of them.

    Raises:
        UserError: The model has too few blocks.
    """
    left, depth = resolve(settings, arch)
    opening = settings.unfreeze
    if opening is not None:
        opening = opening.model_copy(update={"to_depth": opened(settings, arch)})
    passed = phases(settings.model_copy(update={"unfreeze": opening}), depth, left.blocks)
    last = [phase.depth for phase in passed if phase.first_epoch <= settings.epochs][-1]
    # Blocks that share their weights are opened together.
    return last // left.shared * left.shared if isinstance(last, int) else last


def check(
    settings: Training,
    arch: Architecture,
    parameters: Collection[str],
    *,
    reads_one_state: bool = True,
    is_scratch: bool = False,
) -> None:
    """Refuses what could have no effect, and what the model cannot have.

    Args:
        settings: Of one trial.
        arch: Of the pretrained model, with all of its blocks.
        parameters: The names of the parameters in its files.
        reads_one_state: Whether the head of the task reads one state of each input.
        is_scratch: Whether the model's weights were drawn, not pretrained.

    Raises:
        UserError: The problem's path is the setting.
    """
    left, _ = resolve(settings, arch)
    depth = frozen_to_the_end(settings, arch)
    base = {name.removeprefix(f"{arch.family.prefix}.") for name in parameters}
    if not (reads_one_state and left.own_head):
        base = {name for name in base if not name.startswith("pooler.")}  # it is not used
    has_pooler = "pooler" in arch.family.closing and any(name.startswith("pooler.") for name in base)
    told = [
        ("reinit_layers", _reinit_problem(settings, depth, left)),
        ("reinit_pooler", "" if has_pooler or not settings.reinit_pooler else _pooler_problem(arch)),
        ("shrink_perturb", _shrink_problem(settings, left, depth, base)),
        ("lora", _lora_problem(settings, left, depth)),
    ]
    told = _scratch_problems(settings, arch, depth) if is_scratch else told
    told.append((_head_setting(settings), _head_problem(settings, left, reads_one_state=reads_one_state)))
    found = [Problem(message, setting) for setting, message in told if message]
    if found:
        raise UserError(found)


def _scratch_problems(settings: Training, arch: Architecture, depth: Depth) -> list[tuple[str, str]]:
    """What acts on pretrained weights, in a model without any."""
    lora = settings.lora
    told = [
        ("reinit_layers", settings.reinit_layers, "which would only be drawn again; write 0"),
        ("reinit_pooler", settings.reinit_pooler, "which would only be drawn again; write false"),
        ("shrink_perturb", settings.shrink_perturb, "which would only be mixed with others; write 1"),
        ("lora", lora and f"r {lora.r}", "which would stay noise beside its matrices; leave lora out"),
        ("freeze_depth", settings.freeze_depth, "which would stay noise where they are frozen; write 0"),
        (
            "linear_probe",
            settings.linear_probe and f"epochs {settings.linear_probe.epochs}",
            f"which would stay noise, frozen through all {settings.epochs} epochs; leave some after the probe",
        ),
    ]
    default = Training()
    is_set = {name: getattr(settings, name) != getattr(default, name) for name, *_ in told}
    is_probed = settings.linear_probe is not None and settings.freeze_depth == 0
    is_set["freeze_depth"] = depth != 0 and lora is None and not is_probed  # under lora the embeddings are
    is_set["linear_probe"] = depth != 0 and lora is None and is_probed
    return [
        (name, f"{name} {str(value).lower()}: {arch.name} starts from new weights, {why}")
        for name, value, why in told
        if is_set[name]
    ]


def _frozen(depth: Depth) -> int:
    """Blocks."""
    return depth if isinstance(depth, int) else 0


def _changes(settings: Training) -> bool:
    """Whether the depth of the beginning is not that of the end."""
    return settings.unfreeze is not None or settings.linear_probe is not None


def _reinit_problem(settings: Training, depth: Depth, left: Architecture) -> str:
    count, frozen = settings.reinit_layers, _frozen(depth)
    most = (left.blocks - frozen) // left.shared * left.shared
    if count > left.blocks - frozen:
        stay = f"stay frozen through all {settings.epochs} epochs" if _changes(settings) else "are frozen"
        frozen_too = f", of which the first {frozen} {stay}" if frozen else ""
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


def _shrink_problem(settings: Training, left: Architecture, depth: Depth, base: Collection[str]) -> str:
    """Whether pretrained weights are left that are trained and not drawn anew anyway."""
    if settings.shrink_perturb < 1 and settings.lora:
        return (
            f"shrink_perturb {settings.shrink_perturb:g}: lora does not train the pretrained weights, so weakened they"
            " would stay; write 1, or leave lora out"
        )
    if settings.shrink_perturb == 1 or left.blocks - _frozen(depth) > settings.reinit_layers:
        return ""
    closing = [module for module in left.family.closing if module != "pooler" or not settings.reinit_pooler]
    if depth == 0 or any(name.startswith(f"{module}.") for name in base for module in closing):
        return ""
    return (
        f"shrink_perturb {settings.shrink_perturb:g}: no pretrained weights are trained that it could weaken,"
        f" as {_reason(settings, depth)}; write 1, or freeze or erase less"
    )


def _lora_problem(settings: Training, left: Architecture, depth: Depth) -> str:
    if settings.lora is None or left.blocks - _frozen(depth) > settings.reinit_layers:
        return ""
    return (
        f"lora r {settings.lora.r}: no block of {left.name} is left to adapt, as {_reason(settings, depth)};"
        " freeze or erase less, or leave lora out"
    )


def _reason(settings: Training, depth: Depth) -> str:
    """Why no block is trained."""
    if not _changes(settings):
        return f"freeze_depth is {settings.freeze_depth} and reinit_layers {settings.reinit_layers}"
    return (
        f"the first {_frozen(depth)} stay frozen through all {settings.epochs} epochs, and reinit_layers is"
        f" {settings.reinit_layers}"
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
