"""The append-only record of what happened in a sweep: the only truth about it.

One event is one line of JSON with a time and a checksum. A driver's session opens a new segment,
`journal/000001.jsonl`, `000002.jsonl` and so on; replaying all segments in order gives every state that
anybody asks about. A torn last line of a segment, left by a kill, is skipped; damage anywhere else is
refused.
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from finetune_sweep import __version__
from finetune_sweep.errors import FailureClass, StorageError
from finetune_sweep.layout import DurableFile, Layout, Owner
from finetune_sweep.yamlio import Value

TrialState = Literal["planned", "running", "finished", "stopped", "diverged", "failed"]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class WorkerInfo:
    """Where a work unit ran.

    `threads` is the number of threads that torch computes with; `cuda_visible_devices` is what Ray gave the worker.
    """

    host: str
    pid: int
    device: str
    threads: int
    cuda_visible_devices: str
    node: str


@dataclass(frozen=True)
class Failure:
    """Why a trial has no result."""

    kind: FailureClass
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class SessionStarted:
    """A driver took the sweep. `token` is its fencing token, `older_segments` the bytes of those before its own."""

    token: int
    host: str
    pid: int
    version: str
    older_segments: Mapping[str, int]


@dataclass(frozen=True)
class TrialPlanned:
    """A trial exists: what its key stands for."""

    key: str
    label: str
    config: Mapping[str, Value]
    params: Mapping[str, Value]
    seed: int


@dataclass(frozen=True)
class Suggested:
    """A search that learns from results asked for this trial; `number` counts its suggestions from 0.

    It joins the trials that can win. A key that was suggested before stands for the same trial.
    """

    number: int
    key: str


@dataclass(frozen=True)
class SweepPlanned:
    """What the sweep is now: its task, data, metric, and the trials that can win, in order.

    `precision` and `device` are the resolved ones; `fingerprint` is that of the training and validation data.
    """

    task: str
    fingerprint: str
    metric: str
    mode: Literal["max", "min"]
    epoch: Literal["best", "last"]
    precision: str
    device: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class UnitStarted:
    """A worker began to train the trials of a unit."""

    unit: str
    keys: tuple[str, ...]
    worker: WorkerInfo


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a trajectory, for all of its trials that reach this epoch.

    `metrics` are those of the validation split; times are seconds.
    """

    unit: str
    keys: tuple[str, ...]
    epoch: int
    step: int
    train_loss: float
    learning_rate: float
    metrics: Metrics
    train_seconds: float
    eval_seconds: float
    micro_batch: int


@dataclass(frozen=True)
class TrialEnded:
    """A trial reached its end. `checkpoint` is a path relative to the sweep's folder."""

    key: str
    state: TrialState
    epochs_done: int = 0
    best_epoch: int | None = None
    score: float | None = None
    stopped_early_at: int | None = None
    checkpoint: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class CheckpointWritten:
    """A finished trial that had no checkpoint was trained again for one; its recorded values stand."""

    key: str
    checkpoint: str


@dataclass(frozen=True)
class CheckpointRemoved:
    """A checkpoint was deleted: its trial is no longer among the best."""

    key: str


@dataclass(frozen=True)
class Tracked:
    """The MLflow run that mirrors a trial; an empty key is the sweep itself."""

    key: str
    run_id: str


@dataclass(frozen=True)
class TestIntended:
    """The test split is about to be read for a champion: journalled before it is."""

    __test__ = False

    key: str
    fingerprint: str


@dataclass(frozen=True)
class TestRead:
    """The test split was read for a champion."""

    __test__ = False

    key: str
    fingerprint: str
    metrics: Metrics


@dataclass(frozen=True)
class Promoted:
    """A champion lies in `best/`. `version` is the one in the registry; empty until it is registered."""

    key: str
    metrics: Metrics
    test_metrics: Metrics
    registered_model: str
    version: str


@dataclass(frozen=True)
class SessionEnded:
    """A driver left the sweep, with this exit code."""

    exit_code: int


Event = (
    SessionStarted
    | TrialPlanned
    | Suggested
    | SweepPlanned
    | UnitStarted
    | Evaluated
    | TrialEnded
    | CheckpointWritten
    | CheckpointRemoved
    | Tracked
    | TestIntended
    | TestRead
    | Promoted
    | SessionEnded
)

EVENTS: Final[Mapping[str, type[Event]]] = {
    event.__name__: event
    for event in (
        SessionStarted,
        TrialPlanned,
        Suggested,
        SweepPlanned,
        UnitStarted,
        Evaluated,
        TrialEnded,
        CheckpointWritten,
        CheckpointRemoved,
        Tracked,
        TestIntended,
        TestRead,
        Promoted,
        SessionEnded,
    )
}


