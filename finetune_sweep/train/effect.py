"""Settings that could have no effect under the others: which these are in a trial, and what would be right.

Where a file fixes such a setting, or none of the values of a space would have an effect, that is an error. In a single
cell of a space it is not: the cell is the same trial as one without the setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.phases import level_of, probe_epochs
from finetune_sweep.settings import LAYER_SETTINGS, Plateau, Training
from finetune_sweep.space import Config, Dimension, Space, endpoints, is_active
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import training_of
from finetune_sweep.tasks import TASKS
from finetune_sweep.train import architecture, conflicts, weights
from finetune_sweep.train.architecture import Architecture, Depth

METHODS: Final = (
    "unfreeze",
    "linear_probe",
    "layerwise_lr_decay",
    "l2_sp",
    "label_smoothing",
    "adversarial_epsilon",
    "early_stopping",
    "lr_schedule",
)
"""The settings that are looked at."""
_OTHERS: Final = frozenset({"model", "epochs", *LAYER_SETTINGS})
_CONTEXTS: Final = 4096  # of a space with more, none is looked at
WITHOUT_CLASSES: Final = frozenset({"number", "boxes"})


@dataclass(frozen=True)
class Subject:
    """What a trial trains, as far as it decides on what has an effect.

    Args:
        task: Its name in the sweep file.
        model: What messages call it.
        depth: The resolved freeze depth.
        opened: What stays frozen throughout; less than that where blocks are unfrozen.
        arch: Where the model's blocks are.
        has_classes: Whether the answers are classes.
        has_words: Whether the inputs are texts.
        has_pretrained: Whether something that was pretrained is trained.
    """

    task: str
    model: str
    depth: Depth
    opened: Depth
    arch: Architecture
    has_classes: bool
    has_words: bool
    has_pretrained: bool


@dataclass(frozen=True)
class Idle:
    """A setting without effect.

    Args:
        setting: Its name, dotted where it is nested.
        message: Its value, why it has no effect, and what would be right.
        merges: Whether a trial with it is taken for the one without it; else it is left as it is, for the trainings
            that it shares with longer ones.
    """

    setting: str
    message: str
    merges: bool = True


def subject_of(sweep: Sweep, model: str, training: Training) -> Subject:
    """What a trial of a sweep trains.

    Args:
        sweep: Says the task, and where examples of models lie.
        model: As the sweep file writes it.
        training: The settings.

    Raises:
        UserError: If the model is not there, or has fewer blocks than are frozen.
    """
    name = model.rpartition("/")[2].rpartition(":")[2]
    folder = weights.locate(model, Path(), Path(sweep.cache or ""))
    whole = architecture.describe(weights.read_config(folder), name)
    (arch, depth), opened = conflicts.resolve(training, whole), conflicts.opened(training, whole)
    kinds = [column.kind for column in TASKS[sweep.task].columns]
    known = not (model.startswith("scratch:") or training.lora)
    if known and training.l2_sp and opened == arch.blocks:
        known = arch.own_head and _holds_head(weights.parameter_shapes(folder), arch)
    return Subject(
        task=sweep.task,
        model=name,
        depth=depth,
        opened=opened,
        arch=arch,
        has_classes=kinds[-1] not in WITHOUT_CLASSES,
        has_words="image" not in kinds,
        has_pretrained=known,
    )


def _holds_head(names: Iterable[str], arch: Architecture) -> bool:
    """Whether a model's files hold something of what follows the blocks; True where that is not known."""
    family = arch.family
    modules = {*family.closing, *(name.removeprefix(f"{family.prefix}.") for name in family.head)}
    plain = (name.removeprefix(f"{family.prefix}.") for name in names)
    return not modules or any(name.startswith(f"{module}.") for name in plain for module in modules)


def idle(training: Training, subject: Subject) -> Iterator[Idle]:
    """The settings of a trial that have no effect."""
    yield from _idle_phases(training, subject)
    yield from _idle_weights(training, subject)
    yield from _idle_losses(training, subject)
    yield from _idle_patience(training)


def _idle_phases(training: Training, subject: Subject) -> Iterator[Idle]:
    """Unfreezing and the linear probe."""
    opening, probe, epochs = training.unfreeze, training.linear_probe, training.epochs
    before = probe_epochs(training)
    if opening is not None and level_of(subject.depth) <= level_of(subject.opened):
        yield Idle(
            "unfreeze",
            f"opens nothing: it goes from freeze_depth {subject.depth} to_depth {subject.opened}; freeze more at the"
            " beginning, as with freeze_depth: all, or leave unfreeze out",
        )
    elif opening is not None and before + opening.every_epochs >= epochs:
        yield Idle(
            "unfreeze.every_epochs",
            f"{opening.every_epochs} opens the first blocks after epoch {before + opening.every_epochs}, and the"
            f" training has {epochs}: give epochs of at least {before + opening.every_epochs + 1}",
            merges=False,
        )
    if opening is not None and subject.arch.shared > 1 and opening.blocks % subject.arch.shared:
        yield Idle(
            "unfreeze.blocks",
            f"{opening.blocks} cannot be opened alone: {subject.arch.shared} blocks of {subject.model} in a row share"
            f" their weights; write {subject.arch.shared}",
            merges=False,
        )
    if probe is not None and before >= epochs:
        yield Idle(
            "linear_probe.epochs",
            f"{before} leaves nothing of {epochs} epochs for the fine-tuning: give epochs of at least {before + 1}",
            merges=False,
        )
    elif probe is not None and opening is None and subject.depth == subject.arch.blocks:
        yield Idle(
            "linear_probe",
            f"at freeze_depth {subject.depth} the whole training is a probe of what follows the {subject.depth} blocks"
            f" of {subject.model}; lower freeze_depth, or leave linear_probe out",
        )


