"""The benchmark of the methods: each row is what it says, and the table is made from the runs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.methods import METHODS, PLAIN, plan_of, results, rows
from finetune_sweep import yamlio
from finetune_sweep.plan import Plan
from finetune_sweep.selection import Runs, runs_of_rows


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(100, tmp_path_factory.mktemp("methods"))


def test_every_method_is_a_trial_of_its_own_on_each_seed(plan: Plan) -> None:
    keys = {plan.trial(method.config, seed).key for method in METHODS.values() for seed in range(2)}
    assert len(keys) == 2 * len(METHODS)
    assert next(iter(METHODS)) == PLAIN
    assert plan.rows["train"] == 100


@pytest.mark.parametrize("name", [name for name in METHODS if name != PLAIN])
def test_a_row_says_what_it_sets(name: str, plan: Plan) -> None:
    written = yamlio.parse(f"{{{METHODS[name].setting}}}", "row").value
    assert isinstance(written, dict)
    assert plan.trial(written).key == plan.trial(METHODS[name].config).key


def test_the_table_has_means_and_what_each_method_brings() -> None:
    """Of ten rows plain answers 5 on both seeds, the method 7; on 800 texts it was not measured."""
    right = np.zeros((2, 10))
    right[:, :5] = 1.0
    better = right.copy()
    better[:, 5:7] = 1.0
    few: dict[str, Runs] = {PLAIN: runs_of_rows(right), "L2-SP": runs_of_rows(better)}
    head, line, plain, method = "\n".join(rows({100: few, 800: {PLAIN: runs_of_rows(right)}})).splitlines()
    assert head == "| method | setting | 100 texts | 800 texts |"
    assert line == "| --- | --- | --- | --- |"
    assert plain == "| plain |  | 0.500 | 0.500 |"
    assert method.startswith("| L2-SP | `l2_sp: 0.01` | 0.700: +0.200 (")
    assert method.endswith(") |  |")


def test_what_was_not_trained_is_not_in_the_table(plan: Plan) -> None:
    runs = {PLAIN: [plan.trial({}, seed) for seed in range(2)]}
    assert results(plan, runs) == {}
