from __future__ import annotations

import json
import math
from collections.abc import Sequence

from finetune_sweep.events import (
    CheckpointWritten,
    Entry,
    Evaluated,
    Event,
    Failure,
    SessionEnded,
    SessionStarted,
    SweepPlanned,
    Tracked,
    TrialEnded,
    TrialPlanned,
    UnitStarted,
    WorkerInfo,
)
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.report import status
from finetune_sweep.yamlio import Value

WORKER = WorkerInfo("here", 1, "cpu", 1, "", "node")
FIELDS = {
    "key",
    "config",
    "seed",
    "state",
    "epochs_done",
    "metrics",
    "best_epoch",
    "attempts",
    "mlflow_run_id",
    "stage",
}


def planned(key: str, rate: float, epochs: int, schedule: str = "constant") -> TrialPlanned:
    config: dict[str, Value] = {"learning_rate": rate, "epochs": epochs}
    params: dict[str, Value] = {**config, "lr_schedule.type": schedule}
    return TrialPlanned(key, f"learning_rate={rate:g} epochs={epochs}", config, params, 0)


def evaluated(keys: Sequence[str], epoch: int, accuracy: float) -> Evaluated:
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
    return Evaluated(keys[-1], tuple(keys), epoch, 10 * epoch, 0.5, 1e-4, metrics, metrics, 9.0, 1.0, 16)


def ended(key: str, score: float, epoch: int) -> TrialEnded:
    return TrialEnded(key, "finished", epoch, epoch, score)


def record_of(*events: Event) -> SweepRecord:
    return replay(Entry(float(second), event) for second, event in enumerate(events, 1))


def start(*keys: str) -> SweepPlanned:
    return SweepPlanned("text-classification", "data", "accuracy", "max", "best", "fp32", "cpu", keys)


# Two trajectories: a2 and a4 share one, b4 is alone.
BEGIN: tuple[Event, ...] = (
    SessionStarted(1, "here", 1, "0", {}),
    planned("a2", 1e-4, 2),
    planned("a4", 1e-4, 4),
    planned("b4", 2e-4, 4),
    start("a2", "a4", "b4"),
)
HALF: tuple[Event, ...] = (
    *BEGIN,
    UnitStarted("a4", ("a2", "a4"), WORKER),
    UnitStarted("b4", ("b4",), WORKER),
    evaluated(["a2", "a4"], 1, 0.6),
    evaluated(["a2", "a4"], 2, 0.8),
    ended("a2", 0.8, 2),
    evaluated(["b4"], 1, 0.5),
)
DONE: tuple[Event, ...] = (*HALF, ended("a4", 0.8, 2), ended("b4", 0.5, 1))


def test_a_sweep_that_was_only_planned_is_planned() -> None:
    report = status(record_of(*BEGIN), "s", locked=False)
    assert (report.state, report.best, report.seconds_left) == ("planned", None, None)
    assert report.counts == {"planned": 3}


def test_an_empty_journal_is_a_planned_sweep_without_trials() -> None:
    assert status(record_of(), "s", locked=False).to_json() == {
        "sweep": "s",
        "state": "planned",
        "trials": [],
        "best": None,
        "verdict": None,
    }


def test_the_lock_tells_running_from_interrupted() -> None:
    record = record_of(*HALF)
    assert status(record, "s", locked=True).state == "running"
    assert status(record, "s", locked=False).state == "interrupted"


def test_ctrl_c_and_max_hours_leave_an_interrupted_sweep_and_an_error_a_failed_one() -> None:
    for code, state in ((130, "interrupted"), (0, "interrupted"), (1, "failed")):
        assert status(record_of(*HALF, SessionEnded(code)), "s", locked=False).state == state


def test_a_sweep_whose_trials_all_ended_is_finished_if_one_has_a_result() -> None:
    assert status(record_of(*DONE, SessionEnded(0)), "s", locked=False).state == "finished"
    failures = [TrialEnded(key, "failed", failure=Failure("fault", "no")) for key in ("a2", "a4", "b4")]
    assert status(record_of(*BEGIN, *failures, SessionEnded(1)), "s", locked=False).state == "failed"


