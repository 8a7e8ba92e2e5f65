"""What must hold of a sweep whatever happened to it: read from its journal, from MLflow, and from `best/`.

Each function returns the violations that it found, one text each; none is an empty list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from finetune_sweep.challenge import CHAMPION
from finetune_sweep.durable import check_folder
from finetune_sweep.errors import StorageError, TrackingError
from finetune_sweep.events import (
    Entry,
    Evaluated,
    Promoted,
    SessionStarted,
    TestIntended,
    TestRead,
    TrialEnded,
    UnitStarted,
)
from finetune_sweep.layout import Layout
from finetune_sweep.mlflow_store import PARENT_TAG, make_client
from finetune_sweep.record import SweepRecord, TrialRecord, replay
from finetune_sweep.snapshot import KEY_TAG, TAG, trial_snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

Results = Mapping[str, object]
"""What each finished trial came to, by its key."""
COMPLETE: Final = frozenset({0})
"""Exit codes that say that everything is done."""
LEAVES_DONE: Final = frozenset({4, 130})
"""Exit codes that a sweep may have in which everything is done: MLflow does not know it all, or it was stopped then."""


@dataclass(frozen=True)
class Tracked:
    """What MLflow has of a sweep: the runs, and each metric's whole history."""

    runs: Sequence[Run]
    histories: Mapping[str, Sequence[Metric]]

    @property
    def children(self) -> list[Run]:
        """The runs of trials."""
        return [run for run in self.runs if PARENT_TAG in run.data.tags]


@dataclass(frozen=True)
class Before:
    """What is known of a sweep before a session.

    Args:
        results: The finished trials.
        entries: How many the journal had.
        most_again: Epochs of a unit that may have to be trained again; None where its checkpoints were damaged.
        has_room: Whether the disk will have room.
        whole_since: The entry since which no checkpoint was damaged: what was trained before may be trained again.
    """

    results: Results = field(default_factory=dict)
    entries: int = 0
    most_again: int | None = 1
    whole_since: int = 0
    has_room: bool = True


def results(record: SweepRecord) -> Results:
    """Metrics and ends of the finished trials, without the moments at which they came."""
    return {key: _result(trial) for key, trial in record.trials.items() if trial.state == "finished"}


def _result(trial: TrialRecord) -> object:
    end = trial.end
    epochs = end.epochs_done if end is not None else 0
    told = [(e.epoch, e.step, e.train_loss, dict(e.metrics)) for e in trial.evaluations if e.epoch <= epochs]
    return (told, epochs, trial.best_epoch, trial.score)


# ------------------------------------------------------------------------------------------------- the journal


def unchanged(before: Results, after: Results) -> list[str]:
    """What was finished stays finished, with the same numbers."""
    return [
        f"trial {key} was finished with {value}, now it is {after.get(key, 'not finished')}"
        for key, value in before.items()
        if after.get(key) != value
    ]


def as_undisturbed(found: Results, reference: Results) -> list[str]:
    """Every finished trial has, to the last digit, the numbers of a run that nothing happened to."""
    return [
        f"trial {key} gave {value}, undisturbed it gives {reference.get(key, 'no such trial')}"
        for key, value in found.items()
        if reference.get(key) != value
    ]


def ended_once(entries: Sequence[Entry]) -> list[str]:
    """No trial is completed twice."""
    ends = [e.event for e in entries if isinstance(e.event, TrialEnded) and e.event.state != "failed"]
    counts = Counter(end.key for end in ends)
    return [
        f"trial {key} was completed {count} times in the journal"
        for key, count in counts.items()
        if count > 1
    ]


def tested_once(entries: Sequence[Entry]) -> list[str]:
    """The result of reading the test rows is journalled once a champion, after the intent."""
    intended: set[tuple[str, int]] = set()
    read: set[tuple[str, int]] = set()
    found = []
    for entry in entries:
        match entry.event:
            case TestIntended(key, epoch):
                intended.add((key, epoch))
            case TestRead(key, epoch):
                if (key, epoch) not in intended:
                    found.append(f"the test rows were read for {key} without an intent")
                if (key, epoch) in read:
                    found.append(f"the test rows were read twice for {key} at epoch {epoch}")
                read.add((key, epoch))
    return found


