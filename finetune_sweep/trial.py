"""A trial, the name that its content determines, and the work units that trials are trained in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_sweep.events import TrialPlanned
from finetune_sweep.phases import opened
from finetune_sweep.settings import RECIPE_VERSION, Model, Training, Wsd, leaf_names
from finetune_sweep.space import Config, canonical
from finetune_sweep.speed import Speed
from finetune_sweep.yamlio import Value

Depth = int | Literal["embeddings"]
_PREFIXES: Final = frozenset({"constant", "plateau"})
"""Schedules under which the shorter of two trials that differ only in `epochs` is a beginning of the longer one."""
SHARES: Final = _PREFIXES | {"wsd"}
"""Schedules under which such trials begin alike."""
_KEY_DIGITS: Final = 16
_TOGETHER: Final = 64  # heads in a stack
_STACKED_TOGETHER: Final = ("batch_size", "optimizer", "precision", "label_smoothing")
_STACKED_EACH: Final = (
    "learning_rate",
    "lr_schedule",
    "weight_decay",
    "max_grad_norm",
    "epochs",
    "early_stopping",
)
"""Settings that all heads of a stack have in common, and those that each has of its own; others keep their default."""


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed.

    Args:
        key: The name that the content determines.
        config: The values of the searched dimensions, in the order of the space.
        depth: The resolved freeze depth: 0, `embeddings`, or the number of frozen blocks.
        head_only: Whether all blocks are frozen throughout, in a model whose batches can do without padding.
    """

    key: str
    config: Config
    model: str
    max_length: int
    training: Training
    depth: Depth
    seed: int
    head_only: bool = False

    @property
    def epochs(self) -> int:
        """The epochs that the trial trains at most."""
        return self.training.epochs

    @property
    def opened(self) -> Depth:
        """What stays frozen throughout, where the freeze depth is that of the beginning."""
        return opened(self.training, self.depth)

    @property
    def label(self) -> str:
        """What differs from other trials of the sweep, such as `learning_rate=5e-05 epochs=2`."""
        pairs = (f"{name.rpartition('.')[2]}={_text(value)}" for name, value in self.config.items())
        return " ".join(pairs) or "default"

    def planned(self) -> TrialPlanned:
        """The trial as the journal records it."""
        return TrialPlanned(self.key, self.label, self.config, self.params(), self.seed)

    def params(self) -> dict[str, Value]:
        """All settings, flat, with the same names for every trial: none is empty."""
        flat = {name: _setting(self.training, name) for name in leaf_names(Training)}
        flat |= {"model": self.model, "data.max_length": self.max_length, "seed": self.seed}
        flat["freeze_depth"] = self.depth
        return {name: "none" if value is None else value for name, value in flat.items()}


@dataclass(frozen=True)
class WorkUnit:
    """What one worker trains at a time: one trajectory, or several: head-only ones, or ones with a common trunk.

    Args:
        trials: All of them; those of a trajectory by ascending epochs.
        together: The trajectories, if there are several.
        is_stack: Whether these are heads that are trained as one stacked model; else they have a trunk in common.
    """

    trials: tuple[Trial, ...]
    together: tuple[WorkUnit, ...] = ()
    is_stack: bool = False

    @property
    def name(self) -> str:
        """The key of the longest trial of the last trajectory."""
        return self.trials[-1].key

    @property
    def members(self) -> tuple[WorkUnit, ...]:
        """The trajectories."""
        return self.together or (self,)

    @property
    def epochs(self) -> int:
        """The epochs that are trained, of all trajectories; a started one of a decay counts as one."""
        if not self.branches:
            return sum(member.trials[-1].epochs for member in self.members)
        apart = sum(trial.epochs * _decay_ratio(trial) for trial in self.trials[:-1])
        return self.trials[-1].epochs + math.ceil(apart)

    @property
    def branches(self) -> bool:
        """Whether its trajectories have a trunk in common."""
        return bool(self.together) and not self.is_stack

    @property
    def cost(self) -> float:
        """What the unit costs, in epochs of full training.

        A frozen part saves its backward pass; an adversarial step is about two.
        """
        trial = self.trials[-1]
        if self.is_stack:
            return 0.3 + 0.01 * self.epochs
        steps = 2.0 if trial.training.adversarial_epsilon else 1.0
        return self.epochs * trial.training.passes * steps * (1.0 if trial.depth == 0 else 0.6)