@dataclass(frozen=True)
class Entry:
    """An event with the time at which it was journalled, in seconds since 1970."""

    time: float
    event: Event


# ------------------------------------------------------------------------------------------ lines and files


def encode(entry: Entry) -> bytes:
    """One line: a checksum of eight hexadecimal digits, a space, and the event as JSON."""
    body = {"time": entry.time, "type": type(entry.event).__name__, **dataclasses.asdict(entry.event)}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Entry:
    """The opposite of `encode`.

    Raises:
        ValueError: If the line is torn or damaged.
    """
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("the checksum does not match")
    body = json.loads(text)
    moment, kind = body.pop("time"), EVENTS[body.pop("type")]
    if worker := body.get("worker"):
        body["worker"] = WorkerInfo(**worker)
    if failure := body.get("failure"):
        body["failure"] = Failure(**failure)
    if "keys" in body:
        body["keys"] = tuple(body["keys"])
    return Entry(moment, kind(**body))


def read(layout: Layout) -> list[Entry]:
    """All entries of a sweep, in order; empty if there is none.

    What an older owner wrote into its segment after it had lost the lock is ignored: each session records the
    lengths of the segments before its own.

    Raises:
        StorageError: If a line other than the last one of a segment is damaged; names the file, the line and
            what to do.
    """
    lengths: dict[str, int] = {}
    sessions: list[list[Entry]] = []
    for segment in reversed(layout.segments()):
        entries = _read_segment(segment, lengths.get(segment.name))
        if entries and isinstance(entries[0].event, SessionStarted):
            lengths = {**lengths, **entries[0].event.older_segments}
        sessions.append(entries)
    return [entry for entries in reversed(sessions) for entry in entries]


def _read_segment(segment: Path, length: int | None) -> list[Entry]:
    lines = segment.read_bytes()[:length].splitlines(keepends=True)
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(decode(line))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise StorageError(
                f"{segment}:{number}: the journal is damaged ({error}). Restore this file from a copy, or delete"
                " the line to lose only what it recorded; a trial without its end is trained again."
            ) from None
    return entries


class Journal:
    """The journal of a sweep that this process drives: replayed, and open for more.

    Attributes:
        layout: Whose journal it is.
        entries: Everything so far, in order; only ever grows.
        record: The state that follows from it.
    """

    def __init__(self, layout: Layout, owner: Owner) -> None:
        """Replays what there is and opens a new segment.

        Raises:
            StorageError: If the journal is damaged.
        """
        self.layout = layout
        self.entries = read(layout)
        self.record = replay(self.entries)
        older = {segment.name: segment.stat().st_size for segment in layout.segments()}
        self._file = DurableFile(layout.next_segment())
        self.append(SessionStarted(owner.token, owner.host, owner.pid, __version__, older))

    def append(self, *events: Event) -> None:
        """Writes events durably, then makes them visible in `entries` and `record`.

        Raises:
            StorageError: If they could not be written.
        """
        if not events:
            return
        entries = [Entry(time.time(), event) for event in events]
        self._file.append(b"".join(encode(entry) for entry in entries))
        for entry in entries:
            self.entries.append(entry)
            self.record.apply(entry)

    def close(self) -> None:
        """Closes the segment."""
        self._file.close()


# ------------------------------------------------------------------------------------------------- replaying


@dataclass
class TrialRecord:
    """A trial as the journal tells it. Times are seconds since 1970.

    `score` is the metric that the sweep optimises, at `best_epoch`, the epoch that counts; only of a finished trial.
    """

    planned: TrialPlanned
    state: TrialState = "planned"
    evaluations: list[Evaluated] = field(default_factory=list)
    evaluation_times: list[float] = field(default_factory=list)
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    end: TrialEnded | None = None
    worker: WorkerInfo | None = None
    checkpoint: str | None = None
    mlflow_run_id: str | None = None
    score: float | None = None
    best_epoch: int | None = None

    @property
    def key(self) -> str:
        """The trial's key."""
        return self.planned.key

    def begin(self, worker: WorkerInfo, moment: float) -> None:
        """A worker trains it; what it has a result for stays."""
        if not self.done:
            self.state, self.worker, self.started, self.end = "running", worker, moment, None
            self.attempts += 1

    def add(self, evaluation: Evaluated, moment: float) -> None:
        """Notes an evaluation; the first one of an epoch stands."""
        if all(evaluation.epoch > known.epoch for known in self.evaluations):
            self.evaluations.append(evaluation)
            self.evaluation_times.append(moment)

    def rate(self, plan: SweepPlanned) -> None:
        """Sets the score of a finished trial and the epoch that counts, by what the sweep optimises now.

        They follow from the evaluations, so that an edited metric ranks the trials that are there.
        """
        if self.state != "finished" or self.end is None:
            return
        self.score, self.best_epoch = self.end.score, self.end.best_epoch
        rated = [e for e in self.evaluations if plan.metric in e.metrics and e.epoch <= self.end.epochs_done]
        if rated and plan.epoch == "best":
            sign = 1.0 if plan.mode == "max" else -1.0
            rated = [max(rated, key=lambda e: (sign * e.metrics[plan.metric], -e.epoch))]
        if rated:
            self.score, self.best_epoch = rated[-1].metrics[plan.metric], rated[-1].epoch

    def finish(self, end: TrialEnded, moment: float) -> None:
        """Notes the end; the first result stands."""
        if not self.done:
            self.state, self.end, self.ended, self.checkpoint = end.state, end, moment, end.checkpoint

    @property
    def done(self) -> bool:
        """Whether the trial has a result, or will never have one."""
        return self.state in {"finished", "stopped", "diverged"}

    @property
    def metrics(self) -> Metrics:
        """The validation metrics at the epoch that counts; before the end, at the last evaluation."""
        for evaluation in reversed(self.evaluations):
            if self.best_epoch is None or evaluation.epoch == self.best_epoch:
                return evaluation.metrics
        return {}


