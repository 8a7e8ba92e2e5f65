"""What MLflow has of a sweep: finds the runs of a journal there, and writes what they lack."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.durable import sha256
from finetune_sweep.snapshot import JOURNAL_TAG, KEY_TAG, TAG, DataSet, Point, Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

PARENT_TAG: Final = "mlflow.parentRunId"

_SETTINGS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
"""MLflow reads them from the environment, some of them when it is imported; by default a server that is away
holds a call for four minutes."""
_REQUIRED: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""A call that MLflow's client itself makes again, because the answer was lost, creates a second run: whoever calls it
here looks first what has arrived."""

_DELIVERED_TAG: Final = TAG + "delivered"
_LOCK_TAG: Final = TAG + "lock_sha256"
_PASSING_TAGS: Final = tuple(
    TAG + name for name in ("failure", "failure_message", "not_finite", "stopped_early_at")
)
_POINTS_A_CALL: Final = 800
_RUNS_A_PAGE: Final = 1000
_TAG_CHARACTERS: Final = 5000


def make_client(uri: str) -> MlflowClient:
    """An MLflow client for tracking and registry at one address, with no state shared with other clients.

    What the user's environment says about MLflow stands, but for calls being made again. The first import takes
    seconds.
    """
    configure()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def configure() -> None:
    """Says to MLflow, before its first import, what the user's environment leaves open."""
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # says each retry, address and all
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_REQUIRED)


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
