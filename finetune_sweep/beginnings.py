"""Trials that need not be trained, as a longer one began with what they are: its evaluations are theirs.

Trials that are planned together share one training from the start; these came later, by an edit of the file or by a
search that learns from results.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from finetune_sweep.errors import UserError
from finetune_sweep.events import Event, TrialEnded
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, TrialRecord, counting
from finetune_sweep.trial import Trial, trajectory


def beginnings(plan: Plan, trials: Iterable[Trial], record: SweepRecord) -> list[Event]:
    """What to journal of those of the trials that a longer one, which has a result, has gone through.

    The checkpoint is the longer one's, where the same epoch counts for both; else there is none.

    Args:
        plan: The sweep's; its switch `share_trajectories` has to be on.
        trials: Of the plan; those that have a result are left out.
        record: What the journal says.
    """
    if not plan.sweep.speed.share_trajectories:
        return []
    missing = [trial for trial in trials if (own := record.trials.get(trial.key)) is None or not own.done]
    trained: dict[str, list[TrialRecord]] = {}
    for known in record.trials.values() if missing else ():
        if known.done and known.evaluations:
            trained.setdefault(trajectory(known.key, known.planned.params), []).append(known)
    events: list[Event] = []
    for trial in missing:
        longer = [
            each for each in trained.get(trajectory(trial.key, trial.params()), ()) if each.key != trial.key
        ]
        for known in longer:
            if _covers(known, trial) and _is_the_same(plan, known, trial):
                events += _taken(plan, known, trial, record.trials.get(trial.key))
                break
    return events


def _covers(known: TrialRecord, trial: Trial) -> bool:
    """Whether a training has all epochs of a shorter trial, be it that it stopped early within them."""
    stopped = known.end.stopped_early_at if known.end is not None else None
    return known.evaluations[-1].epoch >= trial.epochs or stopped is not None


def _is_the_same(plan: Plan, known: TrialRecord, trial: Trial) -> bool:
    """Whether the key of the longer one says so too: it knows of the model's content and of the recipe."""
    try:
        return plan.trial({**trial.config, "epochs": known.epochs}, trial.seed).key == known.key
    except UserError:
        return False


def _taken(plan: Plan, known: TrialRecord, trial: Trial, own: TrialRecord | None) -> list[Event]:
    theirs = [each for each in known.evaluations if each.epoch <= trial.epochs]
    metric = plan.sweep.metric
    counts = counting(theirs, metric.name, plan.mode, metric.epoch)
    if counts is None:
        return []
    last = theirs[-1].epoch
    end = TrialEnded(
        key=trial.key,
        state="finished",
        epochs_done=last,
        best_epoch=counts.epoch,
        score=counts.metrics[metric.name],
        stopped_early_at=last if last < trial.epochs else None,
        checkpoint=known.checkpoint if known.best_epoch == counts.epoch else None,
        reused_from=known.end.reused_from if known.end is not None else "",
    )
    told = own.evaluations[-1].epoch if own is not None and own.evaluations else 0
    return [*(replace(each, keys=(trial.key,)) for each in theirs if each.epoch > told), end]