def _idle_weights(training: Training, subject: Subject) -> Iterator[Idle]:
    """What acts on pretrained weights and on blocks."""
    above = f"only what follows the {subject.arch.blocks} blocks of {subject.model} is trained"
    is_head_only = subject.opened == subject.arch.blocks
    decay, l2_sp = training.layerwise_lr_decay, training.l2_sp
    if decay != 1 and is_head_only:
        yield Idle(
            "layerwise_lr_decay",
            f"{decay:g} changes no rate: at freeze_depth {subject.opened} {above}, at the full one; lower freeze_depth,"
            " or leave layerwise_lr_decay out",
        )
    if l2_sp and not subject.has_pretrained:
        reason = f"at freeze_depth {subject.opened} {above}, which is new" if is_head_only else "all is new"
        reason = "lora trains new matrices beside the pretrained ones" if training.lora else reason
        yield Idle(
            "l2_sp",
            f"{l2_sp:g} pulls nothing: {reason}; weight_decay is what holds new weights, so leave l2_sp out",
        )


def _idle_losses(training: Training, subject: Subject) -> Iterator[Idle]:
    """What changes the loss, by the task."""
    smoothing = training.label_smoothing
    if smoothing and not subject.has_classes:
        yield Idle(
            "label_smoothing",
            f"{smoothing:g} smooths nothing: the answers of {subject.task} are no classes; leave label_smoothing out",
            merges=False,
        )
    if training.adversarial_epsilon and not subject.has_words:
        yield Idle(
            "adversarial_epsilon",
            f"{training.adversarial_epsilon:g} moves nothing: {subject.task} has no word embeddings; leave"
            " adversarial_epsilon out",
            merges=False,
        )


def _idle_patience(training: Training) -> Iterator[Idle]:
    """What waits for the validation loss; a probe's evaluations do not count."""
    stopping, schedule, epochs = training.early_stopping, training.lr_schedule, training.epochs
    before = probe_epochs(training)
    waits = "so many evaluations come after the first, and then an epoch"
    if stopping is not None and before + stopping.patience + 2 > epochs:
        yield Idle(
            "early_stopping.patience",
            f"{stopping.patience} cannot end a training of {epochs} epochs: {waits} that is spared; give epochs of at"
            f" least {before + stopping.patience + 2}, or less patience",
            merges=False,
        )
    if not isinstance(schedule, Plateau):
        return
    if before + schedule.patience + 2 > epochs:
        yield Idle(
            "lr_schedule.patience",
            f"{schedule.patience} lowers no rate in a training of {epochs} epochs: {waits} at the lower rate; give"
            f" epochs of at least {before + schedule.patience + 2}, or less patience",
            merges=False,
        )
    elif stopping is not None and stopping.monitor == "loss" and stopping.patience <= schedule.patience:
        yield Idle(
            "lr_schedule.patience",
            f"{schedule.patience} lowers no rate: early_stopping.patience, {stopping.patience}, ends the training by"
            f" then; give it at least {schedule.patience + 1}",
            merges=False,
        )


def effective(sweep: Sweep, model: str, training: Training) -> Training:
    """The settings of a trial without those that have no effect, as `subject_of` takes them."""
    if not any(_is_set(training, name) for name in METHODS):
        return training
    without = [found.setting for found in idle(training, subject_of(sweep, model, training)) if found.merges]
    fields = Training.model_fields
    return training.model_copy(update={name: fields[name].default for name in map(_section, without)})


def problems(sweep: Sweep) -> list[Problem]:
    """The settings that have an effect in no cell of the space, with their paths."""
    works: set[str] = set()
    found: dict[str, str] = {}
    contexts = list(itertools.islice(_contexts(sweep.space), _CONTEXTS))
    for config in contexts if len(contexts) < _CONTEXTS else []:
        try:
            training = training_of(sweep, config)
            without = list(idle(training, subject_of(sweep, str(config.get("model", sweep.model)), training)))
        except UserError:  # told elsewhere
            continue
        names = {_section(each.setting) for each in without}
        works |= {name for name in METHODS if _is_set(training, name)} - names
        for each in without:
            found[each.setting] = each.message  # of the last cell, which is often the one of most epochs
    return [
        Problem(message, _path(sweep.space, setting))
        for setting, message in found.items()
        if _section(setting) not in works
    ]


def _is_set(training: Training, name: str) -> bool:
    if name == "lr_schedule":
        return isinstance(training.lr_schedule, Plateau)
    return bool(getattr(training, name) != Training.model_fields[name].default)


def _section(setting: str) -> str:
    return setting.partition(".")[0]


def _path(space: Space, setting: str) -> str:
    """Where a setting stands in the file: in the space, if it is searched, itself or as a whole."""
    searched = [dimension.name for dimension in space.dimensions]
    for name in (setting, _section(setting)):
        if name in searched:
            return f"space.{name}"
    inner = [name for name in searched if _section(name) == _section(setting)]
    return f"space.{inner[0]}" if inner else f"training.{setting}"


def _contexts(space: Space) -> Iterator[Config]:
    """The cells of a space, as far as its dimensions decide on what has an effect; of ranges, the ends."""
    wanted = {d.name for d in space.dimensions if {d.name, _section(d.name)} & {*METHODS, *_OTHERS}}
    while more := {p for d in space.dimensions if d.name in wanted for p in d.when} - wanted:
        wanted |= more
    return _cells([d for d in space.dimensions if d.name in wanted], {})


def _cells(dimensions: list[Dimension], config: Config) -> Iterator[Config]:
    if not dimensions:
        yield config
        return
    first, *rest = dimensions
    if not is_active(first, config):
        yield from _cells(rest, config)
        return
    for value in endpoints(first.domain):
        yield from _cells(rest, {**config, first.name: value})
