"""What a sweep needs of the disk: estimated before it starts, and looked after while it runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_sweep.errors import StorageError
from finetune_sweep.plan import Plan
from finetune_sweep.tasks import TASKS
from finetune_sweep.train import architecture, conflicts, trainable, weights

_FLOAT_BYTES: Final = 4
_COPIES_OF_THE_WINNER: Final = 2
"""`best/`, and the new one beside the old one while they change places."""
_RESUME_TENSORS: Final = {"adamw": 4, "sgd": 2, "adafactor": 3}
"""Tensors in a checkpoint for resuming, for each tensor that training changes: weights, best weights, moments; of
adafactor, which has a row and a column for a matrix, it is too many."""
_RESUME_FOLDERS: Final = 3
"""The last two, and the one that is being written."""


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a sweep writes into its storage.

    Attributes:
        least: What it surely writes: the smallest checkpoint, and the smallest model as the promoted one.
        kept: What it holds at most when it chooses: the checkpoints that are kept, those of the finalists' runs, and
            the promoted model, twice while one takes the place of another.
        per_worker: What each worker adds at most while it trains.
    """

    least: int
    kept: int
    per_worker: int

    def __str__(self) -> str:
        return f"up to {size(self.kept)}, and {size(self.per_worker)} for each worker while it trains"


def estimate(plan: Plan) -> DiskNeed:
    """What the trials of a plan need, from the headers of their models' weights; new heads are not counted."""
    sweep = plan.sweep
    stacked = {trial.key: len(unit.members) for unit in plan.units if unit.is_stack for trial in unit.trials}
    known = {
        (t.model, t.opened, t.training.optimizer, *trainable.deciding(t.training), stacked.get(t.key, 1)): t
        for t in plan.trials
    }
    # A search that learns from results has no trials yet: then all of a model may be trained.
    whole_model = sweep.training.model_copy(update={"drop_layers": 0, "lora": None, "freeze_depth": 0})
    runs = [(t.model, t.opened, t.training, stacked.get(t.key, 1)) for t in known.values()]
    runs = runs or [(model, 0, whole_model, 1) for model in plan.models]
    kept, resumed, whole = [], [], []
    for model, depth, settings, members in runs:
        folder = weights.locate(model, Path(), Path(sweep.cache or ""))
        arch, _ = conflicts.resolve(settings, architecture.describe(weights.read_config(folder)))
        shapes = trainable.taken(weights.parameter_shapes(folder), arch, TASKS[sweep.task])
        changed, total = trainable.count_trained(shapes, arch, depth, settings)
        kept.append(changed * _FLOAT_BYTES)
        resumed.append(members * changed * _FLOAT_BYTES * _RESUME_TENSORS[settings.optimizer])
        whole.append(total * _FLOAT_BYTES)
    chosen = sweep.selection
    finals = (chosen.finalists + 1) * chosen.seeds if chosen.finalists else 0
    return DiskNeed(
        least=min(kept) + min(whole),
        kept=(sweep.keep_checkpoints + finals) * max(kept) + _COPIES_OF_THE_WINNER * max(whole),
        per_worker=_RESUME_FOLDERS * max(resumed),
    )


def check_before(plan: Plan, folder: Path, workers: int) -> str:
    """Compares what a sweep needs with what is free, counting what its folder holds already.

    Returns:
        A warning if it can happen that the disk becomes too full; empty if it cannot.

    Raises:
        StorageError: If even what the sweep surely writes does not fit above `min_free_bytes`.
    """
    need, floor = estimate(plan), plan.sweep.min_free_bytes
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free + held < floor + need.least:
        raise StorageError(
            f"{folder} has {size(free)} free; the sweep writes at least {size(need.least)} and leaves min_free_bytes"
            f" ({size(floor)}): make room, or give another --storage"
        )
    most = need.kept + workers * need.per_worker
    if free + held < floor + most:
        needed = f"up to {size(most)} needed, and min_free_bytes {size(floor)}"
        return f"the disk may become full: {size(free)} free, {needed}"
    return ""


def check_floor(plan: Plan, folder: Path) -> None:
    """Stops while there is room to write down that it stopped.

    Raises:
        StorageError: If less is free than `min_free_bytes`.
    """
    free, floor = shutil.disk_usage(folder).free, plan.sweep.min_free_bytes
    if free < floor:
        raise StorageError(
            f"{folder} has {free:,} bytes free, below min_free_bytes ({floor:,}); make room, and run again: what is"
            " finished stays"
        )


def size(count: float) -> str:
    """A number of bytes as people read it: `1.2 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
