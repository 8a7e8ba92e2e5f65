from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from finetune_sweep.events import SweepPlanned, TrialPlanned, UnitStarted
from finetune_sweep.render import format_seconds, render_plan, render_progress, render_result, render_table
from tests.records import BEGIN, DONE, FAILED, HALF, PROMOTED, WORKER, planned, report_of


def printed(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_has_the_searched_settings_and_marks_the_best() -> None:
    lines = printed(render_table(report_of(*HALF))).splitlines()
    assert lines[0] == "s  running, 1 of 3 trials ended, 2 running, about 30 s left"
    assert lines[1].split() == ["learning_rate", "epochs", "state", "done", "accuracy", "time", "trial"]
    assert lines[2].split() == ["*", "0.0001", "2", "finished", "2/2", "0.8000", "20", "s", "a2"]
    assert lines[4].split() == ["0.0002", "4", "running", "1/4", "0.5000", "10", "s", "b4"]


def test_the_table_names_failed_trials_with_class_and_message() -> None:
    text = printed(render_table(report_of(*DONE, locked=False)))
    assert "failed (out of memory) learning_rate=0.0002 epochs=4: 21 GiB were asked for\n" in text


def test_the_table_counts_trials_that_the_file_dropped() -> None:
    now = SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", ("a2",))
    text = printed(render_table(report_of(*DONE, now, locked=False)))
    assert "2 trials no longer in the sweep file" in text
    assert "b4" not in text


def test_a_sweep_without_trials_has_a_headline() -> None:
    assert printed(render_table(report_of(locked=False))).strip() == "s  planned"


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_gets_every_trial_in_lines_that_fit(width: int) -> None:
    text = printed(render_table(report_of(*HALF)), width)
    assert max(map(len, text.splitlines())) <= width
    assert " ".join(text.split()).count("learning_rate=") == 3
    assert "* finished" in text


def test_progress_shows_one_line_a_trajectory_that_runs() -> None:
    text = printed(render_progress(report_of(*HALF), waited_s=10))
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
    text = printed(render_progress(report_of(*trials, plan, *units)))
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
        render_result(report, {"checkpoint": Path("best"), "MLflow": "sqlite:///x.db"})
    ).splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert rows["winner"] == "learning_rate=0.0001 epochs=2 (epoch 2)"
    assert (rows["validation"], rows["test"]) == ("accuracy 0.8000", "accuracy 0.7000")
    assert rows["registered"] == "s version 3"
    assert rows["checkpoint"] == str(Path("best").absolute())
    assert rows["MLflow"] == "sqlite:///x.db"
    assert "out of memory" in rows["failed"]


def test_the_result_of_a_sweep_without_a_finished_trial_says_so() -> None:
    text = printed(render_result(report_of(*BEGIN, FAILED, locked=False), {}))
    assert "none: no trial finished" in text


def test_labels_with_brackets_are_printed_as_they_are() -> None:
    trial = TrialPlanned("k", "model=[bold]x", {"model": "[bold]x"}, {"epochs": 1}, 0)
    plan = SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", ("k",))
    assert "[bold]x" in printed(render_table(report_of(trial, plan)))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (179, "3 min"), (7500, "2 h 05 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
