"""Whether a checkpoint that was loaded afresh gives the metrics that were recorded when it was trained."""

from __future__ import annotations

from typing import Final

from finetune_sweep.assembly import Found
from finetune_sweep.errors import VerificationError
from finetune_sweep.record import TrialRecord
from finetune_sweep.tasks.contract import ROBUST

CONTINUOUS: Final = frozenset({"loss", "auroc", "average_precision", "map", "map50", "map75"})
"""Metrics that move with the last digits of a logit; the others count predictions."""
TOLERANCE: Final = 1e-3
"""Relative, for continuous metrics of a checkpoint that was trained on other hardware."""


def verify(recorded: TrialRecord, found: Found) -> None:
    """Compares metrics with the recorded ones: to the last digit on the host and kind of device that trained.

    Elsewhere sums may be taken in another order: there, `CONTINUOUS` metrics may differ by `TOLERANCE`.

    Raises:
        VerificationError: One of them differs; names all of these.
    """
    worker = recorded.worker
    is_same = worker is not None and (worker.host, worker.device) == (found.host, found.device)
    differing = []
    for name, expected in recorded.metrics.items():
        value = found.metrics.get(name, float("nan"))
        allowed = (
            abs(expected) * TOLERANCE if name.removeprefix(ROBUST) in CONTINUOUS and not is_same else 0.0
        )
        if not abs(value - expected) <= allowed:
            differing.append(f"{name} was recorded as {expected!r}, found {value!r}")
    if differing:
        raise VerificationError(
            f"trial {recorded.key} is not promoted: its checkpoint, loaded afresh, gives other validation"
            f" metrics: {'; '.join(differing)}. Other versions of libraries can be the cause."
        )
