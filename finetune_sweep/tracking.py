"""The mirror of the journal in MLflow: one parent run a sweep, one child run a trial.

The mirror follows the journal in a thread of its own, so that training never waits for a server. It keeps no
state that matters: what a run has to look like follows from the journal alone, timestamps included, and what
is there already is looked up. Mirroring a journal twice, also after a crash in between, adds nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from finetune_sweep.events import (
    Entry,
    Evaluated,
    SessionEnded,
    SessionStarted,
    SweepPlanned,
    TestRead,
    Tracked,
    TrialEnded,
    TrialPlanned,
    UnitStarted,
    encode,
)
from finetune_sweep.layout import Layout, sha256
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.space import Choice, Dimension, canonical
from finetune_sweep.spec import Sweep
from finetune_sweep.yamlio import Value

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

TAG: Final = "finetune_sweep."
"""What the names of our tags begin with."""
JOURNAL_TAG: Final = TAG + "journal"
KEY_TAG: Final = TAG + "key"
PARENT_TAG: Final = "mlflow.parentRunId"

_SETTINGS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
"""MLflow reads them from the environment, some of them when it is imported; by default a server that is away
holds a call for four minutes."""

_DATABASES: Final = {"sqlite", "postgresql", "mysql", "mssql"}
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_OPTION: Final = re.compile(r"(?i)(?<=[?&])([^=&\s]*(?:pass|pwd|token|secret|key)[^=&\s]*)=[^&\s]*")
_DELIVERED_TAG: Final = TAG + "delivered"
_LOCK_TAG: Final = TAG + "lock_sha256"
_PASSING_TAGS: Final = tuple(
    TAG + name for name in ("failure", "failure_message", "not_finite", "stopped_early_at")
)
_POLL_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_POINTS_A_CALL: Final = 800
_RUNS_A_PAGE: Final = 1000
_DIGEST_CHARACTERS: Final = 36
_TAG_CHARACTERS: Final = 5000
_REASON_CHARACTERS: Final = 300


# -------------------------------------------------------------------------------------------------- addresses


def tracking_uri(uri: str, storage: Path) -> str:
    """The absolute tracking URI: a relative sqlite file lies in the parent folder of the storage.

    >>> tracking_uri("sqlite:///mlflow.db", Path("/data/runs"))
    'sqlite:////data/mlflow.db'
    """
    scheme, separator, rest = uri.partition(":///")
    is_relative = not rest.startswith(("/", ":memory:"))
    if scheme.partition("+")[0] == "sqlite" and separator and is_relative:
        return f"{scheme}:///{(storage.parent / rest).absolute()}"
    return uri


def artifact_location(uri: str, storage: Path) -> str | None:
    """Where artifacts go with a database: `mlartifacts` beside the storage. None: the server decides."""
    is_database = re.split(r"[+:]", uri, maxsplit=1)[0] in _DATABASES
    return (storage.parent / "mlartifacts").absolute().as_uri() if is_database else None


def printable_uri(text: str) -> str:
    """A URI, or a text that holds some, without the credentials.

    >>> printable_uri("https://me:secret@host/mlflow")
    'https://***@host/mlflow'
    """
    return _SECRET_OPTION.sub(r"\1=***", _CREDENTIALS.sub("***@", text))


def make_client(uri: str) -> MlflowClient:
    """An MLflow client for tracking and registry at one address, with no state shared with other clients.

    What the user's environment says about MLflow stands. The first import takes seconds.
    """
    _configure()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _configure() -> None:
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # says each retry, address and all
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


# ------------------------------------------------------------------------- what a run has to look like (pure)


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
    values = {"score": end.score, "best_epoch": end.best_epoch, "epochs_done": end.epochs_done}
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
                self._note_progress(entry.time)
                keys = ("", key)
            case TestRead(_, _, metrics):
                step, moment = len(self.record.test_reads), _ms(entry.time)
                self._history += [Point(f"test_{n}", v, moment, step) for n, v in metrics.items()]
            case SweepPlanned():
                self._current = frozenset(entry.event.keys)
                self._note_progress(entry.time)
                keys = ("", *self.record.trials)
            case SessionStarted() | SessionEnded():
                self._ended = entry.time if isinstance(entry.event, SessionEnded) else None
                keys = ("", *self.record.trials)
            case TrialPlanned():
                self._param_names |= dict.fromkeys(entry.event.params)
        return keys

    def _note_progress(self, moment: float) -> None:
        """Adds the sweep's own metrics where they have changed, so that a session without news adds none."""
        trials = self.record.current()
        states = [trial.state for trial in trials]
        values: dict[str, float] = {
            "trials_finished": states.count("finished") + states.count("stopped"),
            "trials_failed": states.count("failed") + states.count("diverged"),
        }
        scores = [trial.score for trial in trials if trial.score is not None and math.isfinite(trial.score)]
        if scores and self.record.plan is not None:
            values["best_score"] = max(scores) if self.record.plan.mode == "max" else min(scores)
        if values != self._latest and any(values.values()):
            self._steps += 1
            self._history += [Point(name, value, _ms(moment), self._steps) for name, value in values.items()]
            self._latest = values

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
        is_current = key in self._current
        tags = {**self._identity(), **found.tags, TAG + "current": _text(is_current)}
        return dataclasses.replace(found, tags=tags, data=self._data(plan) if is_current else None)

    def _identity(self) -> dict[str, str]:
        return {TAG + "sweep": self._sweep.name, JOURNAL_TAG: self.journal_id()}

    def _sweep_snapshot(self, plan: SweepPlanned) -> Snapshot:
        code = self.record.exit_code
        statuses: dict[int | None, Status] = {None: "RUNNING", 0: "FINISHED", 4: "FINISHED", 130: "KILLED"}
        status = statuses.get(code, "FAILED")
        params = self._sweep_params(plan)
        tags = self._identity() | {TAG + "state": "interrupted" if status == "KILLED" else status.lower()}
        tags |= {TAG + "storage": str(self._layout.root), TAG + "current_space": params["space"]}
        if (champion := self.record.promoted) is not None:
            tags |= {TAG + "champion": champion.key, TAG + "registered_model": champion.registered_model}
            tags |= {TAG + "registered_version": champion.version}
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
            "precision": plan.precision,
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


