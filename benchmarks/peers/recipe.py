"""What a peer is given: the same weights, rows, grid, settings and seed as ours, and where to put what comes of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Setting = int | float | str


@dataclass(frozen=True)
class Recipe:
    """One sweep for one peer.

    Args:
        model: The folder of the pretrained model.
        rows: A folder that `datasets.load_from_disk` reads: splits `train` and `validation`, columns `text`, `label`.
        classes: How many labels there are.
        max_length: Tokens after which a text is cut.
        space: The values of each dimension of the grid.
        fixed: The settings that are not searched.
        seed: Of every trial.
        bf16: Whether it computes in bfloat16.
        folder: Where it may write.
        tracking_uri: Of MLflow.
        trials: How many trials a search at random draws.
        gpu: The part of a GPU that a trial gets, 1 for a whole one; 0 where it computes on the CPU.
    """

    model: str
    rows: str
    classes: int
    max_length: int
    space: Mapping[str, Sequence[Setting]]
    fixed: Mapping[str, Setting]
    seed: int
    bf16: bool
    folder: str
    tracking_uri: str
    trials: int = 0
    gpu: float = 0.0

    @property
    def resources(self) -> dict[str, float]:
        """What a trial asks Ray for."""
        return {"cpu": 1, "gpu": self.gpu} if self.gpu else {"cpu": 1}

    def write(self, file: Path) -> None:
        """Stores it as JSON."""
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, file: str) -> Recipe:
        """What `write` stored."""
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Point:
    """An evaluation on the validation rows after an epoch."""

    epoch: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Outcome:
    """A trial and what was measured after each of its epochs."""

    config: Mapping[str, Setting]
    history: Sequence[Point]


def write_outcomes(outcomes: Sequence[Outcome], folder: str | Path) -> None:
    """Stores them as `outcomes.json`."""
    content = [dataclasses.asdict(outcome) for outcome in outcomes]
    Path(folder, "outcomes.json").write_text(json.dumps(content), encoding="utf-8")


def read_outcomes(folder: str | Path) -> list[Outcome]:
    """What `write_outcomes` stored."""
    content = json.loads(Path(folder, "outcomes.json").read_text(encoding="utf-8"))
    return [Outcome(entry["config"], [Point(**point) for point in entry["history"]]) for entry in content]
