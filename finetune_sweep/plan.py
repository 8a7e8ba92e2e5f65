"""What a sweep comes to: trials, the trajectories they share, the work units, and what of it is done.

Checking a file and naming its trials reads data and the headers of weights, but loads no torch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from finetune_sweep.errors import Problem, UserError, nearest
from finetune_sweep.events import SweepPlanned, TrialPlanned
from finetune_sweep.phases import opened
from finetune_sweep.record import SweepRecord
from finetune_sweep.settings import LAYER_SETTINGS, Training
from finetune_sweep.space import Config, Space, allows, endpoints, located
from finetune_sweep.space_cells import grid, sample
from finetune_sweep.spec import Grid, Random, Sweep, Tpe
from finetune_sweep.sweepfile import training_of
from finetune_sweep.trial import Identity, Trial, WorkUnit, work_units
from finetune_sweep.yamlio import Value

if TYPE_CHECKING:
    from finetune_sweep.train.architecture import Architecture

_LAYERS_IN_PLACE: Final = frozenset(LAYER_SETTINGS) - {"freeze_depth", "drop_layers"}
"""Settings of layers that can be in conflict with others; those two are looked at with every trial."""
Hardware = tuple[str, str]
"""A device (`cuda`, `mps`, `cpu`) and the precision that `auto` means on it (`fp32`, `bf16`)."""


@dataclass(frozen=True)
class Plan:
    """A sweep, expanded against its data, its models and this hardware.

    Args:
        mode: The better direction of the metric.
        device: `cuda`, `mps` or `cpu`.
        precision: `fp32` or `bf16`, for trials whose `precision` is `auto`.
        fingerprint: Of the cleaned training and validation rows.
        models: The models that can be used, and the fingerprint of each.
        rows: Rows of each split.
        notes: What was cleaned, cut and noticed in the data.
        trials: All trials, each once.
        merged: Cells of the space that are the same as another one.
    """

    sweep: Sweep
    mode: Literal["max", "min"]
    device: str
    precision: str
    fingerprint: str
    models: Mapping[str, str]
    rows: Mapping[str, int]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    merged: int

    def trial(self, config: Config, seed: int | None = None) -> Trial:
        """The trial that a configuration of the space is.

        Args:
            config: What differs from the sweep's fixed settings.
            seed: None for the sweep's.

        Raises:
            UserError: If its values do not go together.
        """
        from finetune_sweep.tasks import TASKS
        from finetune_sweep.train import conflicts, effect

        sweep = self.sweep
        seed = sweep.seed if seed is None else seed
        model = str(config.get("model", sweep.model))
        max_length = int(str(config.get("data.max_length", sweep.data.max_length)))
        training = effect.effective(sweep, model, training_of(sweep, config))
        if training.precision == "auto":
            training = training.model_copy(update={"precision": self.precision})
        whole = _architecture(model, sweep.cache)
        arch, depth = conflicts.resolve(training, whole)
        if training.unfreeze is not None:
            opening = training.unfreeze.model_copy(update={"to_depth": conflicts.opened(training, whole)})
            training = training.model_copy(update={"unfreeze": opening})
        identity = Identity(
            sweep.task,
            self.models[model],
            self.fingerprint,
            max_length,
            _by_content(training),
            depth,
            seed,
            sweep.metric.name,
        )
        head_only = (
            depth == opened(training, depth) == arch.blocks and arch.can_pack and TASKS[sweep.task].packs
        )
        return Trial(identity.key(), config, model, max_length, training, depth, seed, head_only)

    def searched(self, config: Config) -> Trial:
        """The trial of a configuration that the search has chosen, which may be one that the check did not look at.

        Raises:
            UserError: As `trial`, and where a setting of layers could have no effect, or the model cannot have it.
        """
        if found := _layer_conflicts(self.sweep, config):
            raise UserError(found)
        return self.trial(config)

    @property
    def units(self) -> tuple[WorkUnit, ...]:
        """All work units, as if nothing was done."""
        return tuple(work_units(self.trials, self.sweep.speed))

    def events(self) -> Iterator[TrialPlanned | SweepPlanned]:
        """The plan as the journal records it."""
        for trial in self.trials:
            yield trial.planned()
        metric = self.sweep.metric
        keys = tuple(trial.key for trial in self.trials)
        yield SweepPlanned(
            self.sweep.task,
            self.fingerprint,
            metric.name,
            self.mode,
            metric.epoch,
            self.precision,
            self.device,
            keys,
            self.sweep.search.type,
        )


# ------------------------------------------------------------------------------------------------ checking


def check(sweep: Sweep) -> list[Problem]:
    """What is wrong with a sweep that its file alone does not show: the task's words, and the models' depths."""
    from finetune_sweep.train import effect

    wrong = [*check_words(sweep), *_synonym_problems(sweep), *effect.problems(sweep)]
    return wrong or _model_problems(sweep)  # a model is fetched for a file without mistakes


def check_words(sweep: Sweep) -> list[Problem]:
    """What is wrong with a sweep by what its task has: no file but its own, and no network, is needed."""
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.tasks.contract import metrics_of

    task = TASKS[sweep.task]
    metrics = metrics_of(task)
    problems = []
    if sweep.metric.name not in metrics:
        hint = nearest(sweep.metric.name, metrics) or f" ({sweep.task} reports: {', '.join(task.metrics)})"
        problems.append(
            Problem(f"is not reported by {sweep.task}, got {sweep.metric.name!r}{hint}", "metric")
        )
    elif sweep.metric.mode not in {None, metrics[sweep.metric.name]}:
        better = metrics[sweep.metric.name]
        message = f"{sweep.metric.name} is better {better}imal, got {sweep.metric.mode!r}; leave mode out"
        problems.append(Problem(message, "metric.mode"))
    known = [column.name for column in task.columns]
    for name in sweep.data.columns:
        if name not in known and name != sweep.data.split.group_by:
            hint = nearest(name, known) or f" ({sweep.task} has: {', '.join(known)})"
            problems.append(Problem(f"is no column of {sweep.task}, got {name!r}{hint}", "data.columns"))
    return [*problems, *_change_problems(sweep), *_cut_problems(sweep)]


def _cut_problems(sweep: Sweep) -> list[Problem]:
    """Lengths of texts that are searched by a metric of what they cut off."""
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.tasks.contract import ROBUST

    task, name = TASKS[sweep.task], sweep.metric.name
    if not _searched(sweep.space, "data.max_length") or name.removeprefix(ROBUST) not in task.cut:
        return []
    others = ", ".join(metric for metric in task.metrics if metric not in task.cut)
    remedy = f"compare by one of {others}, or set" if others else "set"
    message = (
        f"trials of different lengths have different right answers in {sweep.task}, whose {name} cannot be"
        f" compared: {remedy} one length as data.max_length"
    )
    return [Problem(message, "space.data.max_length")]


def _change_problems(sweep: Sweep) -> list[Problem]:
    """Augmentation and robustness where the task has no text to change."""
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.tasks.contract import changeable_columns

    if changeable_columns(TASKS[sweep.task]):
        return []
    searched = [f"space.{dim.name}" for dim in sweep.space.dimensions if _is_of_augment(dim.name)]
    augmented = [*searched[:1], *(["training.augment"] if sweep.training.augment and not searched else [])]
    robust = ["selection.robustness"] if sweep.selection.robustness else []
    return [
        Problem(f"{sweep.task} has no text that may be changed: leave {setting} out", path)
        for setting, paths in (("augment", augmented), ("robustness", robust))
        for path in paths
    ]


def _is_of_augment(dimension: str) -> bool:
    return dimension.partition(".")[0] == "augment"


def _synonym_problems(sweep: Sweep) -> list[Problem]:
    """Synonyms that cannot be read."""
    from finetune_sweep.train.similar import read_synonyms

    fixed = sweep.training.augment.synonyms if sweep.training.augment else None
    path = "augment.synonyms"
    path = f"space.{path}" if _searched(sweep.space, path) else f"training.{path}"
    problems: list[Problem] = []
    for file in _values(sweep.space, "augment.synonyms", fixed):
        try:
            if file is not None:
                read_synonyms(Path(str(file)))
        except UserError as error:
            problems += [Problem(str(problem), path) for problem in error.problems]
    return problems


def _by_content(training: Training) -> Training:
    """The settings with the content of the synonym file in the place of its path."""
    augment = training.augment
    if augment is None or augment.synonyms is None:
        return training
    with Path(augment.synonyms).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return training.model_copy(update={"augment": augment.model_copy(update={"synonyms": digest})})


def _model_problems(sweep: Sweep) -> list[Problem]:
    """A model that is not there, and a depth or a length that one of the models does not have."""
    from finetune_sweep.train import architecture, weights

    opening = sweep.training.unfreeze
    to_depths = _values(sweep.space, "unfreeze.to_depth", opening.to_depth if opening else 0)
    lengths = _values(sweep.space, "data.max_length", sweep.data.max_length)
    problems = []
    for model in models(sweep):
        setting = "model"
        try:
            config = weights.read_config(weights.locate(model, Path(), Path(sweep.cache or "")))
            problems += _layer_problems(sweep, model)
            setting = "unfreeze.to_depth"
            for depth in (depth for depth in to_depths if isinstance(depth, int | str)):
                architecture.resolve_depth(depth, _architecture(model, sweep.cache))
            setting = "data.max_length"
            architecture.check_length(config, max(int(str(length)) for length in lengths), _short(model))
        except UserError as error:
            path = _path(sweep.space, setting)
            problems += [Problem(problem.message, problem.path or path) for problem in error.problems]
    return problems


def _layer_problems(sweep: Sweep, model: str) -> list[Problem]:
    """Settings of layers that a model cannot have together: the first problem of each setting."""
    from finetune_sweep.train import conflicts

    names = _parameters(model, sweep.cache)
    found = conflicts.problems(sweep, model, _architecture(model, sweep.cache), names)
    return [replace(problem, path=_path(sweep.space, problem.path)) for problem in found]


def _layer_conflicts(sweep: Sweep, config: Config) -> list[Problem]:
    """Settings of layers that do not go together in one configuration, with their lines where they are searched."""
    from finetune_sweep.train import conflicts, scratch

    model, plain = str(config.get("model", sweep.model)), Training()
    training = training_of(sweep, config)
    is_plain = all(getattr(training, name) == getattr(plain, name) for name in _LAYERS_IN_PLACE)
    if is_plain and not model.startswith(scratch.PREFIX):
        return []
    names = _parameters(model, sweep.cache)
    found = conflicts.problems_of(sweep, config, model, _architecture(model, sweep.cache), names)
    return [located(sweep.space, problem.message, _path(sweep.space, problem.path)) for problem in found]


def _path(space: Space, setting: str) -> str:
    """Where a setting stands in the file."""
    if _searched(space, setting):
        return f"space.{setting}"
    return f"training.{setting}" if setting in {*LAYER_SETTINGS, "unfreeze.to_depth"} else setting


def _short(model: str) -> str:
    return model.rpartition("/")[2].rpartition(":")[2]


def models(sweep: Sweep) -> list[str]:
    """The models that the sweep may use."""
    return [str(model) for model in _values(sweep.space, "model", sweep.model)]


def _values(space: Space, name: str, default: Value) -> list[Value]:
    found = [list(endpoints(dim.domain)) for dim in space.dimensions if dim.name == name]
    return found[0] if found else [default]


def _searched(space: Space, name: str) -> bool:
    return any(dimension.name == name for dimension in space.dimensions)


def _parameters(model: str, cache: str | None) -> Collection[str]:
    """The names of the parameters in a model's files."""
    from finetune_sweep.train import weights

    folder = weights.locate(model, Path(), Path(cache or ""))
    return _names_in(folder, max(file.stat().st_mtime_ns for file in folder.iterdir()))


