from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep.events import (
    Entry,
    Evaluated,
    Event,
    Failure,
    Promoted,
    SessionEnded,
    SweepPlanned,
    TestRead,
    Tracked,
    TrialEnded,
    TrialPlanned,
    UnitStarted,
    WorkerInfo,
)
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.lock import Owner
from finetune_sweep.mlflow_store import PARENT_TAG, configure, make_client
from finetune_sweep.mlflow_uri import tracking_uri
from finetune_sweep.snapshot import JOURNAL_TAG, KEY_TAG, TAG, View
from finetune_sweep.space import Choice, Dimension, FloatRange, Space
from finetune_sweep.spec import Data, Metric, Sweep, Tracking
from finetune_sweep.tracking import Mirror

if TYPE_CHECKING:
    from mlflow.entities import Run

WORKER = WorkerInfo("host-1", 7, "cpu", 1, "", "node-1")
FINGERPRINT = "ab" * 32
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    make_client(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def layout(tmp_path: Path, migrated: Path) -> Layout:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return Layout(tmp_path / "runs", "bert")


def make_sweep(uri: str = "sqlite:///mlflow.db") -> Sweep:
    rates = Dimension("learning_rate", Choice((2e-5, 3e-5)))
    decay = Dimension("weight_decay", FloatRange(0.0, 0.1), {"learning_rate": (2e-5,)})
    return Sweep(
        name="bert",
        task="text-classification",
        model="example:minilm-l6",
        data=Data(source="example:acl-aspects"),
        space=Space((rates, decay)),
        metric=Metric(name="accuracy"),
        tracking=Tracking(uri=uri, experiment="experiment of bert"),
    )


def open_journal(layout: Layout, token: int = 1) -> Journal:
    return Journal(layout, Owner("host-0", os.getpid(), time.time(), token))


def planned(*keys: str, **params: str) -> list[Event]:
    """Trials with a different label each, and a plan of them."""
    trials = [
        TrialPlanned(key, f"learning_rate={n}e-05", {"learning_rate": n}, {"epochs": 2, "lr": n, **params}, 0)
        for n, key in enumerate(keys, 1)
    ]
    plan = SweepPlanned("text-classification", FINGERPRINT, "accuracy", "max", "best", "fp32", "cpu", keys)
    return [*trials, plan]


def evaluated(key: str, epoch: int, accuracy: float, loss: float = 0.5) -> Evaluated:
    metrics = {"accuracy": accuracy, "loss": loss}
    return Evaluated(key, (key,), epoch, 10 * epoch, loss, 2e-5, metrics, metrics, 1.5, 0.5, 16)


def trained(key: str, *scores: float) -> list[Event]:
    best = 1 + scores.index(max(scores))
    evaluations = [evaluated(key, epoch, score) for epoch, score in enumerate(scores, 1)]
    end = TrialEnded(key, "finished", len(scores), best, max(scores))
    return [UnitStarted(key, (key,), WORKER), *evaluations, end]


def mirror(layout: Layout, entries: Sequence[Entry]) -> list[Tracked]:
    """Mirrors entries until all is delivered; returns the run ids that became known."""
    follower = Mirror(make_sweep(), layout, entries)
    follower.start()
    assert follower.close(LIMIT_S) == (), follower.reason
    return follower.collect()


def runs_of(layout: Layout) -> tuple[Run, dict[str, Run]]:
    """The parent run, and the child runs by key. There is one parent, and one child a key."""
    client = make_client(tracking_uri("sqlite:///mlflow.db", layout.storage))
    experiment = client.get_experiment_by_name("experiment of bert")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    (parent,) = [run for run in runs if PARENT_TAG not in run.data.tags]
    children = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent.info.run_id]
    assert len(children) == len(runs) - 1
    by_key = {run.data.tags[KEY_TAG]: run for run in children}
    assert len(by_key) == len(children)
    return parent, by_key


