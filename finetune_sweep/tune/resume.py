"""Checkpoints in the middle of a training, from which an interrupted work unit goes on as if it had not been.

They are written at evaluations, when the training since the last one took `PAYS` times as long as writing does, so
that they cost a few per cent at most, and when a kill in the next epoch would else lose more than `MAY_LOSE_S`: most
trainings are over before. A kill loses the longer of the two and the epoch that it falls into. A driver that is asked
to stop has them written at the next step, so that nothing is lost.

A checkpoint of a stack of heads has a part for each member that trains on. It lies with one of them, for as long as
that one has no end: what lies with a trial that has ended is deleted.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import load_file, save_file

from finetune_sweep.durable import check_folder, folder_aside, remove_folder
from finetune_sweep.errors import StorageError
from finetune_sweep.layout import Layout
from finetune_sweep.train.state import Evaluation, Snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from finetune_sweep.tasks.arrays import Predictions

PAYS: Final = 45.0
"""Training time that a checkpoint must have behind it, as a multiple of the time that writing it takes."""
MAY_LOSE_S: Final = 120.0
"""Training time that a kill may cost beside the epoch that it falls into."""
_FIRST_WRITE_S: Final = 0.3
_STATE: Final = "state.json"
_TENSORS: Final = "state.safetensors"
_BEST: Final = "best.safetensors"


@dataclass(frozen=True)
class Best:
    """The evaluation that counts so far.

    Args:
        score: Its value of the metric.
        epoch: When it was.
        tensors: What was trained, on the CPU, by its names in the model's `state_dict`.
        predictions: What the model said of each validation row; checkpoints hold none, so None after a resume.
    """

    score: float
    epoch: int
    tensors: Mapping[str, Tensor]
    predictions: Predictions | None = None


@dataclass(frozen=True)
class Resumed:
    """What a work unit needs to go on from its last stored step; `best` is None before its first evaluation."""

    snapshot: Snapshot
    best: Best | None


class _Checkpoints:
    """What those of one training and those of a stack have in common."""

    _is_stacked: bool

    def __init__(self, layout: Layout, units: Sequence[str]) -> None:
        self._layout, self._units = layout, tuple(units)
        self._write_s = _FIRST_WRITE_S
        self._last = self._evaluated = time.monotonic()

    def is_due(self) -> bool:
        """Whether a checkpoint is worth its time, and the next evaluation too late; to be asked at each of them."""
        now = time.monotonic()
        epoch_s, self._evaluated = now - self._evaluated, now
        trained_s = now - self._last
        return trained_s >= PAYS * self._write_s and trained_s + epoch_s >= MAY_LOSE_S

    def clear(self) -> None:
        """Deletes all of them: there are results."""
        for folder in self._present():
            remove_folder(folder)

    def _newest(self) -> tuple[str, Mapping[str, Resumed]]:
        """The newest that is whole, by unit, and with which unit it lies; nothing if there is none.

        Damaged ones are deleted, and those of other trainings.
        """
        for folder in reversed(self._present()):
            try:
                check_folder(folder)
                parts = _read(folder, is_stacked=self._is_stacked)
            except (StorageError, OSError, ValueError, KeyError, TypeError):
                parts = {}
            if known := {unit: parts[unit] for unit in self._units if unit in parts}:
                return folder.parent.name, known
            remove_folder(folder)
        return "", {}

    def _store(self, holder: str, parts: Mapping[str, Resumed]) -> None:
        """Stores a new one with one of the units, and keeps the one before it."""
        started = time.monotonic()
        at = next(iter(parts.values())).snapshot
        target = self._layout.trial(holder) / f"resume-{at.epoch:04d}-{at.step:08d}"
        bests = {unit: part.best.tensors for unit, part in parts.items() if part.best is not None}
        state = {"stacked": self._is_stacked, "units": {unit: _state(part) for unit, part in parts.items()}}
        with folder_aside(target) as aside:
            save_file(
                _joined({unit: part.snapshot.tensors for unit, part in parts.items()}), aside / _TENSORS
            )
            if bests:
                save_file(_joined(bests), aside / _BEST)
            (aside / _STATE).write_text(json.dumps(state), encoding="utf-8")
        for folder in self._present()[:-2]:
            remove_folder(folder)
        self._last = time.monotonic()
        self._write_s = self._last - started

    def _present(self) -> list[Path]:
        """All of them, the oldest first."""
        folders = (folder for unit in self._units for folder in self._layout.trial(unit).glob("resume-*"))
        return sorted(folders, key=lambda folder: folder.name)


class Checkpoints(_Checkpoints):
    """The checkpoints of one work unit: when to write one, where, and which is the newest that is whole."""

    _is_stacked = False

    def __init__(self, layout: Layout, unit: str) -> None:
        """Looks at nothing yet.

        Args:
            layout: Of the sweep.
            unit: The name of the work unit.
        """
        super().__init__(layout, [unit])

    def newest(self) -> Resumed | None:
        """The newest checkpoint that is whole; a damaged one is passed over for the one before it."""
        return self._newest()[1].get(self._units[0])

    def write(self, snapshot: Snapshot, best: Best | None) -> None:
        """Stores where a training stands, and keeps the checkpoint before it.

        Args:
            snapshot: At an evaluation, or at a step between two of them.
            best: The evaluation that counts so far; None before the first.

        Raises:
            StorageError: If the disk refuses.
        """
        self._store(self._units[0], {self._units[0]: Resumed(snapshot, best)})


class StackCheckpoints(_Checkpoints):
    """The same of head-only trajectories that are trained together.

    Attributes:
        holder: The member with which the last one lies that was written or found; empty if there is none.
    """

    _is_stacked = True

    def __init__(self, layout: Layout, members: Sequence[str]) -> None:
        """Looks at nothing yet.

        Args:
            layout: Of the sweep.
            members: The names of the trajectories.
        """
        super().__init__(layout, members)
        self.holder = ""

    def newest(self) -> Mapping[str, Resumed]:
        """The newest checkpoint that is whole and has some of the members, by name; others are passed over."""
        self.holder, parts = self._newest()
        return parts

    def write(self, holder: str, parts: Mapping[str, Resumed]) -> None:
        """Stores where members stand, and keeps the checkpoint before it.

        Args:
            holder: The one with which it lies: no other should end later.
            parts: By name, all of the same step.

        Raises:
            StorageError: If the disk refuses.
        """
        self._store(holder, parts)
        self.holder = holder


def _joined(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several units as one file has them."""
    return {
        f"{unit}/{name}": tensor.contiguous() for unit, of in tensors.items() for name, tensor in of.items()
    }