def test_the_json_has_the_documented_fields_and_the_best_has_its_score() -> None:
    content = status(record_of(*HALF, Tracked("a2", "run")), "s", locked=True).to_json()
    assert list(content) == ["sweep", "state", "trials", "best", "verdict"]
    trials, best = content["trials"], content["best"]
    assert isinstance(trials, list)
    assert isinstance(best, dict)
    assert all(isinstance(trial, dict) and set(trial) == FIELDS for trial in trials)
    assert set(best) == FIELDS | {"score"}
    assert best == {
        "key": "a2",
        "config": {"learning_rate": 1e-4, "epochs": 2},
        "seed": 0,
        "state": "finished",
        "epochs_done": 2,
        "metrics": {"accuracy": 0.8, "loss": 1 - 0.8},
        "best_epoch": 2,
        "attempts": 1,
        "mlflow_run_id": "run",
        "stage": "search",
        "score": 0.8,
    }


def test_numbers_that_json_does_not_have_are_null() -> None:
    diverged = TrialEnded("b4", "diverged", 2, failure=Failure("diverged", "the loss is nan"))
    content = status(record_of(*HALF, evaluated(["b4"], 2, math.nan), diverged), "s", locked=False).to_json()
    text = json.dumps(content, allow_nan=False)
    assert '"accuracy": null' in text


def test_trials_that_the_file_dropped_come_last_and_say_so() -> None:
    report = status(record_of(*DONE, start("b4")), "s", locked=False)
    assert [(trial.key, trial.to_json().get("current")) for trial in report.trials] == [
        ("b4", None),
        ("a2", False),
        ("a4", False),
    ]
    assert report.best is not None
    assert report.best.key == "b4"
    assert report.ended == 1


def test_shared_epochs_are_counted_once_in_the_sweep_and_in_full_for_each_trial() -> None:
    report = status(record_of(*HALF), "s", locked=True)
    assert report.train_seconds == 30.0
    assert [trial.seconds for trial in report.trials] == [20.0, 20.0, 10.0]


def test_the_time_left_is_epochs_left_over_slots_and_at_least_the_longest_trajectory() -> None:
    record = record_of(*HALF)
    # 10 s an epoch; two epochs are left of a4, three of b4.
    assert status(record, "s", locked=True).seconds_left == 30.0
    assert status(record, "s", locked=True, slots=1).seconds_left == 50.0


def test_the_time_left_is_unknown_before_anything_was_measured() -> None:
    record = record_of(*BEGIN, UnitStarted("a4", ("a2", "a4"), WORKER))
    assert status(record, "s", locked=True, slots=2).seconds_left is None


def test_trials_share_a_trajectory_only_under_a_constant_schedule() -> None:
    linear = (planned("c2", 1e-4, 2, "linear"), planned("c4", 1e-4, 4, "linear"), start("c2", "c4"))
    assert [t.trajectory for t in status(record_of(*BEGIN), "s", locked=False).trials] == ["a4", "a4", "b4"]
    assert [t.trajectory for t in status(record_of(*linear), "s", locked=False).trials] == ["c2", "c4"]


def test_the_checkpoint_is_the_one_that_exists_now() -> None:
    report = status(record_of(*DONE, CheckpointWritten("b4", "trials/b4/epoch-0001")), "s", locked=False)
    assert report.trial("b4").checkpoint == "trials/b4/epoch-0001"
    assert report.trial("a2").checkpoint is None


def test_dimensions_are_those_of_all_configurations_in_their_order() -> None:
    conditional = TrialPlanned("d", "", {"optimizer": "sgd"}, {"epochs": 1}, 0)
    report = status(record_of(*BEGIN, conditional, start("a2", "d")), "s", locked=False)
    assert report.dimensions == ("learning_rate", "epochs", "optimizer")
