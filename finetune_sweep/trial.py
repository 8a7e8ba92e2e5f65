"""A trial, the name that its content determines, and the work units that trials are trained in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_sweep.events import TrialPlanned
from finetune_sweep.settings import RECIPE_VERSION, Model, Training, leaf_names
from finetune_sweep.space import Config, canonical
from finetune_sweep.yamlio import Value

Depth = int | Literal["embeddings"]
_KEY_DIGITS: Final = 16


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed.

    Args:
        key: The name that the content determines.
        config: The values of the searched dimensions, in the order of the space.
        depth: The resolved freeze depth: 0, `embeddings`, or the number of frozen blocks.
    """

    key: str
    config: Config
    model: str
    max_length: int
    training: Training
    depth: Depth
    seed: int

    @property
    def epochs(self) -> int:
        """The epochs that the trial trains at most."""
        return self.training.epochs

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
    """What one worker trains at a time: one trajectory, as trials by ascending epochs."""

    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """The key of the longest trial."""
        return self.trials[-1].key

    @property
    def epochs(self) -> int:
        """The epochs that are trained."""
        return self.trials[-1].epochs

    @property
    def cost(self) -> float:
        """What the unit costs, in epochs of full training; a frozen part saves its backward pass."""
        trial = self.trials[-1]
        return trial.epochs * (1.0 if trial.depth == 0 else 0.6)


@dataclass(frozen=True)
class Identity:
    """All that decides a trial's result, and so its name.

    Args:
        model: Fingerprint of the pretrained model.
        data: Fingerprint of the training and validation rows.
        metric: The sweep's; it counts only where early stopping watches it.
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


def work_units(trials: Iterable[Trial]) -> list[WorkUnit]:
    """Groups trials into trajectories."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trajectory(trial.key, trial.params()), []).append(trial)
    return [WorkUnit(tuple(sorted(group, key=lambda trial: trial.epochs))) for group in groups.values()]


def trajectory(key: str, params: Mapping[str, Value]) -> str:
    """The training that a trial belongs to: with a constant schedule, those share one that differ only in `epochs`.

    Args:
        key: Of the trial.
        params: All of its settings, as `Trial.params` names them.
    """
    if params.get("lr_schedule.type") != "constant":
        return key
    return canonical({name: value for name, value in params.items() if name != "epochs"})