def _split(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    split: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        unit, _, name = key.partition("/")
        split.setdefault(unit, {})[name] = tensor
    return split


def _state(part: Resumed) -> dict[str, object]:
    snapshot, best = part.snapshot, part.best
    return {
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "micro_batch": snapshot.micro_batch,
        "history": [dataclasses.asdict(evaluation) for evaluation in snapshot.history],
        "best": None if best is None else {"score": best.score, "epoch": best.epoch},
    }


def _read(folder: Path, *, is_stacked: bool) -> Mapping[str, Resumed]:
    """The parts of a checkpoint, by unit; none of one that was stacked where this one is not, or the other way."""
    state = json.loads((folder / _STATE).read_bytes())
    if state["stacked"] != is_stacked:
        return {}
    tensors = _split(load_file(folder / _TENSORS))
    bests = _split(load_file(folder / _BEST)) if (folder / _BEST).exists() else {}
    return {
        unit: _part(of_unit, tensors[unit], bests.get(unit, {})) for unit, of_unit in state["units"].items()
    }


def _part(state: Mapping[str, Any], tensors: Mapping[str, Tensor], best: Mapping[str, Tensor]) -> Resumed:
    snapshot = Snapshot(
        tensors=tensors,
        epoch=state["epoch"],
        step=state["step"],
        micro_batch=state["micro_batch"],
        history=tuple(Evaluation(**evaluation) for evaluation in state["history"]),
    )
    return Resumed(snapshot, None if state["best"] is None else Best(**state["best"], tensors=best))
