from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from finetune_sweep import display
from finetune_sweep.display import LiveDisplay, PlainDisplay, open_display, render_plan, show
from finetune_sweep.events import (
    Entry,
    Evaluated,
    Event,
    Failure,
    Promoted,
    SessionStarted,
    SweepPlanned,
    TrialEnded,
    TrialPlanned,
    UnitStarted,
    WorkerInfo,
)
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.report import SweepReport, status
from finetune_sweep.yamlio import Value

WORKER = WorkerInfo("here", 1, "cpu", 1, "", "node")


def planned(key: str, rate: float, epochs: int) -> TrialPlanned:
    config: dict[str, Value] = {"learning_rate": rate, "epochs": epochs}
    label = f"learning_rate={rate:g} epochs={epochs}"
    return TrialPlanned(key, label, config, {**config, "lr_schedule.type": "constant"}, 0)


def evaluated(keys: Sequence[str], epoch: int, accuracy: float) -> Evaluated:
    return Evaluated(
        keys[-1], tuple(keys), epoch, 10 * epoch, 0.5, 1e-4, {"accuracy": accuracy}, 9.0, 1.0, 16
    )


def ended(key: str, score: float, epoch: int) -> TrialEnded:
    return TrialEnded(key, "finished", epoch, epoch, score)


BEGIN: tuple[Event, ...] = (
    SessionStarted(1, "here", 1, "0", {}),
    planned("a2", 1e-4, 2),
    planned("a4", 1e-4, 4),
    planned("b4", 2e-4, 4),
    SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", ("a2", "a4", "b4")),
    UnitStarted("a4", ("a2", "a4"), WORKER),
    UnitStarted("b4", ("b4",), WORKER),
)
HALF: tuple[Event, ...] = (
    *BEGIN,
    evaluated(["a2", "a4"], 1, 0.6),
    evaluated(["a2", "a4"], 2, 0.8),
    ended("a2", 0.8, 2),
    evaluated(["b4"], 1, 0.5),
)
FAILED = TrialEnded("b4", "failed", failure=Failure("out_of_memory", "21 GiB were asked for\nand more"))
DONE: tuple[Event, ...] = (*HALF, ended("a4", 0.8, 2), FAILED)
PROMOTED = Promoted("a2", {"accuracy": 0.8}, {"accuracy": 0.7}, "s", "3")


def record_of(*events: Event) -> SweepRecord:
    return replay(Entry(float(second), event) for second, event in enumerate(events, 1))


def report_of(*events: Event, locked: bool = True) -> SweepReport:
    return status(record_of(*events), "s", locked=locked)


