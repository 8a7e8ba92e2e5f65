"""What can happen in a sweep: the events of its journal, and each as a line of a file."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_sweep.errors import FailureClass
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

    `precision` and `device` are the resolved ones; `fingerprint` is that of the training and validation data; `search`
    is the type of the search.
    """

    task: str
    fingerprint: str
    metric: str
    mode: Literal["max", "min"]
    epoch: Literal["best", "last"]
    precision: str
    device: str
    keys: tuple[str, ...]
    search: str = ""


@dataclass(frozen=True)
class FinalistsPlanned:
    """The best configurations, which are run again on fresh seeds, and the baseline beside them.

    `candidates` has, by the key of the trial that made each a finalist, the keys of its runs in the order of the seeds;
    best first, the baseline last. `baseline` is the key under which it stands there; empty if there is none.
    """

    baseline: str
    candidates: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Decided:
    """What the finalists came to.

    `winner` and `baseline` are those of their runs with the best score; of the baseline it is empty if there is none.
    `difference` and the interval from `low` to `high` are the winner's mean minus the baseline's, positive where it is
    better. `scores` has `mean`, `spread`, `low` and `high` of each candidate.
    """

    winner: str
    baseline: str
    beats_baseline: bool
    difference: float | None
    low: float | None
    high: float | None
    told_apart: bool
    sentence: str
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class UnitStarted:
    """A worker began to train the trials of a unit."""

    unit: str
    keys: tuple[str, ...]
    worker: WorkerInfo


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a trajectory, for all of its trials that reach this epoch.

    `metrics` are those of the validation split, `train_metrics` those of the training examples, each at the moment
    it was trained on; times are seconds.
    """

    unit: str
    keys: tuple[str, ...]
    epoch: int
    step: int
    train_loss: float
    learning_rate: float
    metrics: Metrics
    train_metrics: Metrics
    train_seconds: float
    eval_seconds: float
    micro_batch: int


@dataclass(frozen=True)
class TrialEnded:
    """A trial reached its end. `checkpoint` is a path relative to the sweep's folder.

    `reused_from` names the sweep of the same storage that trained it, if this one did not.
    """

    key: str
    state: TrialState
    epochs_done: int = 0
    best_epoch: int | None = None
    score: float | None = None
    stopped_early_at: int | None = None
    checkpoint: str | None = None
    failure: Failure | None = None
    reused_from: str = ""


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
    """The test split is about to be read for a trial's weights after an epoch: journalled before it is.

    `is_baseline` tells a champion from the baseline beside it.
    """

    __test__ = False

    key: str
    epoch: int
    fingerprint: str
    is_baseline: bool = False


@dataclass(frozen=True)
class TestRead:
    """The test split was read for a champion, or for the baseline beside it."""

    __test__ = False

    key: str
    epoch: int
    fingerprint: str
    metrics: Metrics
    is_baseline: bool = False


@dataclass(frozen=True)
class Promoted:
    """A trial's weights after an epoch lie in `best/`. `version` is the registry's; empty until it is registered.

    `instead_of` is the trial that would have been promoted by the rule, if the user preferred this one. `alias` is the
    one that the version was given, and `note` says why.
    """

    key: str
    epoch: int
    metrics: Metrics
    test_metrics: Metrics
    registered_model: str
    version: str
    instead_of: str = ""
    alias: str = ""
    note: str = ""


@dataclass(frozen=True)
class SessionEnded:
    """A driver left the sweep, with this exit code."""

    exit_code: int


Event = (
    SessionStarted
    | TrialPlanned
    | Suggested
    | SweepPlanned
    | FinalistsPlanned
    | Decided
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
        FinalistsPlanned,
        Decided,
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
    if "candidates" in body:
        body["candidates"] = {name: tuple(keys) for name, keys in body["candidates"].items()}
    return Entry(moment, kind(**body))
