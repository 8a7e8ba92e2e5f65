"""Searches that learn from results: what Optuna is told, what it suggests, and what survives a kill."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen
from wsgiref.simple_server import make_server

import optuna
import optuna_dashboard
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from finetune_sweep.errors import UserError
from finetune_sweep.events import Entry, Event, Failure, Suggested, TrialEnded, UnitStarted, WorkerInfo
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.record import SweepRecord
from finetune_sweep.space import Choice, Dimension, FloatRange, IntRange, Space, allows
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tune.suggest import distribution, export, frozen_trials, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from tests.conftest import WriteSweep

SPACE = """{
  learning_rate: {low: 1e-5, high: 1e-1, log: true},
  freeze_depth: [0, embeddings, 1, all],
  epochs: {low: 1, high: 4},
  lr_schedule: [constant, {type: linear, warmup_steps: 5}],
  batch_size: {values: [4, 8, 16], when: {freeze_depth: [0, embeddings]}}}"""
TPE = "{type: tpe, trials: 30, seed: 7, startup_trials: 5}"
WORKER = WorkerInfo("host", 1, "cpu", 1, "", "node")


class Search:
    """A search whose trials end at once, with a score that is known."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.record = SweepRecord()
        self.events: list[Event] = []
        self.note(*plan.events())

    def note(self, *events: Event) -> None:
        for event in events:
            self.events.append(event)
            self.record.apply(Entry(float(len(self.events)), event))

    def ask(self) -> str:
        number = len(self.record.suggestions)
        trial = self.plan.trial(suggest(self.plan, self.record, number))
        self.note(trial.planned(), Suggested(number, trial.key))
        return trial.key

    def tell(self, key: str) -> None:
        rate = self.record.trials[key].planned.config["learning_rate"]
        assert isinstance(rate, float)
        self.note(UnitStarted(key, (key,), WORKER), TrialEnded(key, "finished", score=-abs(rate - 1e-3)))


@pytest.fixture
def plan(write_sweep: WriteSweep) -> Plan:
    return make_plan(load_sweep(write_sweep(space=SPACE, search=TPE)))


def run(search: Search, count: int) -> list[str]:
    keys = []
    for _ in range(count):
        keys.append(search.ask())
        if not search.record.trials[keys[-1]].done:
            search.tell(keys[-1])
    return keys


def test_every_suggestion_satisfies_the_conditions_of_the_space(plan: Plan) -> None:
    search = Search(plan)
    run(search, 25)

    configs = [dict(search.record.trials[event.key].planned.config) for event in search.record.suggestions]
    assert all(allows(plan.sweep.space, config) for config in configs)
    assert {"batch_size" in config for config in configs} == {True, False}


def test_suggestions_go_where_the_results_are_good(plan: Plan) -> None:
    search = Search(plan)
    run(search, 30)

    def distance(events: list[Suggested]) -> float:
        scores = [search.record.trials[event.key].score or 0.0 for event in events]
        return -sum(scores) / len(scores)

    assert distance(search.record.suggestions[-10:]) < distance(search.record.suggestions[:10])


def test_a_killed_driver_goes_on_as_if_it_had_not_been(plan: Plan) -> None:
    whole, first = Search(plan), Search(plan)
    run(whole, 15)
    run(first, 8)
    resumed = Search(plan)
    resumed.note(*first.events[len(resumed.events) :])
    run(resumed, 7)

    assert resumed.record.suggestions == whole.record.suggestions
    assert [event.number for event in whole.record.suggestions] == list(range(15))


def test_a_trial_in_flight_is_known_to_the_sampler_and_not_suggested_again(plan: Plan) -> None:
    search = Search(plan)
    keys = [search.ask() for _ in range(6)]

    assert len(set(keys)) == 6
    assert [trial.state for trial in frozen_trials(plan, search.record)] == [TrialState.RUNNING] * 6


