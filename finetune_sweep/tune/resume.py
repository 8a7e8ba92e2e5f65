"""Checkpoints in the middle of a training, from which an interrupted work unit goes on as if it had not been.

They are written at evaluations, when the training since the last one took `PAYS` times as long as writing does, so
that they cost a few per cent at most, and when a kill in the next epoch would else lose more than `MAY_LOSE_S`: most
trainings are over before. A kill loses the longer of the two and the epoch that it falls into. A driver that is asked
to stop has them written at the next step, so that nothing is lost.

Heads that are trained together have theirs one by one: none depends on the others, so each goes on in any stack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

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


class Pace:
    """When it is time to store where a training stands."""

    def __init__(self) -> None:
        """Nothing was stored yet."""
        self._write_s = _FIRST_WRITE_S
        self._last = self._evaluated = time.monotonic()

    def is_due(self) -> bool:
        """Whether a checkpoint is worth its time, and the next evaluation too late; to be asked at each of them."""
        now = time.monotonic()
        epoch_s, self._evaluated = now - self._evaluated, now
        trained_s = now - self._last
        return trained_s >= PAYS * self._write_s and trained_s + epoch_s >= MAY_LOSE_S

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Takes the time that the block needs as what storing takes."""
        started = time.monotonic()
        yield
        self._last = time.monotonic()
        self._write_s = self._last - started


class Checkpoints(Pace):
    """The checkpoints of one trajectory: when to write one, where, and which is the newest that is whole."""

    def __init__(self, layout: Layout, unit: str, *, is_stacked: bool = False) -> None:
        """Looks at nothing yet.

        Args:
            layout: Of the sweep.
            unit: The name of the trajectory.
            is_stacked: Whether it is a head that is trained in a stack, whose state has another form.
        """
        super().__init__()
        self._folder, self._is_stacked = layout.trial(unit), is_stacked

    def newest(self) -> Resumed | None:
        """The newest checkpoint that is whole and of this form; others are deleted, for the one before them."""
        for folder in reversed(self._present()):
            try:
                check_folder(folder)
                return _read(folder, is_stacked=self._is_stacked)
            except (StorageError, OSError, ValueError, KeyError, TypeError):
                remove_folder(folder)
        return None

    def write(self, snapshot: Snapshot, best: Best | None) -> None:
        """Stores where a training stands, and keeps the checkpoint before it.

        Args:
            snapshot: At an evaluation, or at a step between two of them.
            best: The evaluation that counts so far; None before the first.

        Raises:
            StorageError: If the disk refuses.
        """
        target = self._folder / f"resume-{snapshot.epoch:04d}-{snapshot.step:08d}"
        state = {"stacked": self._is_stacked, **_state(snapshot, best)}
        with self.storing():
            with folder_aside(target) as aside:
                _save(snapshot.tensors, aside / _TENSORS)
                if best is not None:
                    _save(best.tensors, aside / _BEST)
                (aside / _STATE).write_text(json.dumps(state), encoding="utf-8")
            for folder in self._present()[:-2]:
                remove_folder(folder)

    def clear(self) -> None:
        """Deletes all of them: there are results."""
        for folder in self._present():
            remove_folder(folder)

    def _present(self) -> list[Path]:
        return sorted(self._folder.glob("resume-*"))


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _state(snapshot: Snapshot, best: Best | None) -> dict[str, object]:
    return {
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "micro_batch": snapshot.micro_batch,
        "history": [dataclasses.asdict(evaluation) for evaluation in snapshot.history],
        "best": None if best is None else {"score": best.score, "epoch": best.epoch},
    }


def _read(folder: Path, *, is_stacked: bool) -> Resumed:
    state = json.loads((folder / _STATE).read_bytes())
    if state["stacked"] != is_stacked:
        raise ValueError(f"{folder}: stacked is {state['stacked']}, and not {is_stacked}")
    snapshot = Snapshot(
        tensors=load_file(folder / _TENSORS),
        epoch=state["epoch"],
        step=state["step"],
        micro_batch=state["micro_batch"],
        history=tuple(Evaluation(**evaluation) for evaluation in state["history"]),
    )
    if state["best"] is None:
        return Resumed(snapshot, None)
    return Resumed(snapshot, Best(**state["best"], tensors=load_file(folder / _BEST)))