@dataclass
class SweepRecord:
    """A sweep as the journal tells it.

    `trials` holds every trial that was ever part of it, also those that an edited file no longer contains;
    `plan.keys` names the present ones.
    """

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    plan: SweepPlanned | None = None
    promoted: Promoted | None = None
    suggestions: list[Suggested] = field(default_factory=list)
    test_reads: list[TestRead] = field(default_factory=list)
    mlflow_run_id: str | None = None
    session: SessionStarted | None = None
    exit_code: int | None = None
    started: float | None = None
    updated: float | None = None

    def apply(self, entry: Entry) -> None:
        """Moves the state on by one entry."""
        self.updated = entry.time
        match entry.event:
            case SessionStarted() | SessionEnded():
                self._apply_to_session(entry.event, entry.time)
            case SweepPlanned() as event:
                self.plan = event
                for trial in self.trials.values():
                    trial.rate(event)
            case TrialPlanned() as event:
                self.trials.setdefault(event.key, TrialRecord(event))
            case Suggested() as event:
                self._suggest(event)
            case Tracked("", run_id):
                self.mlflow_run_id = run_id
            case Tracked(key, run_id):
                self.trials[key].mlflow_run_id = run_id
            case TestRead() as event:
                self.test_reads.append(event)
            case Promoted() as event:
                self.promoted = event
            case _:
                self._apply_to_trials(entry)

    def _apply_to_session(self, event: SessionStarted | SessionEnded, moment: float) -> None:
        """What was running when a driver left, or when the next one came, is not running any more."""
        match event:
            case SessionStarted():
                self.session, self.started, self.exit_code = event, moment, None
            case SessionEnded(exit_code):
                self.exit_code = exit_code
        for trial in self.trials.values():
            if trial.state == "running":
                trial.state = "planned"

    def _apply_to_trials(self, entry: Entry) -> None:
        match entry.event:
            case UnitStarted(_, keys, worker):
                for key in keys:
                    self.trials[key].begin(worker, entry.time)
            case Evaluated() as event:
                for key in event.keys:
                    self.trials[key].add(event, entry.time)
            case TrialEnded() as event:
                self.trials[event.key].finish(event, entry.time)
                if self.plan is not None:
                    self.trials[event.key].rate(self.plan)
            case CheckpointWritten(key, checkpoint):
                self.trials[key].checkpoint = checkpoint
            case CheckpointRemoved(key):
                self.trials[key].checkpoint = None

    def _suggest(self, event: Suggested) -> None:
        self.suggestions.append(event)
        if self.plan is not None and event.key not in self.plan.keys:
            self.plan = dataclasses.replace(self.plan, keys=(*self.plan.keys, event.key))

    def current(self) -> list[TrialRecord]:
        """The trials that can win, in the order of the plan."""
        return [self.trials[key] for key in self.plan.keys] if self.plan is not None else []

    def ranking(self) -> list[TrialRecord]:
        """The finished trials that can win, best first; ties go to the fewest epochs, then the plan's order."""
        if self.plan is None:
            return []
        sign = -1.0 if self.plan.mode == "max" else 1.0
        scored = [(sign * trial.score, trial) for trial in self.current() if trial.score is not None]
        return [
            trial for _, trial in sorted(scored, key=lambda pair: (pair[0], pair[1].planned.params["epochs"]))
        ]

    def best(self) -> TrialRecord | None:
        """The best trial so far."""
        ranking = self.ranking()
        return ranking[0] if ranking else None


def replay(entries: Iterable[Entry]) -> SweepRecord:
    """The state that follows from entries."""
    record = SweepRecord()
    for entry in entries:
        record.apply(entry)
    return record
