"""What the runs of a sweep have to look like in MLflow; it follows from the journal alone, times included."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from finetune_sweep.errors import UserError
from finetune_sweep.events import (
    Entry,
    Evaluated,
    FinalistsPlanned,
    SessionEnded,
    SessionStarted,
    SweepPlanned,
    TestRead,
    TrialEnded,
    TrialPlanned,
    UnitStarted,
    encode,
)
from finetune_sweep.layout import Layout
from finetune_sweep.mlflow_uri import printable_uri
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.space import Choice, Dimension, canonical
from finetune_sweep.spec import Sweep
from finetune_sweep.yamlio import Value

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

TAG: Final = "finetune_sweep."
"""What the names of our tags begin with."""
JOURNAL_TAG: Final = TAG + "journal"
KEY_TAG: Final = TAG + "key"
_TOLD_PART: Final = 50
_DIGEST_CHARACTERS: Final = 36


@dataclass(frozen=True)
class Point:
    """One value of a metric; the time is in milliseconds since 1970."""

    name: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class DataSet:
    """The data that a run used; `kind` is `example`, `hub` or `local`."""

    name: str
    digest: str
    kind: str
    source: str


@dataclass(frozen=True)
class Snapshot:
    """What a run has to look like, as of now. Times are milliseconds since 1970.

    Args:
        data: None for a trial of an earlier plan, which may have used other data than the present.
        artifact: A file to be kept with the run.
    """

    name: str
    status: Status
    started_ms: int
    ended_ms: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]
    data: DataSet | None = None
    artifact: Path | None = None


def trial_snapshot(trial: TrialRecord, param_names: Iterable[str]) -> Snapshot | None:
    """The child run of a trial; None for one that has not begun.

    Args:
        trial: The trial.
        param_names: The names of all trials' params, so that all runs have the same.
    """
    if trial.state == "planned" and not trial.attempts:
        return None
    points = (*_evaluation_points(trial), *_final_points(trial))
    last_sign = max([*trial.evaluation_times[-1:], trial.started or trial.ended or 0.0])
    ended = None if trial.state in {"planned", "running"} else trial.ended
    return Snapshot(
        name=trial.planned.label,
        status=_status(trial),
        started_ms=_ms(trial.started or last_sign),
        ended_ms=_ms(ended or last_sign),
        params={name: _text(trial.planned.params.get(name)) for name in param_names},
        tags=_trial_tags(trial, points),
        points=tuple(point for point in points if math.isfinite(point.value)),
    )


def _status(trial: TrialRecord) -> Status:
    match trial.state:
        case "running":
            return "RUNNING"
        case "finished" | "stopped":
            return "FINISHED"
        case "diverged" | "failed":
            return "FAILED"
        case "planned":
            return "KILLED"


def _evaluation_points(trial: TrialRecord) -> Iterator[Point]:
    for event, moment in zip(trial.evaluations, trial.evaluation_times, strict=True):
        values = {
            **{f"validation_{name}": value for name, value in event.metrics.items()},
            **{f"train_{name}": value for name, value in event.train_metrics.items()},
            "train_loss": event.train_loss,
            "learning_rate": event.learning_rate,
            "train_seconds": event.train_seconds,
            "eval_seconds": event.eval_seconds,
            "micro_batch": event.micro_batch,
        }
        for name, value in values.items():
            yield Point(name, value, _ms(moment), event.epoch)


def _final_points(trial: TrialRecord) -> Iterator[Point]:
    end = trial.end
    if end is None or trial.ended is None or end.state not in {"finished", "stopped"}:
        return
    values = {"score": trial.score, "best_epoch": trial.best_epoch, "epochs_done": end.epochs_done}
    for name, value in (values | {f"best_{name}": value for name, value in trial.metrics.items()}).items():
        if value is not None:
            yield Point(name, value, _ms(trial.ended), 0)


def _trial_tags(trial: TrialRecord, points: Iterable[Point]) -> dict[str, str]:
    tags = {
        KEY_TAG: trial.key,
        TAG + "state": "interrupted" if _status(trial) == "KILLED" else trial.state,
        TAG + "seed": str(trial.planned.seed),
        TAG + "attempts": str(trial.attempts),
    }
    if trial.worker is not None:
        tags |= {TAG + "host": trial.worker.host, TAG + "device": trial.worker.device}
    if trial.end is not None and trial.end.failure is not None:
        tags |= {TAG + "failure": trial.end.failure.kind, TAG + "failure_message": trial.end.failure.message}
    if trial.end is not None and trial.end.stopped_early_at is not None:
        tags[TAG + "stopped_early_at"] = str(trial.end.stopped_early_at)
    if trial.end is not None and trial.end.reused_from:
        tags[TAG + "reused_from"] = trial.end.reused_from
    odd = [f"{p.name}={p.value} at {p.step}" for p in points if not math.isfinite(p.value)]
    return tags | ({TAG + "not_finite": ", ".join(odd)} if odd else {})


class View:
    """The journal, seen as the runs it has to become.

    The record is replayed here a second time, as the journal's own belongs to another thread.
    """

    def __init__(self, sweep: Sweep, layout: Layout) -> None:
        """Begins with an empty journal."""
        self.record = SweepRecord()
        self._sweep = sweep
        self._layout = layout
        self._param_names: dict[str, None] = {}
        self._current: frozenset[str] = frozenset()
        self._history: list[Point] = []
        self._steps = 0
        self._latest: dict[str, float] = {}
        self._ended_since = 0
        self._first: Entry | None = None
        self._ended: float | None = None

    def apply(self, entry: Entry) -> Iterable[str]:
        """Moves on by one entry; returns the keys of the runs that may have changed, "" for the parent."""
        self._first = self._first or entry
        self.record.apply(entry)
        keys: Iterable[str] = ("",)
        match entry.event:
            case UnitStarted() | Evaluated() as event:
                keys = event.keys
            case TrialEnded(key):
                self._ended_since += 1
                if self._may_be_news(key):
                    self._note_progress(entry.time)
                keys = ("", key)
            case TestRead(_, _, _, metrics, is_baseline):
                step, moment = len(self.record.test_reads), _ms(entry.time)
                what = "test_baseline" if is_baseline else "test"
                self._history += [Point(f"{what}_{n}", v, moment, step) for n, v in metrics.items()]
            case SweepPlanned():
                self._current = frozenset(entry.event.keys)
                self._note_progress(entry.time, is_last=True)
                keys = ("", *self.record.trials)
            case FinalistsPlanned():
                keys = ("", *self.record.trials)
            case SessionStarted() | SessionEnded():
                is_end = isinstance(entry.event, SessionEnded)
                self._ended = entry.time if is_end else None
                self._note_progress(entry.time, is_last=is_end)
                keys = ("", *self.record.trials)
            case TrialPlanned():
                self._param_names |= dict.fromkeys(entry.event.params)
        return keys

    def _note_progress(self, moment: float, *, is_last: bool = False) -> None:
        """Adds the sweep's own metrics where they have changed, so that a session without news adds none.

        Of counts alone a large sweep tells every fiftieth part: its run is delivered with each trial, and must not grow
        with their number. The last of a session are told in any case.
        """
        trials = self.record.current()
        runs = self.record.all_current()
        states = [trial.state for trial in runs]
        values: dict[str, float] = {
            "trials_finished": states.count("finished") + states.count("stopped"),
            "trials_failed": states.count("failed") + states.count("diverged"),
        }
        scores = [trial.score for trial in trials if trial.score is not None and math.isfinite(trial.score)]
        if scores and self.record.plan is not None:
            values["best_score"] = max(scores) if self.record.plan.mode == "max" else min(scores)
        if values != self._latest and any(values.values()) and (is_last or self._is_news(values)):
            self._steps += 1
            self._history += [Point(name, value, _ms(moment), self._steps) for name, value in values.items()]
            self._latest, self._ended_since = values, 0

    def _may_be_news(self, key: str) -> bool:
        """Whether the end of a trial can be worth telling: else all trials would be counted after each."""
        told = self._latest.get("trials_finished", 0) + self._latest.get("trials_failed", 0)
        if self._ended_since >= max(1, told // _TOLD_PART):
            return True
        trial, best = self.record.trials.get(key), self._latest.get("best_score")
        score = trial.score if trial is not None else None
        return score is not None and (best is None or self._is_better(score, best))

    def _is_better(self, score: float, than: float) -> bool:
        is_max = self.record.plan is not None and self.record.plan.mode == "max"
        return score > than if is_max else score < than

    def _is_news(self, values: Mapping[str, float]) -> bool:
        if values.get("best_score") != self._latest.get("best_score"):
            return True
        done, told = (
            counts.get("trials_finished", 0) + counts.get("trials_failed", 0)
            for counts in (values, self._latest)
        )
        return abs(done - told) >= max(1, done // _TOLD_PART)

    def journal_id(self) -> str:
        """What tells this journal from all others: its first line."""
        if self._first is None:
            raise RuntimeError("no entry has been applied yet")
        return hashlib.sha256(encode(self._first)).hexdigest()[:16]

    def name(self, key: str) -> str:
        """What a run is called in a message."""
        if not key:
            return f"sweep {self._sweep.name}"
        return f"trial {key} ({self.record.trials[key].planned.label})"

    def snapshot(self, key: str) -> Snapshot | None:
        """What a run has to look like; None if there is nothing to show yet."""
        plan = self.record.plan
        if plan is None:
            return None
        if not key:
            return self._sweep_snapshot(plan)
        found = trial_snapshot(self.record.trials[key], self._param_names)
        if found is None:
            return None
        stage = self.record.stage(key)
        runs = self.record.finalists.candidates.values() if self.record.finalists is not None else ()
        is_current = key in self._current or any(key in keys for keys in runs)
        tags = {**self._identity(), **found.tags, TAG + "current": _text(is_current), TAG + "stage": stage}
        return dataclasses.replace(found, tags=tags, data=self._data(plan) if is_current else None)

    def _identity(self) -> dict[str, str]:
        return {TAG + "sweep": self._sweep.name, JOURNAL_TAG: self.journal_id()}

    def _sweep_snapshot(self, plan: SweepPlanned) -> Snapshot:
        code = self.record.exit_code
        statuses: dict[int | None, Status] = {None: "RUNNING", 0: "FINISHED", 4: "FINISHED", 130: "KILLED"}
        if code == UserError.exit_code and self.record.promoted is not None:
            code = 0  # a mistake on the command line says nothing about a sweep that was promoted
        status = statuses.get(code, "FAILED")
        params = self._sweep_params(plan)
        tags = self._identity() | {TAG + "state": "interrupted" if status == "KILLED" else status.lower()}
        tags |= {TAG + "storage": str(self._layout.root), TAG + "current_space": params["space"]}
        if (champion := self.record.promoted) is not None:
            tags |= {TAG + "champion": champion.key, TAG + "registered_model": champion.registered_model}
            tags |= {TAG + "registered_version": champion.version}
        if (decided := self.record.decided) is not None:
            tags |= {TAG + "verdict": decided.sentence, TAG + "beats_baseline": _text(decided.beats_baseline)}
        return Snapshot(
            name=self._sweep.name,
            status=status,
            started_ms=_ms(self._first.time if self._first is not None else 0.0),
            ended_ms=None if self._ended is None else _ms(self._ended),
            params=params,
            tags=tags,
            points=tuple(point for point in self._history if math.isfinite(point.value)),
            data=self._data(plan),
            artifact=self._layout.resolved,
        )

    def _sweep_params(self, plan: SweepPlanned) -> dict[str, str]:
        sweep = self._sweep
        search: dict[str, Value] = sweep.search.model_dump(exclude_none=True)
        values: dict[str, Value] = {
            "task": plan.task,
            "model": sweep.model,
            "data": _source(sweep),
            "data.max_length": sweep.data.max_length,
            "metric": plan.metric,
            "mode": plan.mode,
            "epoch": plan.epoch,
            "search": search.pop("type"),
            **{f"search.{name}": value for name, value in search.items()},
            "space": "; ".join(map(_dimension, sweep.space.dimensions)),
            "seed": sweep.seed,
            "precision": plan.precision if sweep.training.precision == "auto" else sweep.training.precision,
            "device": plan.device,
        }
        return {name: _text(value) for name, value in values.items()}

    def _data(self, plan: SweepPlanned) -> DataSet:
        source = _source(self._sweep)
        kind = source.partition(":")[0] if source.startswith(("example:", "hub:")) else "local"
        name = Path(source).name.removeprefix(f"{kind}:")
        uri = json.dumps({"uri": printable_uri(source)})
        return DataSet(name, plan.fingerprint[:_DIGEST_CHARACTERS], kind, uri)


def _dimension(dimension: Dimension) -> str:
    match dimension.domain:
        case Choice(values):
            domain: Value = list(values)
        case domain_range:
            domain = {name: v for name, v in dataclasses.asdict(domain_range).items() if v is not None}
    when = " and ".join(f"{name} in {canonical(list(values))}" for name, values in dimension.when.items())
    return f"{dimension.name}: {canonical(domain)}" + (f" when {when}" if when else "")


def _source(sweep: Sweep) -> str:
    return sweep.data.source or (sweep.data.files or {}).get("train", "")


def _text(value: Value) -> str:
    match value:
        case None | "":
            return "none"
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case _:
            return canonical(value)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
