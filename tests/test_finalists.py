"""The last round as a user sees it, with real Ray and real training; and who is in it, from plan and journal."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlflow import MlflowClient

from finetune_sweep import card, challenge, finalists, promote, resolved
from finetune_sweep.events import Decided, Entry, Evaluated, Event, Failure, TestIntended, TrialEnded
from finetune_sweep.finalists import fresh_seeds, plan_finalists
from finetune_sweep.journal import Journal, read
from finetune_sweep.layout import VALIDATION_PREDICTIONS
from finetune_sweep.lock import SweepLock
from finetune_sweep.plan import Plan, make_plan, remaining
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit
from finetune_sweep.verdict import Candidate
from tests.commands import command, layout, status
from tests.promotion.finished_sweep import here, never

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import WriteSweep

SPACE = "{learning_rate: [1e-3, 1e-2, 3e-2], epochs: [1, 2]}"


def test_the_winner_is_chosen_on_fresh_seeds(write_sweep: WriteSweep) -> None:
    space = "{learning_rate: [1e-2, 3e-2], epochs: [2]}"
    sweep = write_sweep(space=space, extra="selection: {finalists: 2, seeds: 1}\n")

    first = command("run", sweep, cwd=sweep.parent)
    assert (first.code, first.err) == (0, "")
    assert "3 runs on fresh seeds: 2 finalists and the baseline" in first.out
    seen = status(sweep)
    stages = [trial["stage"] for trial in seen["trials"]]
    assert [stages.count(name) for name in ("search", "finalist", "baseline")] == [2, 2, 1]
    assert {trial["state"] for trial in seen["trials"]} == {"finished"}
    verdict = seen["verdict"]
    by_key = {trial["key"]: trial for trial in seen["trials"]}
    assert by_key[verdict["winner"]]["stage"] in {"finalist", "baseline"}
    assert by_key[verdict["baseline"]]["stage"] == "baseline"
    assert verdict["sentence"] in " ".join(first.out.split())
    results = json.loads((layout(sweep).best / "eval_results.json").read_text())
    assert results["key"] == verdict["winner"]
    assert verdict["sentence"] in (layout(sweep).best / "README.md").read_text()
    assert (results["test_baseline"] is None) == (verdict["winner"] == verdict["baseline"])

    client = MlflowClient(f"sqlite:///{sweep.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    tags = [run.data.tags for run in client.search_runs([experiment.experiment_id])]
    told = {
        tag["finetune_sweep.key"]: tag["finetune_sweep.stage"] for tag in tags if "finetune_sweep.key" in tag
    }
    assert told == {trial["key"]: trial["stage"] for trial in seen["trials"]}
    assert verdict["sentence"] in {tag.get("finetune_sweep.verdict") for tag in tags}


@pytest.mark.slow
def test_more_seeds_run_only_what_is_new(write_sweep: WriteSweep) -> None:
    space = "{learning_rate: [1e-2, 3e-2], epochs: [2]}"
    sweep = write_sweep(space=space, extra="selection: {finalists: 2, seeds: 1}\n")
    assert command("run", sweep, cwd=sweep.parent).code == 0
    seen = status(sweep)
    verdict = seen["verdict"]
    trained = {trial["key"] for trial in seen["trials"]}
    (layout(sweep).root / "predictions" / verdict["winner"]).rename(layout(sweep).root / "lost")
    more = command("run", sweep, "--set", "selection.seeds=2", cwd=sweep.parent)
    assert more.code == 0, more.err
    assert "3 runs on fresh seeds" in more.out
    events = [entry.event for entry in read(layout(sweep))]
    ended = [event.key for event in events if isinstance(event, TrialEnded)]
    assert len(ended) == len(set(ended)) == len(trained) + 3
    evaluated = [(key, event.epoch) for event in events if isinstance(event, Evaluated) for key in event.keys]
    assert len(evaluated) == len(set(evaluated))


# ------------------------------------------------------------------------------------------------ who is in it


def finished(plan: Plan, *scores: float) -> SweepRecord:
    """The record of a sweep whose trials have these scores."""
    events: list[Event] = [*plan.events()]
    for trial, score in zip(plan.trials, scores, strict=True):
        metrics = {"accuracy": score, "loss": 1 - score}
        events.append(Evaluated(trial.key, (trial.key,), trial.epochs, 1, 0.1, 0.1, metrics, {}, 1.0, 1.0, 8))
        events.append(TrialEnded(trial.key, "finished", trial.epochs, trial.epochs, score))
    return replay(Entry(0.0, event) for event in events)


def with_selection(
    write_sweep: WriteSweep, text: str = "{finalists: 2, seeds: 2}", space: str = SPACE
) -> Plan:
    return make_plan(load_sweep(write_sweep(space=space, extra=f"selection: {text}\n")))


def test_fresh_seeds_are_not_the_sweeps_and_more_of_them_keep_the_first() -> None:
    assert fresh_seeds(0, 3) == fresh_seeds(0, 5)[:3]
    assert len({0, *fresh_seeds(0, 50)}) == 51
    assert not set(fresh_seeds(0, 3)) & set(fresh_seeds(1, 3))


def test_finalists_are_distinct_trainings_and_of_equal_trials_the_shortest(write_sweep: WriteSweep) -> None:
    plan = with_selection(write_sweep)
    record = finished(plan, 0.8, 0.8, 0.6, 0.9, 0.7, 0.5)
    event, planned = plan_finalists(plan, record)

    *chosen, baseline = event.candidates
    assert [dict(record.trials[key].planned.config) for key in chosen] == [
        {"learning_rate": 1e-2, "epochs": 2},
        {"learning_rate": 1e-3, "epochs": 1},
    ]
    assert event.baseline == baseline
    assert [len(keys) for keys in event.candidates.values()] == [2, 2, 2]
    assert {run.seed for run in planned} == set(fresh_seeds(0, 2))
    assert not {run.key for run in planned} & {trial.key for trial in plan.trials}
    params = planned[-1].params
    assert [params[name] for name in ("learning_rate", "batch_size", "epochs", "freeze_depth")] == [
        3e-5,
        16,
        3,
        0,
    ]
    assert planned[-1].label == f"baseline seed={fresh_seeds(0, 2)[1]}"


def test_more_finalists_and_seeds_keep_the_runs_there_are(write_sweep: WriteSweep) -> None:
    plan = with_selection(write_sweep)
    record = finished(plan, 0.8, 0.8, 0.6, 0.9, 0.7, 0.5)
    few = {run.key for run in plan_finalists(plan, record)[1]}
    wanted = plan.sweep.selection.model_copy(update={"finalists": 3, "seeds": 3})
    more = replace(plan, sweep=plan.sweep.model_copy(update={"selection": wanted}))
    assert few < {run.key for run in plan_finalists(more, record)[1]}


def test_nobody_is_run_again_where_nobody_is_wanted_or_nothing_is_finished(write_sweep: WriteSweep) -> None:
    plan = with_selection(write_sweep, "{finalists: 0}")
    assert plan_finalists(plan, finished(plan, *[0.5] * 6)) == (finalists.NONE, [])
    plan = with_selection(write_sweep)
    assert plan_finalists(plan, replay(Entry(0.0, event) for event in plan.events())) == (finalists.NONE, [])


def test_the_baseline_is_no_finalist_even_if_it_is_a_cell_of_the_space(write_sweep: WriteSweep) -> None:
    plan = with_selection(write_sweep, space="{learning_rate: [3e-5, 1e-2], epochs: [3]}")
    event, _ = plan_finalists(plan, finished(plan, 0.9, 0.8))
    assert list(event.candidates) == [plan.trials[1].key, plan.trials[0].key]
    assert event.baseline == plan.trials[0].key


def test_an_edited_metric_forgets_the_finalists(write_sweep: WriteSweep) -> None:
    plan = with_selection(write_sweep)
    record = finished(plan, 0.8, 0.8, 0.6, 0.9, 0.7, 0.5)
    event, planned = plan_finalists(plan, record)
    for happened in (*planned, event, *plan.events()):
        record.apply(Entry(0.0, happened))
    assert record.finalists == event
    assert [record.stage(run.key) for run in planned] == ["finalist"] * 4 + ["baseline"] * 2

    by_loss = replace(
        plan,
        sweep=plan.sweep.model_copy(update={"metric": plan.sweep.metric.model_copy(update={"name": "loss"})}),
    )
    for happened in by_loss.events():
        record.apply(Entry(0.0, happened))
    assert record.finalists is None


# ------------------------------------------------------------------------------------------- what comes of it


@contextlib.contextmanager
def raced(plan: Plan, sweep: Path) -> Iterator[Journal]:
    """The sweep with its finalists trained, in this process, and held by it."""
    loaded, here = Loaded(plan), layout(sweep)
    with SweepLock(here) as lock, contextlib.closing(Journal(here, lock.owner)) as journal:
        journal.append(*plan.events())
        train(plan, journal, loaded, keep=False)
        event, planned = plan_finalists(plan, journal.record)
        journal.append(*planned, event)
        train(replace(plan, trials=finalists.final_runs(plan, journal.record)), journal, loaded, keep=True)
        yield journal


def train(plan: Plan, journal: Journal, loaded: Loaded, *, keep: bool) -> None:
    for unit in remaining(plan, journal.record, {}):
        for events in run_unit(Assignment(unit, predictions=keep), plan, journal.layout, loaded):
            journal.append(*events)


def test_a_setting_without_effect_cannot_be_told_apart(write_sweep: WriteSweep, tmp_path: Path) -> None:
    """A gradient that is never clipped is the same under both bounds."""
    space = "{learning_rate: [1e-2], max_grad_norm: [1e6, 1e7], epochs: [2]}"
    plan = with_selection(write_sweep, "{finalists: 2, seeds: 3}", space)
    with raced(plan, tmp_path / "sweep.yaml") as journal:
        decided = finalists.conclude(plan, journal.record, journal.layout)
        assert decided == finalists.conclude(plan, replay(journal.entries), journal.layout)
        assert decided is not None
        first, second, _ = decided.scores.values()
        assert first == pytest.approx(second, abs=1e-2)
        assert (first["mean"], first["spread"]) == (second["mean"], second["spread"])
        assert not decided.told_apart
        assert "The first two cannot be told apart" in decided.sentence

        runs = journal.record.runs()
        best = [journal.record.best_run(group) for group in runs.values()]
        assert [run.score for run in best if run is not None] == [
            max(run.score or 0.0 for run in group) for group in runs.values()
        ]
        assert decided.winner in {run.key for run in best if run is not None}
        assert journal.record.promotable(1)[1:] == best
        journal.append(decided)
        assert [t.key for t in journal.record.promotable(1)][1:] == [decided.winner, decided.baseline]

        check_promotion(plan, journal, decided)
        check_what_is_missing(plan, journal)
        epoch = journal.record.trials[decided.winner].best_epoch or 0
        for _ in range(2):  # also when others are the finalists by then, it stands for all of its runs
            assert len(challenge._said(journal.layout, decided.winner, epoch)) == 3
            journal.append(finalists.NONE)


def test_the_cheapest_is_taken_where_the_file_prefers_it(
    write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are the same but for their price: the one that is better by a hair is the dearer one."""
    space = "{learning_rate: [1e-2], max_grad_norm: [1e6, 1e7], epochs: [2]}"
    plan = with_selection(write_sweep, "{finalists: 2, seeds: 2}", space)
    with raced(plan, tmp_path / "sweep.yaml") as journal:
        dear, cheap, _ = journal.record.runs()

        def priced(*arguments: object) -> Candidate:
            made: Candidate = candidate_of(*arguments)
            better = made.runs.scores + np.array([2e-6, -1e-6]) * (made.name == dear)
            return replace(made, runs=replace(made.runs, scores=better), cost=1.0 + (made.name == dear))

        candidate_of: Any = finalists._candidate
        monkeypatch.setattr(finalists, "_candidate", priced)
        for prefer, expected in (("best", dear), ("cheapest", cheap)):
            selection = plan.sweep.selection.model_copy(update={"prefer": prefer})
            edited = replace(plan, sweep=plan.sweep.model_copy(update={"selection": selection}))
            decided = finalists.conclude(edited, journal.record, journal.layout)
            assert decided is not None
            assert decided.winner in {run.key for run in journal.record.runs()[expected]}


