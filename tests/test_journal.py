from __future__ import annotations

import dataclasses
import math
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_sweep.errors import FailureClass, StorageError
from finetune_sweep.events import (
    EVENTS,
    CheckpointRemoved,
    CheckpointWritten,
    Entry,
    Evaluated,
    Event,
    Failure,
    Promoted,
    SessionEnded,
    SessionStarted,
    SweepPlanned,
    TestRead,
    Tracked,
    TrialEnded,
    TrialPlanned,
    TrialState,
    UnitStarted,
    WorkerInfo,
    decode,
    encode,
)
from finetune_sweep.journal import Journal, read
from finetune_sweep.layout import Layout
from finetune_sweep.lock import Owner, SweepLock
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.yamlio import Value

WORKER = WorkerInfo("host", 7, "cpu", 1, "", "node")

# --------------------------------------------------------------------------------------- every event there is

words = st.text(max_size=8) | st.sampled_from(["a\nb", "a\r\nb", "\u2028", "caf\udce9"])
whole = st.integers()
floats = st.floats(allow_nan=False)
metrics = st.dictionaries(words, floats, max_size=3)
values: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.booleans() | whole | floats | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
texts = {
    "alias",
    "note",
    "reused_from",
    "search",
    "baseline",
    "winner",
    "sentence",
    "instead_of",
    "label",
    "unit",
    "host",
    "version",
    "task",
    "fingerprint",
    "metric",
    "precision",
    "device",
    "run_id",
}
counts = {"token", "number", "pid", "seed", "epoch", "step", "micro_batch", "epochs_done", "exit_code"}
FIELDS: dict[str, st.SearchStrategy[object]] = {
    **dict.fromkeys([*texts, "key", "registered_model"], words),
    **dict.fromkeys(counts, whole),
    **dict.fromkeys(["train_loss", "learning_rate", "train_seconds", "eval_seconds"], floats),
    **dict.fromkeys(["metrics", "test_metrics", "train_metrics"], metrics),
    **dict.fromkeys(["config", "params"], st.dictionaries(words, values, max_size=3)),
    **dict.fromkeys(["best_epoch", "stopped_early_at"], st.none() | whole),
    **dict.fromkeys(["beats_baseline", "is_baseline", "told_apart"], st.booleans()),
    **dict.fromkeys(["difference", "low", "high"], st.none() | floats),
    "candidates": st.dictionaries(words, st.lists(words, max_size=3).map(tuple), max_size=3),
    "scores": st.dictionaries(words, metrics, max_size=3),
    "keys": st.lists(words, max_size=3).map(tuple),
    "older_segments": st.dictionaries(words, whole, max_size=3),
    "mode": st.sampled_from(["max", "min"]),
    "state": st.sampled_from(get_args(TrialState)),
    "score": st.none() | floats,
    "checkpoint": st.none() | words,
    "worker": st.builds(WorkerInfo, words, whole, words, whole, words, words),
    "failure": st.none() | st.builds(Failure, st.sampled_from(get_args(FailureClass)), words, words),
}
"""What each field may hold, by its name; a new field of an event has to be added."""


@st.composite
def events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(list(EVENTS.values())))
    special = {"epoch": st.sampled_from(["best", "last"])} if kind is SweepPlanned else {}
    fields = FIELDS | special
    make: Callable[..., Event] = kind
    return make(**{field.name: draw(fields[field.name]) for field in dataclasses.fields(kind)})


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1e10), events())
def test_every_event_comes_back_as_it_was_written(moment: float, event: Event) -> None:
    line = encode(Entry(moment, event))
    assert line.endswith(b"\n")
    assert line.splitlines() == [line[:-1]]
    assert decode(line) == Entry(moment, event)


def test_every_event_can_be_read_and_is_found_by_its_name() -> None:
    assert set(EVENTS.values()) == set(get_args(Event))
    assert all(name == event.__name__ for name, event in EVENTS.items())


def test_a_diverged_loss_is_journalled() -> None:
    event = evaluated("a", 1, math.nan)
    assert isinstance(back := decode(encode(Entry(1.0, event))).event, Evaluated)
    assert math.isnan(back.metrics["accuracy"])


@settings(max_examples=100, deadline=None)
@given(events(), st.data())
def test_a_line_with_a_changed_byte_or_without_its_end_is_refused(event: Event, data: st.DataObject) -> None:
    line = bytearray(encode(Entry(1.0, event)))
    position = data.draw(st.integers(0, len(line) - 1))
    with pytest.raises(ValueError, match="checksum"):
        decode(bytes(line[:position]))
    line[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="checksum"):
        decode(bytes(line))