def trained_again(entries: Sequence[Entry], before: Before) -> dict[str, int]:
    """How many epochs of each work unit were trained again although they had been told, most in any attempt.

    What a resumed unit tells again has the seconds that it was trained in; what is trained again has others.
    """
    told: dict[tuple[str, int], set[float]] = {}
    attempt: dict[str, set[float]] = {}
    most: dict[str, int] = {}
    for at, entry in enumerate(entries[before.whole_since :], before.whole_since):
        match entry.event:
            case UnitStarted(unit):
                attempt[unit] = set()
            case Evaluated(unit=unit, epoch=epoch, train_seconds=seconds):
                known = told.setdefault((unit, epoch), set())
                if known and seconds not in known and at >= before.entries:
                    attempt.setdefault(unit, set()).add(epoch)
                    most[unit] = max(most.get(unit, 0), len(attempt[unit]))
                known.add(seconds)
    return most


def lost_little(entries: Sequence[Entry], before: Before) -> list[str]:
    """A unit that was interrupted goes on from its checkpoint: so many epochs at most are trained again."""
    most = before.most_again
    return [
        f"unit {unit} trained {count} epochs again, at most {most} could be lost"
        for unit, count in trained_again(entries, before).items()
        if most is not None and count > most
    ]


def truthful(code: int, record: SweepRecord, *, has_begun: bool = True, has_room: bool = True) -> list[str]:
    """0 stands for a sweep that is done, and one that is done ends with 0, 4 or 130; the journal has the same code.

    Args:
        code: How the last session ended; negative if by a signal that it could not answer.
        record: What the journal says.
        has_begun: Whether that session took the sweep, so that its end is journalled.
        has_room: Whether the disk had room for that.
    """
    open_trials = [trial.key for trial in record.current() if trial.state not in {"finished", "diverged"}]
    is_done = bool(record.current()) and not open_trials and record.promoted is not None
    is_registered = record.promoted is not None and bool(record.promoted.version)
    if code in COMPLETE and not (is_done and is_registered):
        why = f"{open_trials} have no result" if open_trials else "nothing was promoted or registered"
        return [f"the exit code is 0, but {why}"]
    if is_done and is_registered and has_begun and code not in {*COMPLETE, *LEAVES_DONE} and code >= 0:
        return [f"the exit code is {code}, but everything is done"]
    if code == TrackingError.exit_code and open_trials:
        return [f"the exit code is {code}, but {open_trials} have no result"]
    is_told = record.exit_code == code or not has_room
    if has_begun and code >= 0 and not is_told:
        return [f"the exit code is {code}, but the journal has {record.exit_code}"]
    return []


# ------------------------------------------------------------------------------------------------------ MLflow


def look(uri: str, experiment: str, storage: str) -> Tracked:
    """What MLflow has of the sweep that lies in this folder."""
    client = make_client(uri)
    found = client.get_experiment_by_name(experiment)
    runs = list(client.search_runs([found.experiment_id])) if found is not None else []
    parents = {run.info.run_id for run in runs if run.data.tags.get(TAG + "storage") == storage}
    ours = [run for run in runs if {run.info.run_id, run.data.tags.get(PARENT_TAG)} & parents]
    return Tracked(ours, {run.info.run_id: _history(client, run) for run in ours})


def _history(client: MlflowClient, run: Run) -> list[Metric]:
    return [m for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name)]