def check_promotion(plan: Plan, journal: Journal, decided: Decided) -> None:
    """The winner's run is promoted with the mean to announce; the test rows are read for it and for the baseline."""
    resolved.write(plan, journal.layout)
    promoted = promote.promote(plan, journal, journal.layout, here)
    assert promoted.key == decided.winner
    intended = [entry.event for entry in journal.entries if isinstance(entry.event, TestIntended)]
    assert [(event.key, event.is_baseline) for event in intended] == [
        (decided.winner, False),
        (decided.baseline, True),
    ]
    results = json.loads((journal.layout.best / card.RESULTS).read_text())
    assert set(results["test_baseline"]) == set(results["test"])
    assert results["announced"]["verdict"] == decided.sentence
    assert results["announced"]["mean"] in {values["mean"] for values in decided.scores.values()}
    text = (journal.layout.best / card.CARD).read_text()
    for fact in (
        "| test, baseline |",
        decided.sentence,
        "baseline: all settings at their defaults",
        "CPU hours",
    ):
        assert fact in text
    lock = resolved.read_beside(journal.layout.best)
    said = results["announced"]
    assert (lock.key, lock.mean, lock.spread) == (decided.winner, said["mean"], said["spread"])
    assert promote.promote(plan, journal, journal.layout, never) == promoted