# -------------------------------------------------------------------------------------------------- the files


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "runs", "bert")


def open_journal(layout: Layout, token: int = 1) -> Journal:
    return Journal(layout, Owner("host", token, 0.0, token))


def planned(*keys: str) -> list[Event]:
    trials = [TrialPlanned(key, f"n={n}", {"n": n}, {"epochs": n}, 0) for n, key in enumerate(keys, 1)]
    return [
        *trials,
        SweepPlanned("text-classification", "fp", "accuracy", "max", "best", "fp32", "cpu", keys),
    ]


def evaluated(key: str, epoch: int, accuracy: float, loss: float = 0.5) -> Evaluated:
    metrics = {"accuracy": accuracy, "loss": loss}
    return Evaluated(key, (key,), epoch, 10 * epoch, loss, 2e-5, metrics, metrics, 1.0, 0.5, 16)


def finished(key: str, score: float, best_epoch: int = 1, epochs: int = 1) -> TrialEnded:
    return TrialEnded(key, "finished", epochs, best_epoch, score, checkpoint=f"trials/{key}/epoch-0001")


def happened(entries: Iterable[Entry]) -> list[Event]:
    return [entry.event for entry in entries]


def test_a_journal_is_read_as_it_was_written(layout: Layout) -> None:
    first = open_journal(layout)
    first.append(*planned("a"), UnitStarted("a", ("a",), WORKER))
    first.append(SessionEnded(130))
    second = open_journal(layout, 2)
    second.append(*planned("a"), finished("a", 0.5))
    second.close()
    assert [segment.name for segment in layout.segments()] == ["000001.jsonl", "000002.jsonl"]
    assert read(layout) == second.entries
    assert replay(read(layout)) == second.record
    times = [entry.time for entry in second.entries]
    assert times == sorted(times)


def test_there_is_nothing_to_read_before_the_first_session(layout: Layout) -> None:
    assert read(layout) == []


@given(cut=st.integers(min_value=1, max_value=400))
@settings(max_examples=25, deadline=None)
def test_a_torn_last_line_is_skipped(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    layout = Layout(tmp_path_factory.mktemp("torn"), "bert")
    journal = open_journal(layout)
    journal.append(*planned("a", "b"), finished("a", 0.5))
    whole_lines = [encode(entry) for entry in journal.entries]
    (segment,) = layout.segments()
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - cut)
    left = segment.read_bytes()
    kept = next(n for n in range(len(whole_lines), -1, -1) if left.startswith(b"".join(whole_lines[:n])))
    assert read(layout) == journal.entries[:kept]
    continued = open_journal(layout, 2)
    whole = b"".join(whole_lines[:kept])
    assert segment.read_bytes() == whole
    torn = len(left) - len(whole)
    assert [f"{torn} bytes, was torn" in line for line in continued.repaired] == [True] * bool(torn)
    assert continued.entries[:kept] == journal.entries[:kept]
    assert read(layout) == continued.entries
    shutil.rmtree(layout.storage)


def test_damage_in_the_middle_is_refused_with_file_and_line(layout: Layout) -> None:
    open_journal(layout).append(*planned("a", "b"))
    (segment,) = layout.segments()
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"n=1", b"n=7")
    segment.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match=r"000001\.jsonl:2: the journal is damaged"):
        read(layout)
    with pytest.raises(StorageError, match=r"000001\.jsonl:2"):
        open_journal(layout, 2)
    assert len(layout.segments()) == 1


def test_a_last_line_that_is_whole_and_damaged_is_refused_not_taken_for_torn(layout: Layout) -> None:
    open_journal(layout).append(*planned("a"), finished("a", 0.5))
    (segment,) = layout.segments()
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b'"score":0.5', b'"score":0.6'))
    assert segment.read_bytes() != content
    with pytest.raises(StorageError, match=r"000001\.jsonl:4: the journal is damaged"):
        open_journal(layout, 2)


@pytest.mark.parametrize("harm", ["cut", "emptied", "gone", "end of its last line"])
def test_an_older_segment_that_is_not_whole_is_refused(harm: str, layout: Layout) -> None:
    open_journal(layout).append(*planned("a", "b"), finished("a", 0.5))
    open_journal(layout, 2).append(finished("b", 0.6))
    (older, _) = layout.segments()
    match harm:
        case "cut":
            older.write_bytes(older.read_bytes()[:-20])
        case "emptied":
            older.write_bytes(b"")
        case "gone":
            older.unlink()
        case _:
            older.write_bytes(older.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match=r"000001\.jsonl.*(not whole|damaged)"):
        open_journal(layout, 3)


