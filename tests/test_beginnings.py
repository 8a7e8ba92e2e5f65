"""Trials that a longer training has gone through: what they are given is what they would have come to."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep import outlook
from finetune_sweep.beginnings import beginnings
from finetune_sweep.events import Entry, Evaluated, Event, TrialEnded
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.lock import SweepLock
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.record import SweepRecord
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tune import suggest
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.driver import Driver
from finetune_sweep.tune.engine import Engine
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit

if TYPE_CHECKING:
    from tests.conftest import WriteSweep


def record_of(plan: Plan, *events: Event) -> SweepRecord:
    record = SweepRecord()
    for number, event in enumerate((*plan.events(), *events)):
        record.apply(Entry(float(number), event))
    return record


def trained(plan: Plan, layout: Layout) -> list[Event]:
    (unit,) = plan.units
    return [event for moment in run_unit(Assignment(unit), plan, layout, Loaded(plan)) for event in moment]


def planned(write_sweep: WriteSweep, epochs: str, **parts: str) -> Plan:
    return make_plan(load_sweep(write_sweep(space=f"{{learning_rate: [1e-2], epochs: {epochs}}}", **parts)))


@pytest.mark.parametrize("epoch", ["best", "last"])
def test_a_shorter_trial_is_given_what_it_would_have_come_to(
    epoch: str, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    metric = f"{{name: loss, epoch: {epoch}}}"
    longer, both = (planned(write_sweep, epochs, metric=metric) for epochs in ("[4]", "[2, 4]"))
    layout = Layout(tmp_path, "tiny")
    record = record_of(both, *trained(longer, layout))
    short = both.trials[0]
    alone = replace(both, trials=(short,))
    would_be = record_of(alone, *trained(alone, Layout(tmp_path, "alone"))).trials[short.key]

    for event in beginnings(both, both.trials, record):
        record.apply(Entry(99.0, event))

    given = record.trials[short.key]
    assert (given.state, given.attempts) == ("finished", 0)
    assert (given.score, given.best_epoch, given.metrics) == (
        would_be.score,
        would_be.best_epoch,
        would_be.metrics,
    )
    assert [e.epoch for e in given.evaluations] == [1, 2]
    shares = given.best_epoch == record.trials[both.trials[1].key].best_epoch
    assert (given.checkpoint is not None) == shares
    assert beginnings(both, both.trials, record) == []


def test_a_training_that_stopped_early_covers_all_that_are_longer_than_that(
    write_sweep: WriteSweep,
) -> None:
    stopping = "{learning_rate: 1e-2, early_stopping: {patience: 1}}"
    plan = planned(write_sweep, "[1, 3, 5, 9]", training=stopping)
    longest = plan.trials[-1]
    record = record_of(plan, *told(longest.key, 2), TrialEnded(longest.key, "finished", 2, 1, 0.5, 2))
    events = beginnings(plan, plan.trials, record)
    ends = [event for event in events if isinstance(event, TrialEnded)]
    assert [(end.epochs_done, end.stopped_early_at) for end in ends] == [(1, None), (2, 2), (2, 2)]
    still_runs = record_of(plan, *told(longest.key, 2))
    assert beginnings(plan, plan.trials, still_runs) == []


def told(key: str, epochs: int) -> list[Event]:
    metrics = {"accuracy": 0.5, "loss": 0.7}
    return [
        Evaluated(key, (key,), epoch, epoch, 0.7, 1e-2, metrics, {}, 1.0, 0.1, 16)
        for epoch in range(1, epochs + 1)
    ]


def finished(key: str, epochs: int) -> list[Event]:
    return [*told(key, epochs), TrialEnded(key, "finished", epochs, epochs, 0.5)]


@pytest.mark.parametrize(
    "parts",
    [
        {"training": "{lr_schedule: linear}"},
        {"training": "{lr_schedule: wsd}"},
        {"extra": "speed: {share_trajectories: false}\n"},
    ],
)
def test_nothing_is_given_where_nothing_is_shared(parts: dict[str, str], write_sweep: WriteSweep) -> None:
    plan = planned(write_sweep, "[2, 4]", **parts)
    longer = plan.trials[-1]
    assert beginnings(plan, plan.trials, record_of(plan, *finished(longer.key, 4))) == []


def test_nothing_is_given_by_a_training_of_another_recipe_or_seed(write_sweep: WriteSweep) -> None:
    plan = planned(write_sweep, "[2, 4]")
    longer = plan.trials[-1]
    of_old = replace(longer, key="0123456789abcdef")
    old = replace(plan, trials=(plan.trials[0], of_old))
    assert beginnings(plan, plan.trials[:1], record_of(old, *finished(of_old.key, 4))) == []
    other = plan.trial(longer.config, seed=7)
    seeds = replace(plan, trials=(plan.trials[0], other))
    assert beginnings(plan, plan.trials[:1], record_of(seeds, *finished(other.key, 4))) == []


def test_the_plan_counts_only_what_is_left_to_train(write_sweep: WriteSweep) -> None:
    longer, all_three = (planned(write_sweep, epochs) for epochs in ("[4]", "[2, 4, 5]"))
    key = longer.trials[0].key
    record = record_of(longer, *finished(key, 4))
    seen = outlook.look(all_three, record)
    assert (seen.done, seen.missing, seen.epochs) == (2, 1, 5)


def test_a_search_that_learns_is_told_at_once(
    write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for 4 epochs, for the same again, and then for 2 of the same."""
    plan = planned(write_sweep, "[2, 4]", search="{type: tpe, trials: 3, seed: 1}")
    asked = [{"learning_rate": 1e-2, "epochs": epochs} for epochs in (4, 4, 2)]
    monkeypatch.setattr(suggest, "suggest", lambda _plan, _record, number: asked[number])
    layout = Layout(tmp_path, "tiny")
    with (
        SweepLock(layout) as lock,
        closing(Journal(layout, lock.owner)) as journal,
        Engine(plan.sweep) as engine,
    ):
        journal.append(*plan.events())
        driver = Driver(plan, layout, journal, engine, lambda: None, lambda: False)
        for assignment in driver._assignments(()):
            (trial,) = assignment.unit.trials
            assert trial.epochs == 4
            journal.append(*finished(trial.key, 4))
        assert [trial.state for trial in journal.record.current()] == ["finished", "finished"]
        assert [len(trial.evaluations) for trial in journal.record.current()] == [4, 2]