def mirrored_once(tracked: Tracked, record: SweepRecord) -> list[str]:
    """One run a trial and one for the sweep, and each (metric, step) once in each run."""
    found = []
    parents = len(tracked.runs) - len(tracked.children)
    if parents > 1 or (tracked.children and not parents):
        found.append(f"MLflow has {parents} runs of the sweep itself")
    counts = Counter(run.data.tags.get(KEY_TAG, "") for run in tracked.children)
    found += [f"MLflow has {count} runs of trial {key}" for key, count in counts.items() if count > 1]
    found += [f"MLflow has a run of {key!r}, no trial" for key in counts if key not in record.trials]
    for run_id, history in tracked.histories.items():
        points = Counter((metric.key, metric.step) for metric in history)
        found += [
            f"run {run_id} has {name} at step {step} {count} times"
            for (name, step), count in points.items()
            if count > 1
        ]
    return found


def mirrored_completely(tracked: Tracked, record: SweepRecord) -> list[str]:
    """Each trial's run has the values of the journal, all of them and no others, and its state."""
    runs = {run.data.tags.get(KEY_TAG, ""): run for run in tracked.children}
    found = []
    for key, trial in record.trials.items():
        expected = trial_snapshot(trial, ())
        if expected is None:
            continue
        if key not in runs:
            found.append(f"MLflow has no run of trial {key}")
            continue
        run = runs[key]
        there = {(m.key, m.step): (m.value, m.timestamp) for m in tracked.histories[run.info.run_id]}
        wanted = {(p.name, p.step): (p.value, p.time_ms) for p in expected.points}
        if there != wanted:
            odd = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
            found.append(f"MLflow's run of trial {key} differs from the journal in {odd[:5]}")
        if run.info.status != expected.status:
            found.append(f"MLflow's run of trial {key} is {run.info.status}, it must be {expected.status}")
    return found


def nothing_running(tracked: Tracked) -> list[str]:
    """Nothing is left RUNNING."""
    return [
        f"run {run.info.run_name} is left RUNNING" for run in tracked.runs if run.info.status == "RUNNING"
    ]


def registered(uri: str, name: str, entries: Sequence[Entry]) -> list[str]:
    """The alias is on the version of the last promotion, and no champion has two versions."""
    promoted = [entry.event for entry in entries if isinstance(entry.event, Promoted)]
    if not promoted:
        return []
    client = make_client(uri)
    versions = client.search_model_versions(f"name = '{name}'")
    champions = {(event.key, str(event.epoch)) for event in promoted}
    of_champions = Counter(
        (v.tags[KEY_TAG], v.tags[TAG + "epoch"])
        for v in versions
        if (v.tags.get(KEY_TAG), v.tags.get(TAG + "epoch")) in champions and v.run_id is not None
    )
    found = [f"{count} versions of trial {key}" for (key, _), count in of_champions.items() if count > 1]
    try:
        alias = client.get_model_version_by_alias(name, CHAMPION)
    except Exception as error:  # noqa: BLE001 - MLflow has a class of its own for each store
        return [*found, f"the alias {CHAMPION} of {name} cannot be read: {error}"]
    if alias.tags.get(KEY_TAG) != promoted[-1].key or str(alias.version) != promoted[-1].version:
        found.append(
            f"the alias {CHAMPION} is on version {alias.version} of trial {alias.tags.get(KEY_TAG)}, the journal has"
            f" version {promoted[-1].version} of {promoted[-1].key}"
        )
    return found


# ----------------------------------------------------------------------------------------------------- the disk


@dataclass(frozen=True)
class Champion:
    """What a user finds at a moment: a model in `best/`, a version under the alias; None where there is none."""

    folder: str | None = None
    version: str | None = None


def champion(layout: Layout, uri: str, name: str) -> tuple[Champion, list[str]]:
    """Who is the champion now, and what is half of one."""
    import json

    from mlflow.exceptions import MlflowException

    from finetune_sweep import card

    found, folder, version = [], None, None
    if layout.best.exists():
        try:
            check_folder(layout.best)
            folder = str(json.loads((layout.best / card.RESULTS).read_bytes())["key"])
        except (StorageError, OSError, ValueError) as error:
            found.append(f"best/ is half a champion: {error}")
    try:
        alias = make_client(uri).get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return Champion(folder), found
    version = str(alias.version)
    if not alias.tags.get(KEY_TAG) or alias.run_id is None:
        found.append(f"version {version} has the alias {CHAMPION}, and the tags {alias.tags}")
    return Champion(folder, version), found


