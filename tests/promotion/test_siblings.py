"""Trials that another sweep of the storage has trained."""

from __future__ import annotations

from dataclasses import replace

from finetune_sweep import siblings
from finetune_sweep.durable import check_folder
from finetune_sweep.events import CheckpointWritten, Evaluated, TrialEnded
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.lock import SweepLock
from tests.promotion.finished_sweep import Opened


def test_a_trial_of_a_sibling_is_taken_over_with_its_metrics_and_marked(sweep: Opened) -> None:
    best = sweep.ranking[0]
    layout = Layout(sweep.layout.storage, "sibling")
    plan = replace(sweep.plan, sweep=sweep.plan.sweep.model_copy(update={"name": "sibling"}))
    with SweepLock(layout) as lock:
        journal = Journal(layout, lock.owner)
        journal.append(*plan.events())
        keys = [trial.key for trial in plan.trials]

        events = siblings.taken_over(keys, journal.record, layout)

        assert {event.key for event in events if isinstance(event, TrialEnded)} == set(keys)
        assert {event.reused_from for event in events if isinstance(event, TrialEnded)} == {"tiny"}
        assert sum(isinstance(event, Evaluated) for event in events) == 6
        journal.append(*events)
        mine = journal.record.trials[best.key]
        assert (mine.score, mine.best_epoch, mine.metrics) == (best.score, best.best_epoch, best.metrics)
        assert (mine.attempts, mine.checkpoint) == (0, None)
        assert siblings.taken_over(keys, journal.record, layout) == []

        written = siblings.copied(mine, layout)
        assert isinstance(written, CheckpointWritten)
        check_folder(layout.root / written.checkpoint)
        mine.best_epoch = 99
        assert siblings.copied(mine, layout) is None
        journal.close()


def test_a_sweep_has_no_use_for_siblings_that_are_damaged_or_its_own(sweep: Opened) -> None:
    damaged = sweep.layout.storage / "damaged" / "journal"
    damaged.mkdir(parents=True)
    (damaged / "000001.jsonl").write_text("no line\nnor this\n")
    assert (
        siblings.taken_over([trial.key for trial in sweep.plan.trials], sweep.journal.record, sweep.layout)
        == []
    )
