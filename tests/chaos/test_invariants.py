"""Each invariant can fail: a finished sweep is damaged in one way, and that is named."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep import registry
from finetune_sweep.events import (
    Entry,
    Evaluated,
    Event,
    Promoted,
    SessionEnded,
    TestIntended,
    TestRead,
    TrialEnded,
    UnitStarted,
)
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.record import replay
from finetune_sweep.tracking import Mirror
from tests.chaos import invariants
from tests.promotion.finished_sweep import Opened, here, hold, train

if TYPE_CHECKING:
    from finetune_sweep.journal import Journal

pytestmark = pytest.mark.slow
MODEL = "tiny classifier"
NOTHING = invariants.Before()


@dataclass
class Finished:
    """A copy of a finished sweep; `told` is where MLflow believes that it lies."""

    layout: Layout
    told: Path
    entries: list[Entry]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.layout.storage.parent}/mlflow.db"

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute(statement)

    def events(self, kind: type[Event]) -> list[int]:
        return [at for at, entry in enumerate(self.entries) if isinstance(entry.event, kind)]

    def found(self, code: int = 0, before: invariants.Before = NOTHING) -> list[str]:
        """All that is wrong with it."""
        record = replay(self.entries)
        reference = invariants.results(replay(read(self.layout)))
        tracked = invariants.look(self.uri, "tiny", str(self.told))
        return [
            *invariants.after_a_session(code, self.entries, before, reference),
            *[f"trial {key} is not finished" for key in reference if key not in invariants.results(record)],
            *invariants.mirrored_once(tracked, record),
            *invariants.mirrored_completely(tracked, record),
            *invariants.nothing_running(tracked),
            *invariants.registered(self.uri, MODEL, self.entries),
            *invariants.best_is_whole(self.layout, record),
            *invariants.nothing_left_behind(self.layout, record),
        ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A sweep that was trained, mirrored, promoted and registered, all in this process."""
    trained = train(
        tmp_path_factory.mktemp("whole"), "source: ./rows.csv\n  split: {validation: 0.2, test: 0.2}"
    )
    with hold(trained) as held:
        held.promote(here)
        _mirror(held, held.journal)
        registry.register(held.plan, held.journal, held.layout)
        held.journal.append(SessionEnded(0))
        _mirror(held, held.journal)
    return trained.layout


def _mirror(held: Opened, journal: Journal) -> None:
    mirror = Mirror(held.plan.sweep, held.layout, journal.entries)
    mirror.start()
    assert mirror.close(60.0) == ()
    journal.append(*mirror.collect())


@pytest.fixture
def sweep(template: Layout, tmp_path: Path) -> Finished:
    shutil.copytree(template.storage.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    layout = Layout(tmp_path / "copy" / "runs", template.sweep)
    return Finished(layout, template.root, read(layout))


def test_nothing_is_wrong_with_a_sweep_that_nothing_happened_to(sweep: Finished) -> None:
    assert sweep.found() == []


def _end_again(sweep: Finished) -> None:
    sweep.entries.append(sweep.entries[sweep.events(TrialEnded)[0]])


def _forget_an_end(sweep: Finished) -> None:
    del sweep.entries[sweep.events(TrialEnded)[0]]


def _change_a_score(sweep: Finished) -> None:
    at = sweep.events(TrialEnded)[0]
    event = sweep.entries[at].event
    assert isinstance(event, TrialEnded)
    sweep.entries[at] = Entry(sweep.entries[at].time, dataclasses.replace(event, epochs_done=99))


def _read_the_test_again(sweep: Finished) -> None:
    sweep.entries.append(sweep.entries[sweep.events(TestRead)[0]])


def _read_the_test_unannounced(sweep: Finished) -> None:
    del sweep.entries[sweep.events(TestIntended)[0]]


def _promote_another(sweep: Finished) -> None:
    at = sweep.events(Promoted)[-1]
    event = sweep.entries[at].event
    assert isinstance(event, Promoted)
    other = next(key for key in replay(sweep.entries).trials if key != event.key)
    sweep.entries.append(Entry(sweep.entries[at].time, dataclasses.replace(event, key=other)))
    sweep.entries.append(sweep.entries[sweep.events(SessionEnded)[-1]])


def _flip_a_bit_of_best(sweep: Finished) -> None:
    weights = sweep.layout.best / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)