def test_what_went_wrong_is_told_as_such(plan: Plan) -> None:
    search = Search(plan)
    good, bad, broken = (search.ask() for _ in range(3))
    search.tell(good)
    search.note(TrialEnded(bad, "diverged", failure=Failure("diverged", "the loss is nan")))
    search.note(TrialEnded(broken, "failed", failure=Failure("fault", "a bug")))

    trials = frozen_trials(plan, search.record)

    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert trials[1].value == trials[0].value == search.record.trials[good].score


def test_trials_that_the_edited_space_no_longer_has_are_forgotten(plan: Plan) -> None:
    search = Search(plan)
    run(search, 12)
    rates = FloatRange(1e-5, 1e-3, log=True)
    dimensions = (
        replace(d, domain=rates) if d.name == "learning_rate" else d for d in plan.sweep.space.dimensions
    )
    edited = make_plan(plan.sweep.model_copy(update={"space": Space(tuple(dimensions))}), search.record)

    assert all(float(str(trial.config["learning_rate"])) <= 1e-3 for trial in edited.trials)
    assert 0 < len(edited.trials) < 12


def test_the_exported_study_has_every_trial_and_its_metrics(plan: Plan, tmp_path: Path) -> None:
    search = Search(plan)
    run(search, 6)
    file = tmp_path / "study.db"

    assert export(plan, search.record, file) == len(search.record.trials)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{file}")

    assert study.best_trial.user_attrs["key"] == getattr(search.record.best(), "key", None)
    assert {trial.user_attrs["key"] for trial in study.trials} == set(search.record.trials)
    with pytest.raises(UserError, match="exists; give a new one"):
        export(plan, search.record, file)


def test_optuna_dashboard_opens_the_exported_study(plan: Plan, tmp_path: Path) -> None:
    search = Search(plan)
    run(search, 5)
    file = tmp_path / "study.db"
    count = export(plan, search.record, file)

    with served(optuna_dashboard.wsgi(f"sqlite:///{file}")) as address:
        studies = get(f"{address}/api/studies")["study_summaries"]
        trials = get(f"{address}/api/studies/{studies[0]['study_id']}")["trials"]

    assert [study["study_name"] for study in studies] == ["tiny"]
    assert len(trials) == count


@contextlib.contextmanager
def served(application: WSGIApplication) -> Iterator[str]:
    """Serves an application on a free port of the loopback interface, in a thread."""
    with make_server("127.0.0.1", 0, application) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def get(url: str) -> Any:  # noqa: ANN401 - JSON
    with urlopen(url, timeout=30) as response:  # noqa: S310 - the loopback interface
        return json.load(response)


choices = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(lambda v: Choice(tuple(v)))
whole = st.tuples(st.integers(1, 50), st.integers(0, 50)).map(
    lambda pair: IntRange(pair[0], pair[0] + pair[1])
)
fractions = st.tuples(st.floats(1e-6, 1), st.floats(0, 1), st.booleans()).map(
    lambda parts: FloatRange(parts[0], parts[0] + parts[1], log=parts[2])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parent=choices, domain=choices | whole | fractions, seed=st.integers(0, 2**40), data=st.data())
def test_a_suggestion_lies_in_any_space(
    parent: Choice, domain: Choice | IntRange | FloatRange, seed: int, data: st.DataObject, plan: Plan
) -> None:
    allowed = data.draw(st.lists(st.sampled_from(parent.values), min_size=1, unique=True))
    dimensions = (
        Dimension("freeze_depth", parent, {}),
        Dimension("weight_decay", domain, {"freeze_depth": tuple(allowed)}),
    )
    search = plan.sweep.search.model_copy(update={"seed": seed})
    sweep = plan.sweep.model_copy(update={"space": Space(dimensions), "search": search})

    config = suggest(replace(plan, sweep=sweep), SweepRecord(), 0)

    assert allows(Space(dimensions), config)
    assert distribution(domain) is not None
