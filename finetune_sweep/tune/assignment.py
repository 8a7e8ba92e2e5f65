"""A work unit on its way from the driver to a worker."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_sweep.trial import WorkUnit


@dataclass(frozen=True)
class Assignment:
    """A work unit as it is handed to a worker.

    Args:
        unit: What to train.
        bar: The score that a trial must reach for its checkpoint to be worth keeping; None for any.
        rebuild: Key of the one trial, finished before, that is trained again for its checkpoint.
        predictions: Whether what the models said of each validation row is kept, as of finalists.
    """

    unit: WorkUnit
    bar: float | None = None
    rebuild: str | None = None
    predictions: bool = False