# -------------------------------------------------------------------------------------- what MLflow has of it


@dataclass
class _KnownRun:
    """What MLflow is known to have of a run. `sent` holds only what this process wrote."""

    run_id: str
    status: str
    ended_ms: int | None
    params: set[str]
    tags: dict[str, str]
    has_data: bool
    sent: set[Point] = field(default_factory=set)


class Store:
    """The runs of one journal in MLflow. Every method talks to MLflow and may raise whatever it raises."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None) -> None:
        """Names the place; nothing is opened yet.

        Args:
            uri: The absolute tracking URI.
            experiment: The experiment's name; it is created if there is none.
            artifacts: Where a new experiment keeps its artifacts; None leaves it to the server.
        """
        self._uri = uri
        self._experiment = experiment
        self._artifacts = artifacts
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._runs: dict[str, _KnownRun] = {}

    def run_id(self, key: str) -> str | None:
        """The id of a run that exists."""
        return self._runs[key].run_id if key in self._runs else None

    @property
    def is_open(self) -> bool:
        """Whether it is known which runs exist."""
        return self._client is not None

    def open(self, journal_id: str) -> None:
        """Finds the runs that exist, so that none is created twice."""
        client = make_client(self._uri)
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            self._experiment_id = client.create_experiment(self._experiment, self._artifacts)
        else:
            self._experiment_id = found.experiment_id
        query = f"tags.`{JOURNAL_TAG}` = '{journal_id}'"
        token: str | None = None
        while token != "":
            page = client.search_runs(
                [self._experiment_id], query, max_results=_RUNS_A_PAGE, page_token=token
            )
            for run in page:
                self._runs.setdefault(run.data.tags.get(KEY_TAG, ""), _known(run))
            token = page.token or ""
        self._client = client

    def forget(self) -> None:
        """Forgets what exists: after a failure it is not known what arrived."""
        self._client = None
        self._runs = {}

    def deliver(self, key: str, snapshot: Snapshot) -> None:
        """Makes a run look like its snapshot, with no call at all where it does already."""
        if self._client is None:
            raise RuntimeError("open the store first")
        client = self._client
        if key not in self._runs:
            self._create(client, key, snapshot)
        run = self._runs[key]
        _write(client, run, snapshot)
        if snapshot.data is not None and not run.has_data:
            client.log_inputs(run.run_id, [_dataset(snapshot.data)])
            run.has_data = True
        if snapshot.status == "RUNNING":
            if run.status != "RUNNING":
                client.update_run(run.run_id, status="RUNNING")
        elif (run.status, run.ended_ms) != (snapshot.status, snapshot.ended_ms):
            client.set_terminated(run.run_id, snapshot.status, snapshot.ended_ms)
        run.status, run.ended_ms = snapshot.status, snapshot.ended_ms
        if snapshot.artifact is not None and snapshot.artifact.is_file():
            _keep(client, run, snapshot.artifact)

    def _create(self, client: MlflowClient, key: str, snapshot: Snapshot) -> None:
        tags = dict(snapshot.tags) | ({PARENT_TAG: self._runs[""].run_id} if key else {})
        run = client.create_run(self._experiment_id, snapshot.started_ms, tags, snapshot.name)
        self._runs[key] = _known(run)


def _known(run: Run) -> _KnownRun:
    has_data = run.inputs is not None and bool(run.inputs.dataset_inputs)
    info = run.info
    return _KnownRun(
        info.run_id, info.status, info.end_time, set(run.data.params), dict(run.data.tags), has_data
    )


def _write(client: MlflowClient, run: _KnownRun, snapshot: Snapshot) -> None:
    """Writes what the run lacks. The digest of the metrics comes with the last of them."""
    from mlflow.entities import Metric, Param, RunTag

    digest = hashlib.sha256(repr(snapshot.points).encode()).hexdigest()[:16]
    stale = dict.fromkeys([name for name in _PASSING_TAGS if run.tags.get(name)], "")
    tags = {**stale, **snapshot.tags, _DELIVERED_TAG: digest}
    short = {name: value[:_TAG_CHARACTERS] for name, value in tags.items()}
    changed = {name: value for name, value in short.items() if run.tags.get(name) != value}
    params = {name: value for name, value in snapshot.params.items() if name not in run.params}
    is_complete = run.tags.get(_DELIVERED_TAG) == digest
    points = [] if is_complete else [point for point in snapshot.points if point not in run.sent]
    metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in points]
    while len(metrics) > _POINTS_A_CALL:
        client.log_batch(run.run_id, metrics[:_POINTS_A_CALL], synchronous=True)
        metrics = metrics[_POINTS_A_CALL:]
    if metrics or params or changed:
        client.log_batch(
            run.run_id,
            metrics,
            [Param(name, value) for name, value in params.items()],
            [RunTag(name, value) for name, value in changed.items()],
            synchronous=True,
        )
    run.sent.update(points)
    run.params.update(params)
    run.tags.update(changed)


def _dataset(data: DataSet) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(data.name, data.digest, data.kind, data.source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _keep(client: MlflowClient, run: _KnownRun, artifact: Path) -> None:
    digest = sha256(artifact)
    if run.tags.get(_LOCK_TAG) == digest:
        return
    client.log_artifact(run.run_id, str(artifact))
    client.set_tag(run.run_id, _LOCK_TAG, digest)
    run.tags[_LOCK_TAG] = digest


# ------------------------------------------------------------------------------------------------- the thread


class Mirror:
    """Follows a journal in a thread and keeps its runs in MLflow up to date.

    What cannot be delivered is tried again, at growing intervals, until the mirror is closed. Events that
    pile up meanwhile are written together.

    Attributes:
        reason: Why the last delivery failed; empty if none did.
    """

    def __init__(self, sweep: Sweep, layout: Layout, entries: Sequence[Entry]) -> None:
        """Names what is mirrored where; nothing is read or opened yet.

        Args:
            sweep: The sweep; `sweep.tracking.uri` may be relative to the storage.
            layout: Where it lies.
            entries: `Journal.entries`, which may only grow.
        """
        uri = tracking_uri(sweep.tracking.uri, layout.storage)
        self.reason = ""
        self._entries = entries
        self._view = View(sweep, layout)
        self._store = Store(uri, sweep.experiment, artifact_location(uri, layout.storage))
        self._state = threading.Condition()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)
        self._read = 0
        self._pending: dict[str, None] = {}
        self._in_hand: str | None = None
        self._told: dict[str, str] = {}
        self._news: list[Tracked] = []
        self._wait_s = 0.0
        self._is_closing = False

    def start(self) -> None:
        """Begins to follow."""
        _configure()
        self._thread.start()

    def collect(self) -> list[Tracked]:
        """Run ids that have become known since the last call, and that the journal does not have yet."""
        with self._state:
            news, self._news = self._news, []
        return news

    def flush(self, timeout_s: float) -> tuple[str, ...]:
        """Waits until everything that has been journalled is in MLflow.

        Returns:
            The names of the runs that are not complete after this time; empty when all is well.
        """
        with self._state:
            self._wait_s = 0.0
            self._wake.set()
            self._state.wait_for(self._is_up_to_date, timeout_s if self._thread.is_alive() else 0.0)
            self._advance()
            late = {*self._pending, self._in_hand}
            keys = [key for key in ("", *self._view.record.trials) if key in late]
            return tuple(self._view.name(key) for key in keys if self._view.snapshot(key) is not None)

    def close(self, timeout_s: float) -> tuple[str, ...]:
        """The same as `flush`, then ends the thread; whatever the server does, a second after the timeout."""
        undelivered = self.flush(timeout_s)
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        return undelivered

    def _is_up_to_date(self) -> bool:
        return self._read == len(self._entries) and not self._pending and self._in_hand is None

    def _follow(self) -> None:
        while not self._is_closing:
            with self._state:
                self._advance()
            self._deliver_pending()
            with self._state:
                self._state.notify_all()
            self._wake.wait(self._wait_s or _POLL_S)
            self._wake.clear()

    def _advance(self) -> None:
        """Reads what the journal has got since; called with the lock held."""
        while self._read < len(self._entries):
            entry = self._entries[self._read]
            self._read += 1
            self._pending |= dict.fromkeys(self._view.apply(entry))

    def _deliver_pending(self) -> None:
        """Delivers one run after the other, until all are or one fails; that one comes last the next time."""
        is_first = True
        while not self._is_closing:
            with self._state:
                key = self._next_key()
            if key is None:
                return
            error = self._delivered(key)
            with self._state:
                self._in_hand = None
                if error is not None:
                    self._pending[key] = None
                    self.reason = error
                    self._wait_s = (
                        min(2 * self._wait_s, _LONGEST_WAIT_S) if is_first and self._wait_s else 1.0
                    )
                    return
                self._wait_s, is_first = 0.0, False
                self._note_run_id(key)

    def _next_key(self) -> str | None:
        """Takes the next run in hand; the parent comes first, since children name it."""
        if not self._pending:
            return None
        key = next(iter(self._pending))
        if self._store.run_id("") is None and self._view.snapshot("") is not None:
            key = ""
        self._pending.pop(key, None)
        self._in_hand = key
        return key

    def _delivered(self, key: str) -> str | None:
        """Delivers a run; returns the reason if that fails."""
        with self._state:
            snapshot, journal_id = self._view.snapshot(key), self._view.journal_id()
        if snapshot is None:
            return None
        try:
            if not self._store.is_open:
                self._store.open(journal_id)
            self._store.deliver(key, snapshot)
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on and the journal has it
            self._store.forget()
            lines = f"{type(error).__name__}: {error}".splitlines()
            return printable_uri(lines[0])[:_REASON_CHARACTERS]
        return None

    def _note_run_id(self, key: str) -> None:
        record = self._view.record
        run_id = self._store.run_id(key)
        known = record.trials[key].mlflow_run_id if key else record.mlflow_run_id
        if run_id is not None and run_id not in {known, self._told.get(key)}:
            self._told[key] = run_id
            self._news.append(Tracked(key, run_id))