def everything(layout: Layout) -> dict[str, object]:
    """All that MLflow has of the sweep, each metric with its whole history."""
    client = make_client(tracking_uri("sqlite:///mlflow.db", layout.storage))
    parent, children = runs_of(layout)
    found: dict[str, object] = {}
    for key, run in {"": parent, **children}.items():
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        values = {
            name: sorted((m.step, m.timestamp, m.value) for m in history)
            for name, history in histories.items()
        }
        tags = {name: value for name, value in run.data.tags.items() if name.startswith(TAG)}
        inputs = [given.dataset.digest for given in run.inputs.dataset_inputs] if run.inputs else []
        found[key] = (values, run.data.params, tags, run.info.status, run.info.end_time, inputs)
    return found


# --------------------------------------------------------------------------------------------------- the runs


def test_every_trial_becomes_a_child_run_that_can_be_compared(layout: Layout) -> None:
    journal = open_journal(layout)
    layout.resolved.write_text("name: bert\n")
    journal.append(*planned("a", "b"), *trained("a", 0.5, 0.75), *trained("b", 0.6, 0.55), SessionEnded(0))
    tracked = mirror(layout, journal.entries)
    parent, children = runs_of(layout)

    a, b = children["a"], children["b"]
    assert {"": parent.info.run_id, "a": a.info.run_id, "b": b.info.run_id} == {
        t.key: t.run_id for t in tracked
    }
    assert [a.info.run_name, b.info.run_name] == ["learning_rate=1e-05", "learning_rate=2e-05"]
    assert a.data.params == {"epochs": "2", "lr": "1"}
    assert a.data.params.keys() == b.data.params.keys()
    assert a.data.metrics.keys() == b.data.metrics.keys()
    assert a.data.metrics["validation_accuracy"] == 0.75
    assert (b.data.metrics["score"], b.data.metrics["best_epoch"], b.data.metrics["epochs_done"]) == (
        0.6,
        1,
        2,
    )
    assert b.data.metrics["best_accuracy"] == 0.6
    assert {run.info.status for run in (parent, a, b)} == {"FINISHED"}
    assert a.data.tags[TAG + "host"] == "host-1"
    record = journal.record.trials["a"]
    assert record.started is not None
    assert record.ended is not None
    assert (a.info.start_time, a.info.end_time) == (int(record.started * 1000), int(record.ended * 1000))


def test_metrics_have_the_epoch_as_step_and_the_time_of_the_journal(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), *trained("a", 0.5, 0.75))
    mirror(layout, journal.entries)
    client = make_client(tracking_uri("sqlite:///mlflow.db", layout.storage))
    history = client.get_metric_history(runs_of(layout)[1]["a"].info.run_id, "validation_accuracy")
    times = journal.record.trials["a"].evaluation_times
    expected = [(1, int(times[0] * 1000), 0.5), (2, int(times[1] * 1000), 0.75)]
    assert sorted((m.step, m.timestamp, m.value) for m in history) == expected


