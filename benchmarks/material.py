"""What all passes of a workload share, made once before any is timed: rows, weights, and the grid in plain values.

The rows are those that our own preparation gives, so that both sides train and validate on the same ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.recipe import Recipe, Setting
from finetune_sweep.settings import Training
from finetune_sweep.space import Choice
from finetune_sweep.spec import Random, Sweep
from finetune_sweep.sweepfile import load_sweep


def make(workload: Path, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Writes the rows below a folder, and gives what a peer needs to know; where it runs is still open.

    Args:
        workload: The sweep file.
        folder: Where rows and the converted model are kept.
        overrides: As for `--set`.
    """
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.train import hardware, weights
    from finetune_sweep.train.data import prepare

    sweep = load_sweep(workload, overrides, options={"cache": str(folder / "cache")})
    cache, task = folder / "cache", TASKS[sweep.task]
    prepared = prepare(sweep.data, task, Path(), cache)
    save_rows(prepared.splits, prepared.classes, folder / "rows")
    return Recipe(
        model=str(weights.locate(sweep.model, Path(), cache)),
        rows=str(folder / "rows"),
        classes=len(prepared.classes),
        max_length=sweep.data.max_length,
        space=grid_of(sweep),
        fixed=fixed_settings(sweep.training),
        seed=sweep.seed,
        bf16=hardware.resolve(sweep.device, sweep.resources_per_trial.gpu)[1] == "bf16",
        folder="",
        tracking_uri="",
        trials=sweep.search.trials if isinstance(sweep.search, Random) else 0,
    )


def save_rows(splits: object, classes: Sequence[str], folder: Path) -> None:
    """Stores training and validation rows as the `datasets` library does, labels as numbers in our order."""
    from datasets import ClassLabel, DatasetDict

    assert isinstance(splits, dict)  # noqa: S101 - `prepare` gives one; its type says only that it can be read
    kept = DatasetDict({name: splits[name] for name in ("train", "validation")})
    kept.cast_column("label", ClassLabel(names=list(classes))).save_to_disk(str(folder))


def grid_of(sweep: Sweep) -> dict[str, list[Setting]]:
    """The values of each dimension that is a list; ranges are left out."""
    grid: dict[str, list[Setting]] = {}
    for dimension in sweep.space.dimensions:
        if isinstance(dimension.domain, Choice):
            grid[dimension.name] = [v for v in dimension.domain.values if isinstance(v, int | float | str)]
    return grid


def fixed_settings(training: Training) -> dict[str, Setting]:
    """The settings that a Trainer is given, under our names."""
    return {
        "learning_rate": training.learning_rate,
        "batch_size": training.batch_size,
        "epochs": training.epochs,
        "freeze_depth": training.freeze_depth,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "lr_schedule": training.lr_schedule.type,
        "warmup_steps": training.lr_schedule.warmup_steps,
    }


if __name__ == "__main__":
    made = make(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    made.write(Path(sys.argv[2], "recipe.json"))