@dataclass(frozen=True)
class Identity:
    """All that decides a trial's result, and so its name.

    Args:
        model: Fingerprint of the pretrained model.
        data: Fingerprint of the training and validation rows.
        metric: The sweep's; it counts only where early stopping watches it, and where evaluations need perturbed rows.
    """

    task: str
    model: str
    data: str
    max_length: int
    training: Training
    depth: Depth
    seed: int
    metric: str = ""

    def key(self) -> str:
        """The trial's name: 16 hexadecimal digits of a sha256."""
        content: dict[str, Value] = {
            "recipe": RECIPE_VERSION,
            "task": self.task,
            "model": self.model,
            "data": self.data,
            "max_length": self.max_length,
            "training": {**settings_in_key(self.training), "freeze_depth": self.depth},
            "seed": self.seed,
        }
        stopping = self.training.early_stopping
        if stopping is not None and stopping.monitor == "metric":
            content["metric"] = self.metric
        if self.metric.startswith("robust_"):
            content["perturbed_rows"] = True
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:_KEY_DIGITS]


def settings_in_key(section: Model) -> dict[str, Value]:
    """The settings that enter the key and differ from their defaults, nested ones as mappings."""
    content: dict[str, Value] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        value = getattr(section, name)
        if not (isinstance(extra, dict) and extra["enters_key"]) or value == field.default:
            continue
        content[name] = settings_in_key(value) if isinstance(value, Model) else value
    return content


def _setting(training: Training, name: str) -> Value:
    """The value of a dotted setting; None where its section is absent or of another kind."""
    value: object = training
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, bool | int | float | str) else None


def _text(value: Value) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{_text(inner)}" for name, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value).rpartition("/")[2]


def work_units(trials: Iterable[Trial], speed: Speed | None = None) -> list[WorkUnit]:
    """Groups trials into trajectories, and these into units.

    Those that differ only in `epochs` are one trajectory under a schedule that does not look ahead; under `wsd` they
    have a trunk in common. Those of the head alone are stacked.

    Args:
        trials: In the order of the plan.
        speed: What is shared; by default all that can be.
    """
    speed = speed or Speed()
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        name = _trunk(trial) if speed.share_trajectories else trial.key
        groups.setdefault(name, []).append(trial)
    units: list[WorkUnit] = []
    for group in groups.values():
        ordered = tuple(sorted(group, key=lambda trial: trial.epochs))
        branches = tuple(WorkUnit((trial,)) for trial in ordered)
        if group[0].training.lr_schedule.type in _PREFIXES or len(group) == 1:
            units.append(WorkUnit(ordered))
        elif can_fuse(group[0], speed):
            units += branches
        else:
            units.append(WorkUnit(ordered, branches))
    return _fused(units, speed)


def _fused(units: Iterable[WorkUnit], speed: Speed) -> list[WorkUnit]:
    """Puts head-only trajectories together that can share their steps, at the place of the first of them."""
    groups: dict[str, list[WorkUnit]] = {}
    for unit in units:
        trial = unit.trials[-1]
        shared = {name: getattr(trial.training, name) for name in _STACKED_TOGETHER}
        shared |= {"model": trial.model, "max_length": trial.max_length}
        groups.setdefault(canonical(shared) if can_fuse(trial, speed) else unit.name, []).append(unit)
    parts = (
        group[start : start + _TOGETHER]
        for group in groups.values()
        for start in range(0, len(group), _TOGETHER)
    )
    return [
        part[0]
        if len(part) == 1
        else WorkUnit(tuple(t for unit in part for t in unit.trials), tuple(part), is_stack=True)
        for part in parts
    ]


def can_fuse(trial: Trial, speed: Speed) -> bool:
    """Whether a trial is trained as one of a stack of heads, be it alone."""
    if not (trial.head_only and speed.fuse_heads and speed.prefix_cache and speed.unpadding):
        return False
    known = {*_STACKED_TOGETHER, *_STACKED_EACH, "freeze_depth"}
    default = Training()
    return all(
        getattr(trial.training, name) == getattr(default, name)
        for name in Training.model_fields
        if name not in known
    )


def trajectory(key: str, params: Mapping[str, Value]) -> str:
    """The training that a trial belongs to.

    With a schedule that does not look ahead, those share one that differ only in `epochs`.

    Args:
        key: Of the trial.
        params: All of its settings, as `Trial.params` names them.
    """
    if params.get("lr_schedule.type") not in _PREFIXES:
        return key
    return _apart_from_epochs(params)


def _trunk(trial: Trial) -> str:
    """The trials that begin alike: those of a trajectory, and under wsd those that differ only in when they decay."""
    if trial.training.lr_schedule.type not in SHARES:
        return trial.key
    return _apart_from_epochs(trial.params())


def _apart_from_epochs(params: Mapping[str, Value]) -> str:
    return canonical({name: value for name, value in params.items() if name != "epochs"})


def _decay_ratio(trial: Trial) -> float:
    """The part of a training that it does not share with longer ones."""
    schedule = trial.training.lr_schedule
    return schedule.decay_ratio if isinstance(schedule, Wsd) else 1.0