def test_a_call_whose_answer_is_lost_is_not_made_again_by_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    configure()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_what_is_told_of_a_sweep_is_what_counting_after_each_trial_would_tell(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 trials, of which some diverge, and some fail and are tried again at once; counting after each is slow."""
    keys = [f"{n:03d}" for n in range(400)]
    events = planned(*keys)
    for n, key in enumerate(keys):
        failure = Failure("diverged" if n % 11 == 1 else "fault", "a reason")
        end: list[Event] = [TrialEnded(key, "diverged" if n % 11 == 1 else "failed", failure=failure)]
        again = trained(key, (n * 7919 % 1000) / 1000 * n / 400)
        events += end if n % 11 == 1 else [*end, *again] if n % 7 == 3 else again
    entries = [Entry(float(n), event) for n, event in enumerate(events)]

    def told() -> list[tuple[str, float, int]]:
        view = View(make_sweep(), layout)
        for entry in entries:
            view.apply(entry)
        snapshot = view.snapshot("")
        assert snapshot is not None
        return [(point.name, point.value, point.step) for point in snapshot.points]

    sparingly = told()
    monkeypatch.setattr(View, "_may_be_news", lambda *_: True)
    assert sparingly == told()
    assert len(sparingly) > 100


def test_what_the_parent_run_tells_hardly_grows_with_the_trials(layout: Layout) -> None:
    def told(count: int, prefix: str) -> int:
        own = Layout(layout.storage, prefix)
        journal = open_journal(own)
        names = [f"{prefix}{number}" for number in range(count)]
        ended = [event for name in names for event in trained(name, 0.5)]
        journal.append(*planned(*names), *ended, SessionEnded(0))
        view = View(make_sweep(), own)
        for entry in journal.entries:
            view.apply(entry)
        parent = view.snapshot("")
        assert parent is not None
        latest = {point.name: point.value for point in parent.points}
        assert latest["trials_finished"] == count
        return len(parent.points)

    few, many = told(20, "few"), told(2000, "many")
    assert few == 3 * 20
    assert many < 20 * few


def test_the_parent_run_shows_the_sweep_its_data_and_its_lock_file(layout: Layout) -> None:
    journal = open_journal(layout)
    layout.resolved.write_text("name: bert\n")
    journal.append(*planned("a", "b"), *trained("a", 0.5), *trained("b", 0.75))
    journal.append(TestRead("b", 1, "cd", {"accuracy": 0.7}))
    journal.append(Promoted("b", 1, {"accuracy": 0.75}, {"accuracy": 0.7}, "bert", "3"), SessionEnded(0))
    mirror(layout, journal.entries)
    parent, children = runs_of(layout)

    assert parent.info.run_name == "bert"
    params = parent.data.params
    assert (params["metric"], params["search"], params["model"]) == ("accuracy", "grid", "example:minilm-l6")
    assert params["space"].startswith("learning_rate: [2e-05,3e-05]; weight_decay: {")
    assert all(params.values())
    metrics = parent.data.metrics
    assert (metrics["best_score"], metrics["trials_finished"], metrics["trials_failed"]) == (0.75, 2, 0)
    assert metrics["test_accuracy"] == 0.7
    assert (parent.data.tags[TAG + "champion"], parent.data.tags[TAG + "registered_version"]) == ("b", "3")
    for run in (parent, *children.values()):
        assert run.inputs is not None
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("acl-aspects", FINGERPRINT[:36])
        assert json.loads(given.dataset.source) == {"uri": "example:acl-aspects"}
    kept = layout.storage.parent / "mlartifacts" / parent.info.run_id / "artifacts" / "sweep.lock.yaml"
    assert kept.read_text() == "name: bert\n"
    assert not (layout.storage.parent / "mlruns").exists()


def test_trials_without_a_result_are_failed_and_say_why(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a", "b"), UnitStarted("a", ("a", "b"), WORKER))
    journal.append(evaluated("a", 1, 0.5), evaluated("a", 2, 0.5, math.inf))
    journal.append(TrialEnded("a", "diverged", 2, failure=Failure("diverged", "the loss is inf")))
    journal.append(TrialEnded("b", "failed", 0, failure=Failure("out_of_memory", "m" * 9000)))
    mirror(layout, journal.entries)
    parent, children = runs_of(layout)

    a, b = children["a"], children["b"]
    assert (a.info.status, b.info.status) == ("FAILED", "FAILED")
    assert (a.data.tags[TAG + "failure"], a.data.tags[TAG + "failure_message"]) == (
        "diverged",
        "the loss is inf",
    )
    assert b.data.tags[TAG + "failure"] == "out_of_memory"
    assert a.data.metrics["validation_loss"] == 0.5
    assert a.data.tags[TAG + "not_finite"] == "validation_loss=inf at 2, train_loss=inf at 2"
    assert all(math.isfinite(value) and value < 1e300 for value in a.data.metrics.values())
    assert parent.data.metrics == {"trials_finished": 0, "trials_failed": 2}


def test_a_trial_that_succeeds_the_second_time_keeps_no_trace_of_its_failure(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), UnitStarted("a", ("a",), WORKER))
    journal.append(TrialEnded("a", "failed", 0, failure=Failure("fault", "a bug")))
    mirror(layout, journal.entries)
    journal.append(*trained("a", 0.5))
    mirror(layout, journal.entries)
    child = runs_of(layout)[1]["a"]
    assert (child.info.status, child.data.tags[TAG + "failure"]) == ("FINISHED", "")


def test_params_are_the_same_for_all_trials_also_for_earlier_ones(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), *trained("a", 0.5))
    mirror(layout, journal.entries)
    journal.append(*planned("a", "b", patience="2"), *trained("b", 0.5))
    mirror(layout, journal.entries)
    children = runs_of(layout)[1]
    assert children["a"].data.params == {"epochs": "2", "lr": "1", "patience": "none"}
    assert children["b"].data.params == {"epochs": "2", "lr": "2", "patience": "2"}


def test_trials_that_left_the_plan_stay_and_are_marked(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a", "b"), *trained("a", 0.9), *trained("b", 0.5), SessionEnded(0))
    mirror(layout, journal.entries)
    journal = open_journal(layout, 2)
    journal.append(*planned("b"), SessionEnded(0))
    mirror(layout, journal.entries)
    parent, children = runs_of(layout)
    assert {key: run.data.tags[TAG + "current"] for key, run in children.items()} == {
        "a": "false",
        "b": "true",
    }
    assert parent.data.metrics["best_score"] == 0.5


# -------------------------------------------------------------------------------- again, interrupted, resumed


def test_mirroring_the_same_journal_again_adds_nothing(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a", "b"), *trained("a", 0.5, 0.75), *trained("b", 0.6), SessionEnded(0))
    journal.append(*mirror(layout, journal.entries))
    before = everything(layout)
    assert mirror(layout, journal.entries) == []
    assert everything(layout) == before


def test_a_session_without_news_adds_no_metric(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), *trained("a", 0.5, 0.75), SessionEnded(0))
    mirror(layout, journal.entries)
    before = everything(layout)
    journal = open_journal(layout, 2)
    journal.append(*planned("a"), SessionEnded(0))
    mirror(layout, journal.entries)
    after = everything(layout)
    assert after["a"] == before["a"]
    assert isinstance(after[""], tuple)
    assert isinstance(before[""], tuple)
    assert after[""][0] == before[""][0]


@pytest.mark.parametrize("cuts", [(4, 6), (5, 7, 8), (3, 4, 9)])
def test_a_mirror_that_ended_anywhere_is_continued(
    layout: Layout, migrated: Path, cuts: tuple[int, ...]
) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a", "b"), *trained("a", 0.5, 0.75), *trained("b", 0.6), SessionEnded(0))
    mirror(layout, journal.entries)
    in_one_go = everything(layout)
    shutil.copy(migrated, layout.storage.parent / "mlflow.db")
    for cut in (*cuts, len(journal.entries)):
        mirror(layout, journal.entries[:cut])
    assert everything(layout) == in_one_go


def test_runs_that_were_created_but_not_filled_are_found_and_filled(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), *trained("a", 0.5, 0.75))
    mirror(layout, journal.entries)
    parent, children = runs_of(layout)
    client = make_client(tracking_uri("sqlite:///mlflow.db", layout.storage))
    client.delete_run(children["a"].info.run_id)
    identity = {name: children["a"].data.tags[name] for name in (JOURNAL_TAG, KEY_TAG, PARENT_TAG)}
    empty = client.create_run(parent.info.experiment_id, tags=identity)
    mirror(layout, journal.entries)
    child = runs_of(layout)[1]["a"]
    assert child.info.run_id == empty.info.run_id
    assert child.data.metrics["best_accuracy"] == 0.75
    assert child.info.status == "FINISHED"
    assert child.inputs is not None
    assert child.inputs.dataset_inputs


def test_a_journal_begun_afresh_gets_runs_of_its_own(layout: Layout) -> None:
    for _ in range(2):
        journal = open_journal(layout)
        journal.append(*planned("a"), *trained("a", 0.5))
        tracked = mirror(layout, journal.entries)
        assert [news.key for news in tracked] == ["", "a"]
        shutil.rmtree(layout.root)


def test_an_interrupted_trial_is_killed_and_runs_again(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), UnitStarted("a", ("a",), WORKER), evaluated("a", 1, 0.5))
    mirror(layout, journal.entries)
    assert runs_of(layout)[1]["a"].info.status == "RUNNING"

    journal.append(SessionEnded(130))
    mirror(layout, journal.entries)
    parent, children = runs_of(layout)
    assert (parent.info.status, children["a"].info.status) == ("KILLED", "KILLED")
    assert children["a"].data.tags[TAG + "state"] == "interrupted"
    assert children["a"].info.end_time == int(journal.record.trials["a"].evaluation_times[0] * 1000)

    journal = open_journal(layout, 2)
    journal.append(*planned("a"), UnitStarted("a", ("a",), WORKER))
    mirror(layout, journal.entries)
    assert runs_of(layout)[1]["a"].info.status == "RUNNING"
    assert runs_of(layout)[0].info.status == "RUNNING"


def test_a_trial_whose_driver_was_killed_is_killed_when_the_next_one_starts(layout: Layout) -> None:
    open_journal(layout).append(*planned("a"), UnitStarted("a", ("a",), WORKER), evaluated("a", 1, 0.5))
    mirror(layout, open_journal(layout, 2).entries)
    assert runs_of(layout)[1]["a"].info.status == "KILLED"


def test_trials_that_never_ran_have_no_run(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a", "b"), *trained("a", 0.5))
    mirror(layout, journal.entries)
    assert list(runs_of(layout)[1]) == ["a"]


def test_a_mirror_follows_while_the_journal_grows(layout: Layout) -> None:
    journal = open_journal(layout)
    follower = Mirror(make_sweep(), layout, journal.entries)
    follower.start()
    assert follower.flush(LIMIT_S) == ()
    journal.append(*planned("a"), *trained("a", 0.5))
    assert follower.flush(LIMIT_S) == ()
    tracked = follower.collect()
    assert [news.key for news in tracked] == ["", "a"]
    journal.append(*tracked, SessionEnded(0))
    assert follower.close(LIMIT_S) == ()
    assert follower.collect() == []
    assert runs_of(layout)[0].info.status == "FINISHED"


def test_more_metrics_than_one_call_takes(layout: Layout) -> None:
    journal = open_journal(layout)
    scores = [epoch / 500 for epoch in range(1, 251)]
    journal.append(*planned("a"), *trained("a", *scores))
    mirror(layout, journal.entries)
    client = make_client(tracking_uri("sqlite:///mlflow.db", layout.storage))
    history = client.get_metric_history(runs_of(layout)[1]["a"].info.run_id, "validation_accuracy")
    assert sorted(metric.value for metric in history) == scores


# -------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def server(folder: Path, port: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's own web application, in a thread, on the database in a folder."""
    patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/mlflow.db")
    patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "kept"))
    patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    for store in ("_tracking_store", "_artifact_repo"):
        patch.setattr(handlers, store, None)
    # The server gives its address to its whole process, which here is that of the tests.
    patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    patch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        patch.setenv(name, f"sqlite:///{folder}/mlflow.db")
    listener = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # MLflow's server