def keeps_a_champion(before: Champion, now: Champion) -> list[str]:
    """Where there was a champion, there is the old one or a new one, and never none."""
    found = [] if now.folder or not before.folder else [f"best/ with trial {before.folder} is gone"]
    if before.version and not now.version:
        found.append(f"the alias {CHAMPION}, which was on version {before.version}, is gone")
    return found


def best_is_whole(layout: Layout, record: SweepRecord) -> list[str]:
    """`best/` matches its manifest and the journal, and loads as a user loads it."""
    import json

    from finetune_sweep import card

    if record.promoted is None:
        return [f"{layout.best} is there, but nothing was promoted"] if layout.best.exists() else []
    try:
        check_folder(layout.best)
        key = json.loads((layout.best / card.RESULTS).read_bytes())["key"]
    except (StorageError, OSError, ValueError) as error:
        return [f"best/ is damaged: {error}"]
    if key != record.promoted.key:
        return [f"best/ holds trial {key}, the journal says {record.promoted.key}"]
    return _loads(layout)


def _loads(layout: Layout) -> list[str]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            layout.best, output_loading_info=True
        )
        tokens = AutoTokenizer.from_pretrained(layout.best)(["ann saw the good films"], return_tensors="pt")
        with torch.inference_mode():
            logits = model(**tokens).logits
    except Exception as error:  # noqa: BLE001 - whatever transformers raises: a user could not load it either
        return [f"best/ does not load: {type(error).__name__}: {error}"]
    if report["missing_keys"] or not all(map(math.isfinite, logits.flatten().tolist())):
        return [f"best/ loads with {report['missing_keys']} missing, and gives {logits.tolist()}"]
    return []


def nothing_left_behind(layout: Layout, record: SweepRecord) -> list[str]:
    """No temporary file, no checkpoint that belongs to no trial, none for resuming what has ended."""
    known = {layout.root / trial.checkpoint for trial in record.trials.values() if trial.checkpoint}
    found = [f"{path} was left behind" for path in layout.root.rglob(".*") if path.name != ".gitignore"]
    found += [f"{layout.stop} still asks the workers to stop"] if layout.stop.exists() else []
    folders = [path for path in (layout.root / "trials").glob("*/*") if not path.name.startswith(".")]
    found += [f"{folder} belongs to no trial" for folder in folders if folder not in known]
    for folder in sorted(known):
        try:
            check_folder(folder)
        except StorageError as error:
            found.append(f"a checkpoint that the journal names: {error}")
    return found


def no_process(left: Sequence[int]) -> list[str]:
    """No process of the sweep outlives it."""
    return [f"process {pid} was left over" for pid in left]


# ----------------------------------------------------------------------------------------------------- together


def after_a_session(code: int, entries: Sequence[Entry], before: Before, reference: Results) -> list[str]:
    """What can be asked at any moment, of the journal alone."""
    record = replay(entries)
    found = results(record)
    has_begun = any(isinstance(entry.event, SessionStarted) for entry in entries[before.entries :])
    return [
        *unchanged(before.results, found),
        *as_undisturbed(found, reference),
        *ended_once(entries),
        *tested_once(entries),
        *lost_little(entries, before),
        *truthful(code, record, has_begun=has_begun, has_room=before.has_room),
    ]


def of_a_complete_sweep(
    layout: Layout, uri: str, name: str, entries: Sequence[Entry], reference: Results
) -> list[str]:
    """What must hold when the last session ended with 0; `name` is that of experiment and registered model."""
    record = replay(entries)
    tracked = look(uri, name, str(layout.root))
    missing = [f"trial {key} is not finished" for key in reference if key not in results(record)]
    return [
        *missing,
        *mirrored_once(tracked, record),
        *mirrored_completely(tracked, record),
        *nothing_running(tracked),
        *registered(uri, name, entries),
        *best_is_whole(layout, record),
        *nothing_left_behind(layout, record),
    ]
