"""Settings that could have no effect under the others: which these are in a trial, and what would be right.

Where a file fixes such a setting, or none of the values of a space would have an effect, that is an error. In a single
cell of a space it is not: the cell is the same trial as one without the setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.phases import level_of, probe_epochs
from finetune_sweep.settings import Plateau, Training, Unfreeze
from finetune_sweep.space import Space
from finetune_sweep.space_cells import contexts
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import training_of
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import Task
from finetune_sweep.train import architecture, conflicts, weights
from finetune_sweep.train.architecture import Architecture, Depth
from finetune_sweep.train.trainable import ANSWERS

_DEPTH: Final = ("model", "freeze_depth", "drop_layers", "lora", "unfreeze")
_EPOCHS: Final = ("epochs", "linear_probe")
METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "unfreeze": (*_DEPTH, *_EPOCHS),
    "linear_probe": (*_DEPTH, *_EPOCHS),
    "layerwise_lr_decay": _DEPTH,
    "l2_sp": (*_DEPTH, "reinit_layers", "reinit_pooler", "pooling", "head"),
    "label_smoothing": (),
    "adversarial_epsilon": (),
    "early_stopping": _EPOCHS,
    "lr_schedule": (*_EPOCHS, "early_stopping"),
}
"""The settings that are looked at, and the others that decide on whether each has an effect."""
_CONTEXTS: Final = 4096  # where the others can be more than that together, so many are drawn
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
        has_classes: Whether the answers are classes, and nothing else.
        has_words: Whether the inputs are texts.
        has_pretrained: Whether something that was pretrained is trained; true where l2_sp is not set.
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
    known = not training.l2_sp or (
        not model.startswith("scratch:")
        and trains_pretrained(training, arch, opened, weights.parameter_shapes(folder), TASKS[sweep.task])
    )
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


def trains_pretrained(
    training: Training, arch: Architecture, opened: Depth, names: Iterable[str], task: Task
) -> bool:
    """Whether a training changes weights that were pretrained, and so have a value to be pulled to.

    Args:
        training: The settings.
        arch: The model, without the blocks that are dropped.
        opened: What stays frozen throughout.
        names: Of the parameters in the model's files.
        task: What the model is trained for.
    """
    frozen = opened if isinstance(opened, int) else 0
    if training.lora is None and (opened == 0 or arch.blocks - frozen > training.reinit_layers):
        return True
    # Under LoRA the blocks have new matrices alone. What follows them is trained whole.
    plain = (name.removeprefix(f"{arch.family.prefix}.") for name in names)
    after = [name for name in plain if arch.part_of(name) == "head"]
    if (
        task.columns[-1].kind == "text"
    ):  # files of models that write have no other head than the one that is used
        return any("pooler." not in name for name in after)
    used = {*arch.family.closing, *(ANSWERS if arch.own_head else ())}
    if training.reinit_pooler or not (arch.own_head and task.packs):
        used -= {"pooler"}
    return any(name.startswith(f"{module}.") for name in after for module in used)


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
        if training.lora and not is_head_only:
            reason = "lora trains new matrices beside the pretrained ones, and what follows the blocks is new"
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
            f"{smoothing:g} smooths nothing: the loss of {subject.task} is not that of classes alone; leave"
            " label_smoothing out",
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
    """The settings of a trial without those that have no effect, as `subject_of` takes them.

    Of values that mean the same, those that a trial is named by are the ones that differ less from the defaults.
    """
    has_head = "default" not in {training.head, training.pooling}
    if not (has_head or any(_is_set(training, name) for name in METHODS)):
        return training
    subject = subject_of(sweep, model, training)
    without = [found.setting for found in idle(training, subject) if found.merges]
    fields = Training.model_fields
    changed: dict[str, object] = {name: fields[name].default for name in map(_section, without)}
    if training.unfreeze is not None and "unfreeze" not in changed:
        changed["unfreeze"] = _as_far_as_there_are_blocks(training.unfreeze, subject)
    if has_head:
        changed |= _same_head(training, subject.arch)
    return training.model_copy(update=changed)


def _as_far_as_there_are_blocks(opening: Unfreeze, subject: Subject) -> Unfreeze:
    """No more blocks at once than are to be opened."""
    closed = level_of(subject.depth) - level_of(subject.opened)
    return opening.model_copy(update={"blocks": min(opening.blocks, closed)})


def _same_head(training: Training, arch: Architecture) -> dict[str, object]:
    """A head and a pooling, both of them set, where one says it as well.

    `head: linear` and `pooling: cls`, each of them alone, are the same training for models that read the first token.
    They have names of their own all the same, as either is written without the other.
    """
    if training.pooling == "cls" and arch.family.reads == "first":
        return {"pooling": "default"}
    return {"head": "default"} if training.head == "linear" else {}


def problems(sweep: Sweep) -> list[Problem]:
    """The settings that have an effect in no cell of the space, with their paths."""
    searched = {_section(dimension.name) for dimension in sweep.space.dimensions}
    return [
        Problem(message, _path(sweep.space, setting))
        for name in METHODS
        if name in searched or _is_set(sweep.training, name)
        for setting, message in _idle_everywhere(sweep, name).items()
    ]


def _idle_everywhere(sweep: Sweep, name: str) -> dict[str, str]:
    """Why a setting, or one of its own, has no effect whatever the others are; empty where it has one with some."""
    found: dict[str, str] = {}
    for config in contexts(sweep.space, {name, *METHODS[name]}, _CONTEXTS):
        try:
            training = training_of(sweep, config)
            if not _is_set(training, name):
                continue
            subject = subject_of(sweep, str(config.get("model", sweep.model)), training)
        except UserError:  # told elsewhere
            continue
        without = [each for each in idle(training, subject) if _section(each.setting) == name]
        if not without:
            return {}
        found |= {
            each.setting: each.message for each in without
        }  # the last cell is often that of most epochs
    return found


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