def printed(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def plain_lines(events: Sequence[Event], tmp_path: Path) -> list[str]:
    """What the plain display prints when it is told of each event in turn."""
    record = SweepRecord()
    with (tmp_path / "out").open("w") as stream, open_display("s", slots=2, stream=stream) as shown:
        assert isinstance(shown, PlainDisplay)
        for second, event in enumerate(events, 1):
            record.apply(Entry(float(second), event))
            shown.update(record)
        shown.note("said once")
    return (tmp_path / "out").read_text().splitlines()


# ------------------------------------------------------------------------------------------------ rendering


def test_the_table_has_the_searched_settings_and_marks_the_best() -> None:
    lines = printed(display.render_table(report_of(*HALF))).splitlines()
    assert lines[0] == "s  running, 1 of 3 trials ended, 2 running, about 30 s left"
    assert lines[1].split() == ["learning_rate", "epochs", "state", "done", "accuracy", "time", "trial"]
    assert lines[2].split() == ["*", "0.0001", "2", "finished", "2/2", "0.8000", "20", "s", "a2"]
    assert lines[4].split() == ["0.0002", "4", "running", "1/4", "0.5000", "10", "s", "b4"]


def test_the_table_names_failed_trials_with_class_and_message() -> None:
    text = printed(display.render_table(report_of(*DONE, locked=False)))
    assert "failed (out of memory) learning_rate=0.0002 epochs=4: 21 GiB were asked for\n" in text


def test_the_table_counts_trials_that_the_file_dropped() -> None:
    now = SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", ("a2",))
    text = printed(display.render_table(report_of(*DONE, now, locked=False)))
    assert "2 trials no longer in the sweep file" in text
    assert "b4" not in text


def test_a_sweep_without_trials_has_a_headline() -> None:
    assert printed(display.render_table(report_of(locked=False))).strip() == "s  planned"


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_gets_every_trial_in_lines_that_fit(width: int) -> None:
    text = printed(display.render_table(report_of(*HALF)), width)
    assert max(map(len, text.splitlines())) <= width
    assert " ".join(text.split()).count("learning_rate=") == 3
    assert "* finished" in text


def test_progress_shows_one_line_a_trajectory_that_runs() -> None:
    text = printed(display.render_progress(report_of(*HALF), waited_s=10))
    assert "1 of 3 trials ended, 2 running, about 20 s left" in text
    assert text.splitlines()[2] == "best so far: accuracy 0.8000 at epoch 2  learning_rate=0.0001 epochs=2"
    assert [line.split()[:4] for line in text.splitlines()[-2:]] == [
        ["epoch", "2", "of", "4"],
        ["epoch", "1", "of", "4"],
    ]


def test_progress_of_many_running_trials_stays_short() -> None:
    keys = [f"t{number}" for number in range(20)]
    plan = SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", tuple(keys))
    trials = [planned(key, number + 1, 2) for number, key in enumerate(keys)]
    units = [UnitStarted(key, (key,), WORKER) for key in keys]
    text = printed(display.render_progress(report_of(*trials, plan, *units)))
    assert len(text.splitlines()) < 15
    assert "and 12 more" in text


def test_the_plan_is_two_columns() -> None:
    text = printed(render_plan([("trials", "12 in 4 trajectories"), ("", "[none] merged")]))
    assert [line.rstrip() for line in text.splitlines()] == [
        "trials  12 in 4 trajectories",
        "        [none] merged",
    ]


def test_the_result_has_the_winner_its_metrics_and_absolute_paths() -> None:
    report = report_of(*DONE, PROMOTED, locked=False)
    lines = printed(
        display.render_result(report, {"checkpoint": Path("best"), "MLflow": "sqlite:///x.db"})
    ).splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert rows["winner"] == "learning_rate=0.0001 epochs=2 (epoch 2)"
    assert (rows["validation"], rows["test"]) == ("accuracy 0.8000", "accuracy 0.7000")
    assert rows["registered"] == "s version 3"
    assert rows["checkpoint"] == str(Path("best").absolute())
    assert rows["MLflow"] == "sqlite:///x.db"
    assert "out of memory" in rows["failed"]


def test_the_result_of_a_sweep_without_a_finished_trial_says_so() -> None:
    text = printed(display.render_result(report_of(*BEGIN, FAILED, locked=False), {}))
    assert "none: no trial finished" in text


def test_labels_with_brackets_are_printed_as_they_are() -> None:
    trial = TrialPlanned("k", "model=[bold]x", {"model": "[bold]x"}, {"epochs": 1}, 0)
    plan = SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", ("k",))
    assert "[bold]x" in printed(display.render_table(report_of(trial, plan)))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (179, "3 min"), (7500, "2 h 05 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert display.format_seconds(seconds) == text


# ------------------------------------------------------------------------------------------- while it runs


def test_plain_output_has_a_line_for_each_end_and_each_better_evaluation(tmp_path: Path) -> None:
    assert plain_lines(DONE, tmp_path) == [
        "      epoch 1: accuracy 0.6000, the best so far  learning_rate=0.0001 epochs=4",
        "      epoch 2: accuracy 0.8000, the best so far  learning_rate=0.0001 epochs=4",
        "[1/3] finished learning_rate=0.0001 epochs=2  accuracy 0.8000 at epoch 2 (20 s, about 40 s left)",
        "[2/3] finished learning_rate=0.0001 epochs=4  accuracy 0.8000 at epoch 2 (20 s, about 30 s left)",
        "[3/3] failed (out of memory) learning_rate=0.0002 epochs=4: 21 GiB were asked for (10 s)",
        "said once",
    ]


def test_plain_output_does_not_repeat_what_an_earlier_driver_did(tmp_path: Path) -> None:
    again = SessionStarted(2, "here", 2, "0", {})
    lines = plain_lines((*HALF, again, UnitStarted("b4", ("b4",), WORKER), ended("b4", 0.9, 1)), tmp_path)
    record = record_of(*HALF, again)
    with (tmp_path / "out").open("w") as stream, open_display("s", stream=stream) as shown:
        shown.update(record)
        record.apply(Entry(99.0, ended("b4", 0.9, 1)))
        shown.update(record)
    assert (tmp_path / "out").read_text().startswith("[2/3] finished learning_rate=0.0002")
    assert lines[-2].startswith("[2/3] finished learning_rate=0.0002")


def test_a_lower_loss_is_better_when_the_metric_is_minimised(tmp_path: Path) -> None:
    plan = SweepPlanned("text-classification", "d", "accuracy", "min", "best", "fp32", "cpu", ("a2",))
    events = (*BEGIN, plan, evaluated(["a2"], 1, 0.6), evaluated(["a2"], 2, 0.8), evaluated(["a2"], 3, 0.5))
    assert [line.split()[1] for line in plain_lines(events, tmp_path)[:-1]] == ["1:", "3:"]


def test_a_nan_is_never_the_best(tmp_path: Path) -> None:
    events = (*BEGIN, evaluated(["b4"], 1, float("nan")), evaluated(["b4"], 2, 0.5))
    assert [line.split()[1] for line in plain_lines(events, tmp_path)[:-1]] == ["2:"]


def test_output_that_cannot_be_written_is_dropped(tmp_path: Path) -> None:
    stream = (tmp_path / "out").open("w")
    shown = open_display("s", stream=stream)
    stream.close()
    shown.note("nobody")
    shown.update(record_of(*HALF))
    shown.close()
    shown.close()


def test_characters_that_the_stream_does_not_have_are_replaced(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        open_display("s", stream=stream).note("naïve")
        show("café", stream)
    assert (tmp_path / "out").read_text() == "na?ve\ncaf?\n"


def test_a_reader_that_left_does_not_end_the_run() -> None:
    code = (
        "import sys\nfrom finetune_sweep.display import open_display, show\n"
        "sys.stdin.readline()\nopen_display('s').note('x')\nshow('y')\nprint('on', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate("go\n", timeout=60)
    assert (process.returncode, errors) == (0, "on\n")


def test_a_process_without_standard_output_runs() -> None:
    code = "from finetune_sweep.display import open_display, show; open_display('s').note('x'); show('y')"
    subprocess.run(["/bin/sh", "-c", f'exec "{sys.executable}" -c "{code}" >&-'], check=True, timeout=60)


# A terminal, as the display sees it: what is written to `slave` is read from `master`.


def terminal_output(events: Sequence[Event], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    master, slave = pty.openpty()
    received: list[bytes] = []
    reader = threading.Thread(target=drain, args=(master, received))
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        shown = open_display("s", stream=stream)
        assert isinstance(shown, LiveDisplay)
        thread = threading.Thread(target=shown.update, args=(record_of(*events),))
        thread.start()
        thread.join()
        shown.note("said once")
        shown.close()
        shown.close()
    reader.join()
    os.close(master)
    return b"".join(received).decode()


def drain(master: int, received: list[bytes]) -> None:
    """Reads a terminal until it is closed on the other side, which Linux reports as an error."""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 65536):
            received.append(chunk)


def test_a_terminal_gets_a_live_table_and_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    text = terminal_output(HALF, monkeypatch)
    assert "1 of 3 trials ended" in text
    assert "said once" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_terminal_gets_a_line_for_each_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "failed (out of memory) learning_rate=0.0002 epochs=4" in terminal_output(DONE, monkeypatch)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        assert isinstance(open_display("s", stream=stream), PlainDisplay)
    os.close(master)


def test_a_terminal_that_hangs_up_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    shown = open_display("s", stream=stream)
    os.close(master)
    shown.update(record_of(*HALF))
    shown.note("nobody")
    shown.close()
    with contextlib.suppress(OSError):
        stream.close()
