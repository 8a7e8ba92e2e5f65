"""Whether a newly promoted model takes the place of the registry's champion: row by row, on the same data."""

from __future__ import annotations

from typing import Final

from finetune_sweep.errors import StorageError
from finetune_sweep.events import Promoted
from finetune_sweep.finalists import read_predictions, runs_of
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan
from finetune_sweep.selection import intervals

CHAMPION: Final = "champion"
"""The alias of the version to be used."""
CHALLENGER: Final = "challenger"
"""The alias of the newest version, while it is not better than the champion beyond doubt."""


def challenge(plan: Plan, layout: Layout, new: Promoted, old: tuple[str, str, int]) -> tuple[str, str]:
    """The alias that a new version deserves, and why.

    Args:
        plan: The sweep of the new version.
        layout: Where it lies; the old one may be of another sweep of the same storage.
        new: What was promoted.
        old: The champion's sweep, trial and epoch; it was measured on the same training and validation rows.
    """
    sweep, key, epoch = old
    try:
        before = read_predictions(Layout(layout.storage, sweep or layout.sweep), key, epoch)
        after = read_predictions(layout, new.key, new.epoch)
    except StorageError:
        return (
            CHALLENGER,
            "what the champion said of the validation rows is not kept, so they cannot be compared",
        )
    gained, lost = runs_of(plan, [after]), runs_of(plan, [before])
    (gain,) = intervals([gained - lost if plan.mode == "max" else lost - gained])
    between = f"by {gain.value:+.4f} (interval from {gain.low:+.4f} to {gain.high:+.4f})"
    if gain.low > 0:
        return CHAMPION, f"it is better than the champion before it {between} in {plan.sweep.metric.name}"
    return (
        CHALLENGER,
        f"it is not better than the champion beyond doubt: {between} in {plan.sweep.metric.name}",
    )