@lru_cache(maxsize=16)
def _names_in(folder: Path, _written_ns: int) -> Collection[str]:
    from finetune_sweep.train import weights

    return frozenset(weights.parameter_shapes(folder))


def _architecture(model: str, cache: str | None) -> Architecture:
    from finetune_sweep.train import architecture, weights

    folder = weights.locate(model, Path(), Path(cache or ""))
    return architecture.describe(weights.read_config(folder), _short(model))


# ----------------------------------------------------------------------------------------------- expanding


def local_hardware(sweep: Sweep) -> Hardware:
    """What this machine computes on, and in which precision.

    Raises:
        UserError: If it lacks what the sweep asks for.
    """
    from finetune_sweep.train import hardware

    return hardware.resolve(sweep.device, sweep.resources_per_trial.gpu)


def make_plan(sweep: Sweep, record: SweepRecord | None = None, hardware: Hardware | None = None) -> Plan:
    """Expands a sweep into its trials.

    Args:
        sweep: The checked file.
        record: What the journal says; a search that learns from results has its trials from there.
        hardware: Device and precision of the workers, where they are not this machine's.

    Raises:
        UserError: If the data or a model is not what the sweep says, or the hardware lacks what it asks for.
    """
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.tasks.contract import metrics_of
    from finetune_sweep.train import weights
    from finetune_sweep.train.data import prepare

    task, cache = TASKS[sweep.task], Path(sweep.cache or "")
    device, precision = hardware or local_hardware(sweep)
    prepared = prepare(sweep.data, task, Path(), cache)
    empty = Plan(
        sweep=sweep,
        mode=metrics_of(task)[sweep.metric.name],
        device=device,
        precision=precision,
        fingerprint=prepared.fingerprint,
        models={m: weights.fingerprint(weights.locate(m, Path(), cache)) for m in models(sweep)},
        rows={split: len(rows) for split, rows in prepared.splits.items()},
        classes=prepared.classes,
        notes=(*prepared.report, *prepared.notes),
        trials=(),
        merged=0,
    )
    cells = [empty.searched(config) for config in configurations(sweep, record or SweepRecord())]
    first: dict[str, Trial] = {}
    for trial in cells:
        first.setdefault(trial.key, trial)
    return replace(empty, trials=tuple(first.values()), merged=len(cells) - len(first))