def _flip_a_bit_of_a_checkpoint(sweep: Finished) -> None:
    tensors = next(sweep.layout.root.glob("trials/*/*/changed.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 1
    tensors.write_bytes(content)


def _double_a_run(sweep: Finished) -> None:
    """A second parent, as a mirror makes one that does not search before it creates."""
    with closing(sqlite3.connect(sweep.uri.removeprefix("sqlite:///"))) as connection, connection:
        connection.row_factory = sqlite3.Row
        parent = "(select run_uuid from tags where key = 'finetune_sweep.storage')"
        (run,) = connection.execute(f"select * from runs where run_uuid = {parent}").fetchall()  # noqa: S608
        columns = ["copy" if name == "run_uuid" else run[name] for name in run.keys()]  # noqa: SIM118 - a sqlite3.Row
        connection.execute(f"insert into runs values ({','.join('?' * len(columns))})", columns)  # noqa: S608
        tags = connection.execute(f"select * from tags where run_uuid = {parent}").fetchall()  # noqa: S608
        for tag in tags:
            values = ["copy" if name == "run_uuid" else tag[name] for name in tag.keys()]  # noqa: SIM118 - the same
            connection.execute(f"insert into tags values ({','.join('?' * len(values))})", values)  # noqa: S608


DAMAGES: dict[str, tuple[Callable[[Finished], object], str]] = {
    "completed twice": (_end_again, "was completed 2 times in the journal"),
    "an end lost": (_forget_an_end, "have no result"),
    "other numbers": (_change_a_score, "undisturbed it gives"),
    "tested twice": (_read_the_test_again, "the test rows were read twice"),
    "tested without intent": (_read_the_test_unannounced, "without an intent"),
    "another in best": (_promote_another, "best/ holds trial"),
    "the alias elsewhere": (_promote_another, "the alias champion is on version"),
    "best damaged": (_flip_a_bit_of_best, "best/ is damaged"),
    "best gone": (lambda sweep: shutil.rmtree(sweep.layout.best), "best/ is damaged"),
    "a checkpoint damaged": (_flip_a_bit_of_a_checkpoint, "a checkpoint that the journal names"),
    "a temporary file": (lambda sweep: (sweep.layout.root / ".best.7.tmp").mkdir(), "was left behind"),
    "an orphan": (
        lambda sweep: (sweep.layout.root / "trials/x/resume-0001").mkdir(parents=True),
        "belongs to no trial",
    ),
    "a run doubled": (_double_a_run, "MLflow has 2 runs of the sweep itself"),
    "a metric doubled": (
        lambda sweep: sweep.sql(
            "insert into metrics select key, value, timestamp + 1, run_uuid, step, is_nan from metrics"
            " where key = 'validation_loss' limit 1"
        ),
        "validation_loss at step",
    ),
    "a metric lost": (
        lambda sweep: sweep.sql("delete from metrics where key = 'validation_loss' and step = 2"),
        "differs from the journal in",
    ),
    "a run left running": (
        lambda sweep: sweep.sql("update runs set status = 'RUNNING' where name = 'tiny'"),
        "is left RUNNING",
    ),
    "a child of another state": (
        lambda sweep: sweep.sql("update runs set status = 'KILLED' where name != 'tiny'"),
        "it must be FINISHED",
    ),
    "no alias": (lambda sweep: sweep.sql("delete from registered_model_aliases"), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_named(name: str, sweep: Finished) -> None:
    damage, words = DAMAGES[name]
    damage(sweep)
    assert any(words in violation for violation in sweep.found()), sweep.found()


def test_a_result_that_was_there_before_may_not_change_or_go(sweep: Finished) -> None:
    before = invariants.Before(invariants.results(replay(sweep.entries)))
    _forget_an_end(sweep)
    assert any("now it is not finished" in text for text in sweep.found(before=before))


def test_an_exit_code_must_be_that_of_the_journal(sweep: Finished) -> None:
    sweep.entries.append(Entry(sweep.entries[-1].time, SessionEnded(1)))
    assert "the exit code is 0, but the journal has 1" in sweep.found()


def test_a_sweep_that_is_done_may_not_end_as_failed(sweep: Finished) -> None:
    assert "the exit code is 1, but everything is done" in sweep.found(code=1)


def test_epochs_that_are_trained_again_are_counted_and_those_told_again_are_not(sweep: Finished) -> None:
    evaluated = [sweep.entries[at] for at in sweep.events(Evaluated)]
    before, started = invariants.Before({}, len(sweep.entries)), sweep.entries[sweep.events(UnitStarted)[0]]
    sweep.entries += [started, *evaluated]
    assert invariants.trained_again(sweep.entries, before) == {}

    for entry in evaluated:
        assert isinstance(entry.event, Evaluated)
        slower = dataclasses.replace(entry.event, train_seconds=entry.event.train_seconds + 1)
        sweep.entries.append(Entry(entry.time, slower))
    again = invariants.trained_again(sweep.entries, before)
    assert max(again.values()) > 1
    assert any("could be lost" in text for text in invariants.lost_little(sweep.entries, before))
    later = invariants.Before({}, len(sweep.entries))
    assert invariants.lost_little(sweep.entries, later) == []
    damaged = invariants.Before({}, before.entries, most_again=None)
    assert invariants.lost_little(sweep.entries, damaged) == []


def test_half_a_champion_and_one_that_is_gone_are_named(sweep: Finished) -> None:
    before, wrong = invariants.champion(sweep.layout, sweep.uri, MODEL)
    assert wrong == []
    assert before.folder
    assert before.version
    _flip_a_bit_of_best(sweep)
    assert "best/ is half a champion" in invariants.champion(sweep.layout, sweep.uri, MODEL)[1][0]

    shutil.rmtree(sweep.layout.best)
    sweep.sql("delete from registered_model_aliases")
    now, wrong = invariants.champion(sweep.layout, sweep.uri, MODEL)
    assert wrong == []
    assert len(invariants.keeps_a_champion(before, now)) == 2


def test_a_process_that_is_left_is_named() -> None:
    assert invariants.no_process([7]) == ["process 7 was left over"]
