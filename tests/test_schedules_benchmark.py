"""The benchmark of the schedules: what each is compared with, and that it is chosen and tested on different rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.schedules import DATA, REFERENCE, SCHEDULES, Found, plan_of, row, together, trials_of, winners
from finetune_sweep.plan import Plan
from finetune_sweep.tasks.arrays import Predictions

ROWS = 1200


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of("bert", tmp_path_factory.mktemp("schedules"))


def answers(rate: float, seed: int, classes: int = 3) -> Predictions:
    """A model that is right at a rate."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, classes, ROWS)
    right = generator.random(ROWS) < rate
    said = np.where(right, labels, (labels + 1) % classes)
    return Predictions(np.eye(classes)[said].astype(np.float32), labels, np.zeros(ROWS, np.float32))


@pytest.mark.parametrize("data", DATA)
def test_each_schedule_has_the_same_grid_on_each_seed(data: str, tmp_path: Path) -> None:
    trials = trials_of(plan_of(data, tmp_path), seeds=2)
    assert set(trials) == {(schedule, seed) for schedule in SCHEDULES for seed in (0, 1)}
    assert {len(group) for group in trials.values()} == {9}
    assert len({trial.key for group in trials.values() for trial in group}) == 54
    for (schedule, seed), group in trials.items():
        assert {(trial.training.lr_schedule.type, trial.seed) for trial in group} == {(schedule, seed)}


def test_a_worse_schedule_is_told_from_an_equal_one(plan: Plan) -> None:
    """wsd says what linear decay says, the constant rate is right ten points less often."""
    runs = {}
    for seed in range(4):
        for schedule in SCHEDULES:
            rate = 0.7 if schedule == "constant" else 0.8
            number = seed + 10 * (schedule == "constant")
            runs[schedule, seed] = [answers(rate, number), answers(rate - 0.3, 100 + number)]
    found = winners(plan, runs, seeds=4)
    assert found[REFERENCE].tested == pytest.approx(0.8, abs=0.06)
    assert found["wsd"].against(found[REFERENCE]) == (0.0, 0.0)
    difference, error = found["constant"].against(found[REFERENCE])
    assert difference == pytest.approx(-0.1, abs=0.05)
    assert difference < -error
    cells = row("bert", found)
    assert cells[1].endswith(", lower")
    assert cells[2].endswith("+0.0000 ± 0.0000, not lower")


def test_the_last_line_is_of_all_data_sets_with_the_error_from_seed_to_seed() -> None:
    """However far the data sets are apart: 0.1 and 0.3 lower, each the same on all seeds but for a hundredth."""

    def found(constant: list[float], linear: list[float]) -> dict[str, Found]:
        given = {"constant": constant, "wsd": linear, REFERENCE: linear}
        return {name: Found(np.array([values])) for name, values in given.items()}

    both = together([found([0.51, 0.49], [0.6, 0.6]), found([0.51, 0.49], [0.8, 0.8])])
    assert both[REFERENCE].tested.tolist() == [[0.6, 0.6], [0.8, 0.8]]
    difference, error = both["constant"].against(both[REFERENCE])
    assert difference == pytest.approx(-0.2)
    assert error == pytest.approx(
        0.01 / 2**0.5
    )  # each of them 0.01: a deviation of 0.02 / sqrt(2), of two seeds
    assert both["wsd"].against(both[REFERENCE]) == (0.0, 0.0)


def test_the_rows_that_choose_do_not_test(plan: Plan) -> None:
    """Of many that guess, the best on the rows that choose is a guesser on the others."""
    guessers = [answers(1 / 3, number) for number in range(20)]
    runs = {(schedule, 0): guessers for schedule in SCHEDULES}
    found = winners(plan, runs, seeds=1)
    assert found[REFERENCE].tested[0, 0] == pytest.approx(1 / 3, abs=0.02)  # 0.37 on those that choose