def test_a_line_that_was_overwritten_with_spaces_is_passed_over(layout: Layout) -> None:
    open_journal(layout).append(*planned("a"), finished("a", 0.5))
    (segment,) = layout.segments()
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[-1] = b" " * (len(lines[-1]) - 1) + b"\n"
    segment.write_bytes(b"".join(lines))
    assert open_journal(layout, 2).record.trials["a"].state == "planned"


def test_a_first_line_is_not_to_be_overwritten_since_the_runs_in_mlflow_are_known_by_it(
    layout: Layout,
) -> None:
    open_journal(layout).append(*planned("a"))
    (segment,) = layout.segments()
    first, *others = segment.read_bytes().splitlines(keepends=True)
    for number, lines in ((1, [b"x" + first[1:], *others]), (2, [first, b"x" + others[0][1:], *others[1:]])):
        segment.write_bytes(b"".join(lines))
        with pytest.raises(StorageError, match=rf"000001\.jsonl:{number}: the journal is damaged") as refused:
            open_journal(layout, 2)
        assert ("as many spaces" in str(refused.value)) == (number > 1)


def test_a_driver_whose_lock_was_removed_writes_no_more_once_another_has_it(layout: Layout) -> None:
    with SweepLock(layout) as lock:
        journal = Journal(layout, lock.owner)
        layout.lock.unlink()
        with SweepLock(layout) as second:
            assert second.owner.token == lock.owner.token
            with pytest.raises(StorageError, match="was taken over by process"):
                journal.append(*planned("a"))


def test_a_driver_that_lost_the_sweep_writes_no_more(layout: Layout) -> None:
    with SweepLock(layout) as lock:
        journal = Journal(layout, lock.owner)
    with SweepLock(layout), pytest.raises(StorageError, match="was taken over by process"):
        journal.append(*planned("a"))


def test_an_event_of_an_unknown_kind_is_damage(layout: Layout) -> None:
    journal = open_journal(layout)
    journal.append(*planned("a"))
    (segment,) = layout.segments()
    text = segment.read_bytes()
    stranger = (
        encode(Entry(1.0, SessionEnded(0)))
        .partition(b" ")[2]
        .rstrip(b"\n")
        .replace(b"SessionEnded", b"Other")
    )
    segment.write_bytes(text + b"%08x %s\n" % (zlib.crc32(stranger), stranger) + encode(journal.entries[0]))
    with pytest.raises(StorageError, match="damaged"):
        read(layout)


def test_what_an_older_owner_writes_after_it_lost_the_sweep_is_ignored(layout: Layout) -> None:
    old = open_journal(layout, 1)
    old.append(*planned("a"), UnitStarted("a", ("a",), WORKER))
    new = open_journal(layout, 2)
    old.append(finished("a", 0.9))
    new.append(finished("a", 0.5))
    assert read(layout) == new.entries
    assert replay(read(layout)).trials["a"].score == 0.5

    third = open_journal(layout, 3)
    old.append(CheckpointRemoved("a"))
    new.append(CheckpointRemoved("a"))
    third.append(SessionEnded(0))
    assert read(layout) == third.entries
    assert CheckpointRemoved("a") not in happened(third.entries)
    assert finished("a", 0.9) not in happened(third.entries)


def test_a_session_that_died_before_its_first_line_does_no_harm(layout: Layout) -> None:
    first = open_journal(layout)
    first.append(*planned("a"))
    layout.next_segment().write_bytes(b"12345678 {")
    third = open_journal(layout, 3)
    first.append(finished("a", 0.9))
    assert read(layout) == third.entries
    assert third.record.trials["a"].state == "planned"


# -------------------------------------------------------------------------------------------------- replaying


def record_of(*happenings: Event) -> SweepRecord:
    """The state after events, one a second."""
    started = SessionStarted(1, "host", 7, "0", {})
    return replay(Entry(float(second), event) for second, event in enumerate([started, *happenings]))


def test_a_trial_runs_is_evaluated_and_finishes() -> None:
    plan = planned("a")
    record = record_of(
        *plan,
        UnitStarted("a", ("a",), WORKER),
        evaluated("a", 1, 0.75),
        evaluated("a", 2, 0.5),
        finished("a", 0.75, 1, 2),
    )
    trial = record.trials["a"]
    assert (trial.state, trial.score, trial.attempts, trial.worker) == ("finished", 0.75, 1, WORKER)
    assert (trial.started, trial.evaluation_times, trial.ended) == (3.0, [4.0, 5.0], 6.0)
    assert trial.metrics == {"accuracy": 0.75, "loss": 0.5}
    assert trial.checkpoint == "trials/a/epoch-0001"
    assert trial.done


