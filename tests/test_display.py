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

from finetune_sweep import display
from finetune_sweep.display import LiveDisplay, PlainDisplay, open_display, show
from finetune_sweep.events import Entry, Event, SessionStarted, SweepPlanned, UnitStarted
from finetune_sweep.record import SweepRecord
from tests.records import BEGIN, DONE, HALF, WORKER, ended, evaluated, record_of


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


def test_of_many_trials_plain_output_tells_the_same_in_fewer_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, looks = [line for line in plain_lines(DONE, tmp_path) if line.startswith("[")], []
    look = display._News.lines

    def lines(news: display._News, record: SweepRecord) -> list[display._Line]:
        looks.append(len(record.trials))
        return look(news, record)

    monkeypatch.setattr(display, "_MANY", -1)
    monkeypatch.setattr(display, "_SPARING", 1e9)
    monkeypatch.setattr(display._News, "lines", lines)
    fewer = plain_lines(DONE, tmp_path)
    assert [line.split(" (")[0] for line in fewer if line.startswith("[")] == [
        line.split(" (")[0] for line in every
    ]
    assert len(looks) == 2


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


def test_of_many_trials_a_terminal_is_told_of_each_failure_in_fewer_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, look = [], display._News.lines

    def lines(news: display._News, record: SweepRecord) -> list[display._Line]:
        looks.append(len(record.trials))
        return look(news, record)

    monkeypatch.setattr(display, "_SPARING", 1e9)
    monkeypatch.setattr(display._News, "lines", lines)
    with io.StringIO() as stream:
        shown = LiveDisplay("s", None, display._Output(stream))
        for count in range(len(HALF), len(DONE) + 1):
            shown.update(record_of(*DONE[:count]))
        shown.close()
        assert "failed (out of memory) learning_rate=0.0002 epochs=4" in stream.getvalue()
    assert len(looks) == 2


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