def configurations(sweep: Sweep, record: SweepRecord) -> Iterator[Config]:
    """The configurations that the search asks for, in its order; those with equal effect are still apart."""
    match sweep.search:
        case Grid(max_trials=count):
            yield from itertools.islice(grid(sweep.space), count)
        case Random(trials=count, seed=seed):
            for index in range(count):
                yield sample(sweep.space, seed, index)
        case Tpe(trials=count):
            suggested = (
                dict(record.trials[event.key].planned.config) for event in record.suggestions[:count]
            )
            yield from (config for config in suggested if allows(sweep.space, config))


def unasked(sweep: Sweep, record: SweepRecord) -> int:
    """How many suggestions a search that learns from results still has."""
    return sweep.search.trials - len(record.suggestions) if isinstance(sweep.search, Tpe) else 0


# ------------------------------------------------------------------------------------------------ work units


def remaining(plan: Plan, record: SweepRecord, failed: Mapping[str, int]) -> list[WorkUnit]:
    """The work units of the trials that have no result yet.

    Args:
        plan: The sweep's plan.
        record: What the journal says.
        failed: How often each trial's own failure was seen in this run; such a trial is not tried again.
    """
    done = {key for key, trial in record.trials.items() if trial.done}
    missing = (t for t in plan.trials if t.key not in done and not failed.get(t.key))
    return work_units(missing, plan.sweep.speed)