def test_the_first_journalled_value_stands() -> None:
    record = record_of(
        *planned("a"),
        UnitStarted("a", ("a",), WORKER),
        evaluated("a", 1, 0.5),
        SessionStarted(2, "host", 8, "0", {}),
        UnitStarted("a", ("a",), WORKER),
        evaluated("a", 1, 0.9),
        evaluated("a", 2, 0.6),
        finished("a", 0.6, 2, 2),
        finished("a", 0.9, 1, 2),
    )
    trial = record.trials["a"]
    assert [evaluation.metrics["accuracy"] for evaluation in trial.evaluations] == [0.5, 0.6]
    assert trial.score == 0.6
    assert trial.attempts == 2


def test_a_unit_that_extends_a_finished_trial_leaves_it_as_it_is() -> None:
    record = record_of(
        *planned("a"),
        UnitStarted("a", ("a",), WORKER),
        evaluated("a", 1, 0.5),
        finished("a", 0.5),
        *planned("a", "b"),
        UnitStarted("b", ("a", "b"), WORKER),
    )
    assert (record.trials["a"].state, record.trials["a"].score) == ("finished", 0.5)
    assert record.trials["b"].state == "running"


@pytest.mark.parametrize("end", [SessionEnded(130), SessionStarted(2, "host", 8, "0", {})])
def test_an_interrupted_trial_is_planned_again(end: Event) -> None:
    record = record_of(*planned("a"), UnitStarted("a", ("a",), WORKER), evaluated("a", 1, 0.5), end)
    trial = record.trials["a"]
    assert (trial.state, trial.attempts, len(trial.evaluations)) == ("planned", 1, 1)
    assert not trial.done


def test_a_failed_trial_is_not_done_a_diverged_one_is() -> None:
    record = record_of(
        *planned("a", "b"),
        TrialEnded("a", "failed", failure=Failure("fault", "a bug")),
        TrialEnded("b", "diverged", failure=Failure("diverged", "nan")),
    )
    assert not record.trials["a"].done
    assert record.trials["b"].done
    assert record.ranking() == []
    record.apply(Entry(9.0, UnitStarted("a", ("a", "b"), WORKER)))
    assert record.trials["a"].end is None
    assert {key: trial.state for key, trial in record.trials.items()} == {"a": "running", "b": "diverged"}


def test_the_best_trial_is_of_the_present_plan_and_ties_go_to_the_fewest_epochs() -> None:
    ends = [finished("a", 0.9), finished("b", 0.5), finished("c", 0.7), finished("d", 0.7)]
    record = record_of(*planned("a", "b", "c", "d"), *ends)
    assert [trial.key for trial in record.ranking()] == ["a", "c", "d", "b"]
    record.apply(Entry(9.0, planned("d", "c", "b")[-1]))
    assert [trial.key for trial in record.ranking()] == ["c", "d", "b"]
    assert (best := record.best()) is not None
    assert best.key == "c"
    assert "a" in record.trials


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("keys", [("a", "b", "c", "d"), ("d", "a", "c"), ("b",)])
def test_a_ranking_that_is_kept_up_is_that_of_a_replay(
    keys: tuple[str, ...], mode: Literal["max", "min"]
) -> None:
    """It was asked for before scores came. One trial is told twice, one had failed, one's score becomes another."""
    later: list[Event] = [
        finished("c", 0.7),
        finished("a", 0.9),
        finished("c", 0.1),
        finished("d", 0.7),
        evaluated("a", 1, 0.2),
        finished("a", 0.9),
        finished("b", 0.8),
    ]
    plan = SweepPlanned("text-classification", "fp", "accuracy", mode, "best", "fp32", "cpu", keys)
    events = [*planned("a", "b", "c", "d"), plan]
    record = record_of(*events, TrialEnded("b", "failed", failure=Failure("fault", "a bug")))
    seen: list[Event] = []
    for event in later:
        assert record.ranking(2) == record.ranking()[:2]
        record.apply(Entry(9.0, event))
        seen.append(event)
        again = record_of(*events, *seen).ranking()
        assert [t.key for t in record.ranking()] == [t.key for t in again]
    order = {"max": "bcda", "min": "acdb"}[mode]  # c and d tie, d has more epochs
    assert [trial.key for trial in record.ranking()] == [key for key in order if key in keys]