def check_what_is_missing(plan: Plan, journal: Journal) -> None:
    """Damaged predictions are seen; a configuration with a run that failed cannot win."""
    name, runs = next(iter(journal.record.runs().items()))
    file = journal.layout.predictions(runs[0].key, runs[0].best_epoch or 0) / VALIDATION_PREDICTIONS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert finalists.without_predictions(journal.record, journal.layout) == [runs[0].key]
    file.write_bytes(whole)
    assert finalists.without_predictions(journal.record, journal.layout) == []

    runs[0].score = None
    runs[0].end = TrialEnded(runs[0].key, "diverged", failure=Failure("diverged", "the loss is nan"))
    decided = finalists.conclude(plan, journal.record, journal.layout)
    assert decided is not None
    assert name not in decided.scores
    assert len(decided.scores) == 2


def test_a_metric_of_the_whole_set_is_scored_anew_for_each_resampling(write_sweep: WriteSweep) -> None:
    plan = with_selection(write_sweep)
    by_f1 = replace(
        plan,
        sweep=plan.sweep.model_copy(
            update={"metric": plan.sweep.metric.model_copy(update={"name": "macro_f1"})}
        ),
    )
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    said = [
        Predictions(generator.standard_normal((40, 2)), labels, np.ones(40, np.float32)) for _ in range(2)
    ]
    by_rows, by_set = finalists.runs_of(plan, said), finalists.runs_of(by_f1, said)
    assert by_set.scores == pytest.approx(by_rows.scores, abs=0.05)
    assert by_set.resampled.std(axis=0) == pytest.approx(by_rows.resampled.std(axis=0), rel=0.3)
