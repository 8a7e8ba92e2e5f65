"""Trials that another sweep of the same storage has finished: taken over, as a key says all that decides a result."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from finetune_sweep.durable import MANIFEST, check_folder, explained, folder_aside
from finetune_sweep.errors import StorageError
from finetune_sweep.events import CheckpointWritten, Entry, Event
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.record import SweepRecord, TrialRecord, replay


def taken_over(keys: Collection[str], record: SweepRecord, layout: Layout) -> list[Event]:
    """What to journal of trials that need not be trained: their evaluations and their ends, as they were.

    Args:
        keys: Of the trials that this sweep is about to train.
        record: Of this sweep; what it has begun stays its own.
        layout: Of this sweep.
    """
    wanted = {key for key in keys if key in record.trials and not record.trials[key].evaluations}
    events: list[Event] = []
    for sibling in _siblings(layout):
        if not wanted:
            break
        known = _record_of(sibling)
        for key in sorted(wanted & known.trials.keys()):
            trial = known.trials[key]
            if trial.state == "finished" and trial.end is not None:
                origin = trial.end.reused_from or sibling.sweep
                events += [replace(evaluation, keys=(key,)) for evaluation in trial.evaluations]
                events.append(replace(trial.end, checkpoint=None, reused_from=origin))
                wanted.discard(key)
    return events


def copied(trial: TrialRecord, layout: Layout) -> CheckpointWritten | None:
    """Copies the predictions and the checkpoint of a trial that was taken over, as far as they are still there.

    Returns:
        The checkpoint; None if it is gone, damaged, or of another epoch than counts here.
    """
    if trial.end is None or not trial.end.reused_from or trial.best_epoch is None:
        return None
    if Path(trial.end.reused_from).name != trial.end.reused_from:
        raise StorageError(
            f"the journal of {layout.root} names the sweep {trial.end.reused_from!r}, which is not the name of one"
        )
    origin = Layout(layout.storage, trial.end.reused_from)
    said = origin.predictions(trial.key, trial.best_epoch)
    _copy(said, layout.predictions(trial.key, trial.best_epoch))
    theirs = _record_of(origin).trials.get(trial.key)
    if theirs is None or theirs.checkpoint is None or theirs.best_epoch != trial.best_epoch:
        return None
    target = layout.checkpoint(trial.key, trial.best_epoch)
    if not _copy(origin.within(theirs.checkpoint), target):
        return None
    return CheckpointWritten(trial.key, str(target.relative_to(layout.root)))


def _copy(source: Path, target: Path) -> bool:
    """Copies a folder that is whole; says whether it was."""
    try:
        check_folder(source)
    except StorageError:
        return False
    with folder_aside(target) as folder, explained(target):
        for file in source.iterdir():
            if file.name != MANIFEST:
                shutil.copyfile(file, folder / file.name)
    return True


def journals(layout: Layout) -> Iterator[tuple[str, list[Entry]]]:
    """The names of the other sweeps of a storage, and what each has journalled; one that cannot be read is left out."""
    for sibling in _siblings(layout):
        with contextlib.suppress(StorageError, OSError):
            yield sibling.sweep, read(sibling)


def _siblings(layout: Layout) -> Iterator[Layout]:
    for folder in sorted(layout.storage.glob("*/journal")):
        if folder.parent != layout.root:
            yield Layout(layout.storage, folder.parent.name)


def _record_of(layout: Layout) -> SweepRecord:
    """What another sweep's journal says; nothing, if it cannot be read."""
    try:
        return replay(read(layout))
    except (StorageError, OSError):
        return SweepRecord()