def test_a_metric_that_is_minimised() -> None:
    plan = SweepPlanned("text-classification", "fp", "loss", "min", "best", "fp32", "cpu", ("a", "b"))
    record = record_of(*planned("a", "b")[:-1], plan, finished("a", 0.9), finished("b", 0.5))
    assert [trial.key for trial in record.ranking()] == ["b", "a"]


def test_checkpoints_come_and_go() -> None:
    record = record_of(*planned("a"), finished("a", 0.5), CheckpointRemoved("a"))
    assert [trial.checkpoint for trial in record.current()] == [None]
    record.apply(Entry(9.0, CheckpointWritten("a", "trials/a/epoch-0002")))
    assert [trial.checkpoint for trial in record.current()] == ["trials/a/epoch-0002"]
    assert record.trials["a"].state == "finished"


def test_the_sweep_knows_its_runs_its_champion_and_its_end() -> None:
    read_once = TestRead("a", 2, "cd", {"accuracy": 0.4})
    champion = Promoted("a", 2, {"accuracy": 0.5}, {"accuracy": 0.4}, "bert", "1")
    record = record_of(
        *planned("a"), Tracked("", "run-0"), Tracked("a", "run-1"), read_once, champion, SessionEnded(0)
    )
    assert (record.mlflow_run_id, record.trials["a"].mlflow_run_id) == ("run-0", "run-1")
    assert (record.test_reads, record.promoted) == ([read_once], champion)
    assert (record.exit_code, record.started, record.updated) == (0, 0.0, 7.0)


@pytest.mark.parametrize("first", range(1, 9))
def test_replaying_in_two_parts_equals_replaying_at_once(first: int) -> None:
    happenings = [
        *planned("a", "b"),
        UnitStarted("b", ("a", "b"), WORKER),
        evaluated("a", 1, 0.5),
        finished("a", 0.5),
        SessionEnded(130),
    ]
    entries = [Entry(float(second), event) for second, event in enumerate(happenings)]
    record = replay(entries[:first])
    for entry in entries[first:]:
        record.apply(entry)
    assert record == replay(entries)


def test_events_of_a_trial_whose_plan_was_lost_are_passed_over() -> None:
    planned = TrialPlanned("a", "a", {}, {"epochs": 1}, 0)
    end = TrialEnded("b", "finished", score=0.5)
    plan = SweepPlanned("t", "f", "accuracy", "max", "best", "fp32", "cpu", ("a", "b"))
    events: list[Event] = [planned, plan, UnitStarted("b", ("b", "a"), WORKER), end, Tracked("b", "r")]

    record = replay(Entry(0.0, event) for event in events)

    assert [trial.key for trial in record.current()] == ["a"]
    assert record.trials["a"].state == "running"


def test_a_foreign_file_among_the_segments_is_none(layout: Layout) -> None:
    journal = Journal(layout, Owner("host", 1, 0.0, 1))
    journal.close()
    (layout.journal / "notes.jsonl").write_text("mine")

    assert [segment.name for segment in layout.segments()] == ["000001.jsonl"]
    assert layout.next_segment().name == "000002.jsonl"


def test_an_edited_metric_ranks_the_trials_that_are_there() -> None:
    keys = ("a", "b")
    events: list[Event] = [TrialPlanned(key, key, {}, {"epochs": 2}, 0) for key in keys]
    events.append(SweepPlanned("t", "f", "accuracy", "max", "best", "fp32", "cpu", keys))
    for key, values in {"a": [(0.9, 0.5), (0.8, 0.1)], "b": [(0.7, 0.3), (0.6, 0.4)]}.items():
        for epoch, (accuracy, loss) in enumerate(values, 1):
            metrics = {"accuracy": accuracy, "loss": loss}
            events.append(Evaluated(key, (key,), epoch, epoch, 0.0, 0.0, metrics, metrics, 0.0, 0.0, 1))
        events.append(TrialEnded(key, "finished", epochs_done=2, best_epoch=1, score=values[0][0]))
    by_accuracy = replay(Entry(0.0, event) for event in events)
    events.append(SweepPlanned("t", "f", "loss", "min", "best", "fp32", "cpu", keys))
    by_loss = replay(Entry(0.0, event) for event in events)

    assert [(t.key, t.score, t.best_epoch) for t in by_accuracy.ranking()] == [("a", 0.9, 1), ("b", 0.7, 1)]
    assert [(t.key, t.score, t.best_epoch) for t in by_loss.ranking()] == [("a", 0.1, 2), ("b", 0.3, 1)]