def test_a_server_that_is_away_holds_nothing_up_and_is_given_all_when_it_is_back(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    journal = open_journal(layout)
    layout.resolved.write_text("name: bert\n")
    journal.append(*planned("a"), *trained("a", 0.5))
    follower = Mirror(make_sweep(f"http://me:s3cr3t@127.0.0.1:{port}"), layout, journal.entries)
    follower.start()
    begin = time.monotonic()
    undelivered = follower.flush(1.0)
    assert time.monotonic() - begin < 30
    assert undelivered == ("sweep bert", "trial a (learning_rate=1e-05)")
    assert str(port) in follower.reason
    assert "s3cr3t" not in follower.reason
    with server(layout.storage.parent, port, monkeypatch):
        assert follower.close(LIMIT_S) == (), follower.reason
    parent, children = runs_of(layout)
    assert (parent.info.status, children["a"].info.status) == ("RUNNING", "FINISHED")
    assert parent.info.artifact_uri.startswith("mlflow-artifacts:")
    assert list((layout.storage.parent / "kept").rglob("sweep.lock.yaml"))


def test_a_mirror_that_was_never_started_can_be_closed(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"))
    assert Mirror(make_sweep(), layout, journal.entries).close(LIMIT_S) == ("sweep bert",)


def test_a_mirror_closed_without_its_server_leaves_the_rest_to_the_next(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"), *trained("a", 0.5), SessionEnded(4))
    follower = Mirror(make_sweep(f"http://127.0.0.1:{free_port()}"), layout, journal.entries)
    follower.start()
    begin = time.monotonic()
    assert follower.close(1.0) == ("sweep bert", "trial a (learning_rate=1e-05)")
    assert time.monotonic() - begin < 30
    mirror(layout, journal.entries)
    assert runs_of(layout)[1]["a"].data.metrics["score"] == 0.5
