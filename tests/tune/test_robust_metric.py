"""A sweep by a metric of perturbed rows: what is evaluated, recorded, and called by another name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.events import Evaluated, TrialEnded
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS
from finetune_sweep.train import robustness
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SPACE = "{learning_rate: [1e-2], epochs: [2], freeze_depth: [0, 1]}"


def plan_by(metric: str, write_sweep: WriteSweep, *overrides: str) -> Plan:
    return make_plan(load_sweep(write_sweep(space=SPACE), [f"metric={metric}", *overrides], check=check))


def evaluated(plan: Plan, folder: Path) -> list[tuple[Evaluated, TrialEnded]]:
    """The last evaluation and the end of each trial."""
    loaded, layout, found = Loaded(plan), Layout(folder, "tiny"), []
    for unit in plan.units:
        events = [event for moment in run_unit(Assignment(unit), plan, layout, loaded) for event in moment]
        found.append(
            (
                [event for event in events if isinstance(event, Evaluated)][-1],
                next(event for event in events if isinstance(event, TrialEnded)),
            )
        )
    return found


def test_perturbed_rows_are_measured_at_each_evaluation(write_sweep: WriteSweep, tmp_path: Path) -> None:
    plan = plan_by("robust_accuracy", write_sweep)
    assert plan.mode == "max"
    for last, ended in evaluated(plan, tmp_path / "robust"):
        assert ended.state == "finished"
        assert ended.score == max(last.metrics["robust_accuracy"], ended.score or 0.0)
        assert set(last.metrics) == {*TASKS["text-classification"].metrics} | {
            f"robust_{name}" for name in TASKS["text-classification"].metrics
        }
        assert set(last.train_metrics) == set(TASKS["text-classification"].metrics)


def test_the_training_and_the_clean_metrics_are_those_of_the_plain_metric(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    robust = evaluated(plan_by("robust_accuracy", write_sweep), tmp_path / "robust")
    plain = evaluated(plan_by("accuracy", write_sweep), tmp_path / "plain")

    for (left, _), (right, _) in zip(robust, plain, strict=True):
        assert left.train_loss == right.train_loss
        assert left.metrics["accuracy"] == right.metrics["accuracy"]
        assert left.metrics["loss"] == pytest.approx(right.metrics["loss"], abs=1e-5)


def test_kept_states_are_those_of_the_rows_at_hand(write_sweep: WriteSweep, tmp_path: Path) -> None:
    training = "training.augment={swap: 0.3, copies: 2}"
    on = plan_by("robust_accuracy", write_sweep, training)
    off = plan_by("robust_accuracy", write_sweep, training, "speed.prefix_cache=false")
    evaluated(plan_by("accuracy", write_sweep), tmp_path / "before")
    pairs = zip(evaluated(on, tmp_path / "on"), evaluated(off, tmp_path / "off"), strict=True)
    for (left, _), (right, _) in pairs:
        assert left.train_loss == pytest.approx(right.train_loss, abs=1e-5)
        assert left.metrics["robust_loss"] == pytest.approx(right.metrics["robust_loss"], abs=1e-5)


def test_a_robust_metric_names_other_trials(write_sweep: WriteSweep) -> None:
    plain, robust, other = (
        {trial.key for trial in plan_by(metric, write_sweep).trials}
        for metric in ("accuracy", "robust_accuracy", "robust_loss")
    )
    assert robust == other
    assert not plain & robust


def test_a_robust_metric_that_there_is_not_is_told(write_sweep: WriteSweep) -> None:
    with pytest.raises(UserError, match=r"got 'robust_acuracy' \(did you mean 'robust_accuracy'\?\)"):
        plan_by("robust_acuracy", write_sweep)


def test_all_models_are_measured_on_the_same_texts(write_sweep: WriteSweep) -> None:
    plan = plan_by("robust_accuracy", write_sweep)
    rows = plan.rows["validation"]
    for trial in plan.trials:
        assert len(Loaded(plan).job(trial)[0].validation) == robustness.BLOCKS * rows
