"""The benchmark of the two trainers: both have the same settings, and the table pairs what both have trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.material import make
from benchmarks.peers.recipe import Point
from benchmarks.suite import workload_file
from benchmarks.trainers import BATCH_SIZE, EPOCHS, WORKLOAD, ends_of_ours, fixed_of, plan_of, rows, train_one
from finetune_sweep.layout import Layout

RATE = 1e-3


@pytest.fixture
def sets(tiny_model: Path, reviews: Path) -> tuple[str, ...]:
    rows = "data.columns={text: review, label: verdict}", "data.limit={train: 40, validation: 16}"
    return (f"model={tiny_model}", f"data.source={reviews}", "data.max_length=16", *rows)


def test_both_sides_have_the_same_settings(sets: tuple[str, ...], tmp_path: Path) -> None:
    plan = plan_of([RATE], tmp_path, sets)
    (trial,) = plan.trials
    recipe = make(workload_file(WORKLOAD), tmp_path / "material", sets)
    theirs = fixed_of(recipe) | {"learning_rate": RATE}
    ours = {
        name: getattr(trial.training, name) for name in theirs if name not in {"lr_schedule", "warmup_steps"}
    }
    schedule = trial.training.lr_schedule
    assert theirs == ours | {"lr_schedule": schedule.type, "warmup_steps": schedule.warmup_steps}
    assert (ours["batch_size"], ours["epochs"], ours["freeze_depth"]) == (BATCH_SIZE, EPOCHS, 0)
    assert trial.training.precision == "fp32"


def test_the_trainer_trains_to_its_last_epoch_and_repeats(sets: tuple[str, ...], tmp_path: Path) -> None:
    made = make(workload_file(WORKLOAD), tmp_path / "material", sets)
    recipe = dataclasses.replace(made, bf16=False, folder=str(tmp_path / "trainer"), fixed=fixed_of(made))
    ends = [train_one(dataclasses.replace(recipe, seed=seed), RATE) for seed in (0, 0, 1)]
    assert [end.epoch for end in ends] == [EPOCHS] * 3
    assert ends[0] == ends[1] != ends[2]


def test_only_what_both_have_trained_is_compared() -> None:
    ours = {(RATE, 0): Point(4, 0.8, 0.5), (RATE, 1): Point(4, 0.6, 0.7), (RATE, 2): Point(4, 0.1, 9.0)}
    theirs = {(RATE, 0): Point(4, 0.7, 0.6), (RATE, 1): Point(4, 0.7, 0.6), (1.0, 0): Point(4, 0.2, 3.0)}
    (line,) = rows(ours, theirs)
    assert line[:4] == ("0.001", "2", "0.7000, loss 0.6000", "0.7000, loss 0.6000")
    assert line[4] == "+0.0000, standard error 0.1000; loss +0.0000, standard error 0.1000"
    theirs |= {(1.0, 0): Point(4, 0.2, 3.0), (1.0, 1): Point(4, 0.4, 2.0)}
    lines = list(rows(ours | {(1.0, 0): Point(4, 0.3, 2.5), (1.0, 1): Point(4, 0.5, 1.5)}, theirs))
    assert [line[:2] for line in lines] == [("0.001", "2"), ("1", "2"), ("all", "4")]
    assert lines[1][4].startswith("+0.1000, standard error 0.0000; loss -0.5000, ")


def test_what_was_not_trained_is_not_there(sets: tuple[str, ...], tmp_path: Path) -> None:
    plan = plan_of([RATE], tmp_path, sets)
    assert ends_of_ours(plan.trials, Layout(tmp_path, plan.sweep.name)) == {}
    assert list(rows({}, {})) == []
