"""Who is the registry's champion: whether a newly promoted model takes its place, and what it took the place of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.errors import StorageError
from finetune_sweep.events import Entry, FinalistsPlanned, Promoted
from finetune_sweep.finalists import read_predictions, runs_of
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan
from finetune_sweep.record import replay
from finetune_sweep.selection import intervals
from finetune_sweep.snapshot import TAG

if TYPE_CHECKING:
    from finetune_sweep.tasks.arrays import Predictions

CHAMPION: Final = "champion"
"""The alias of the version to be used."""
CHALLENGER: Final = "challenger"
"""The alias of the newest version, while it is not better than the champion beyond doubt."""
REPLACED_TAG: Final = TAG + "replaced"
"""Of a champion: the versions that had the alias before it, the last one first."""
_NONE: Final = "none"
_REMEMBERED: Final = 100  # the value of a tag is limited


def challenge(plan: Plan, layout: Layout, new: Promoted, old: tuple[str, str, int]) -> tuple[str, str]:
    """The alias that a new version deserves, and why.

    A finalist stands for all runs of its configuration: the promoted one is the best of them on these very rows, and
    would have that advantage over a champion that was chosen among fewer.

    Args:
        plan: The sweep of the new version.
        layout: Where it lies; the old one may be of another sweep of the same storage.
        new: What was promoted.
        old: The champion's sweep, trial and epoch; it was measured on the same training and validation rows.
    """
    sweep, key, epoch = old
    try:
        before = _said(Layout(layout.storage, sweep or layout.sweep), key, epoch)
        after = _said(layout, new.key, new.epoch)
    except StorageError:
        return (
            CHALLENGER,
            "what it or the champion said of the validation rows is not kept whole, so they cannot be compared",
        )
    right = [said.labels for said in (*before, *after)]
    if not all(np.array_equal(right[0], labels) for labels in right):
        return (
            CHALLENGER,
            "the champion was compared with other answers, such as texts that were cut elsewhere",
        )
    gained, lost = runs_of(plan, after).as_one(), runs_of(plan, before).as_one()
    (gain,) = intervals([gained - lost if plan.mode == "max" else lost - gained])
    between = f"by {gain.value:+.4f} (interval from {gain.low:+.4f} to {gain.high:+.4f})"
    if gain.low > 0:
        return CHAMPION, f"it is better than the champion before it {between} in {plan.sweep.metric.name}"
    return (
        CHALLENGER,
        f"it is not better than the champion beyond doubt: {between} in {plan.sweep.metric.name}",
    )


def _said(layout: Layout, key: str, epoch: int) -> list[Predictions]:
    """What a model said of the validation rows; of a finalist, what each run of its configuration said.

    Raises:
        StorageError: The predictions of a run, or the journal, cannot be read.
    """
    entries = read(layout)
    trials = replay(entries).trials
    rounds = [entry.event for entry in entries if isinstance(entry.event, FinalistsPlanned)]
    groups = [group for each in reversed(rounds) for group in each.candidates.values() if key in group]
    runs = [trials[name] for name in (groups[0] if groups else ()) if name in trials]
    known = {run.key: run.best_epoch or 0 for run in runs if run.score is not None} | {key: epoch}
    return [read_predictions(layout, run, last) for run, last in known.items()]


def registered_before(
    entries: Sequence[Entry], promoted: Promoted, model: str, versions: Collection[str]
) -> Promoted | None:
    """How the weights that lie in `best/` were registered, if since then only the folder was made anew.

    None if there is no such version any more, if others were promoted since, or if the user has chosen them since: then
    it is decided anew who is champion.

    Args:
        entries: Of the journal.
        promoted: The last of its promotions.
        model: The name of the registered model.
        versions: Of the registered model, those of these weights.
    """
    for event in (entry.event for entry in reversed(entries)):
        if not isinstance(event, Promoted):
            continue
        if (event.key, event.epoch) != (promoted.key, promoted.epoch):
            return None
        if promoted.instead_of not in {"", event.instead_of}:
            return None
        if event.version:
            is_there = event.registered_model == model and event.version in versions
            return event if is_there else None
    return None


def champions_before(tags: Mapping[str, str]) -> list[str]:
    """The versions that were champion before the one with these tags, the last one first."""
    return [number for number in tags.get(REPLACED_TAG, _NONE).split(",") if number != _NONE]


def replaced_tag(versions: Iterable[str]) -> str:
    """The value of `REPLACED_TAG` that says these versions, the last one first."""
    return ",".join([*versions][:_REMEMBERED]) or _NONE
