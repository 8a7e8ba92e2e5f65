"""What a run does about lost workers and a limit of time: real Ray, real training, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from finetune_sweep.events import Evaluated, Event, TrialEnded, UnitStarted
from finetune_sweep.journal import read
from tests.commands import TIMEOUT_S, command, layout, status, trials, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import WriteSweep

RATES = "{learning_rate: [1e-3, 2e-3, 3e-3], epochs: [40]}"


def in_training(events: list[Event]) -> UnitStarted | None:
    """The unit that was begun last, if it has told an evaluation and is not about to end."""
    started = [event for event in events if isinstance(event, UnitStarted)]
    epochs = [e.epoch for e in events if isinstance(e, Evaluated) and started and e.unit == started[-1].unit]
    return started[-1] if epochs and epochs[-1] < 30 else None


def run_and_kill_the_second_worker(sweep: Path) -> tuple[int, str, dict[str, Any]]:
    """Runs a sweep of one slot; kills its worker when a trial has ended and the next one is in training.

    Returns:
        The exit code, the key of the trial that lost its worker, and the trials that were finished before.
    """
    line = [sys.executable, "-m", "finetune_sweep", "run", str(sweep), "--set", "max_concurrent=1"]
    driver = subprocess.Popen(line, cwd=sweep.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(
        sweep,
        lambda events: any(isinstance(e, TrialEnded) for e in events) and in_training(events) is not None,
    )
    unit = in_training([entry.event for entry in read(layout(sweep))])
    assert unit is not None
    os.kill(unit.worker.pid, signal.SIGKILL)
    finished = {key: trial for key, trial in trials(sweep).items() if trial["state"] == "finished"}
    driver.wait(TIMEOUT_S)
    return driver.returncode, unit.unit, finished


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_is_trained_again_and_no_other(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space=RATES)

    code, lost, before = run_and_kill_the_second_worker(sweep)

    assert code == 0
    after = trials(sweep)
    assert {trial["state"] for trial in after.values()} == {"finished"}
    assert {key: trial["attempts"] for key, trial in after.items()} == {
        key: 2 if key == lost else 1 for key in after
    }
    assert before
    assert {key: {**after[key], "mlflow_run_id": ""} for key in before} == {
        key: {**trial, "mlflow_run_id": ""} for key, trial in before.items()
    }


@pytest.mark.slow
def test_without_retries_a_lost_worker_is_the_end_of_its_trial_alone(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space=RATES, extra="retries: 0\n")

    code, lost, _ = run_and_kill_the_second_worker(sweep)

    assert code == 1
    after = trials(sweep)
    assert {key: trial["state"] for key, trial in after.items()} == {
        key: "failed" if key == lost else "finished" for key in after
    }
    ends = [entry.event for entry in read(layout(sweep)) if isinstance(entry.event, TrialEnded)]
    failures = [end.failure for end in ends if end.key == lost]
    assert [failure.kind for failure in failures if failure is not None] == ["lost_worker"]


@pytest.mark.slow
def test_when_the_time_is_up_nothing_is_started_until_the_next_run(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space="{learning_rate: [1e-3], epochs: [1]}")
    more = ["--set", "space.learning_rate=[1e-3, 2e-3]"]
    assert command("run", sweep, cwd=sweep.parent).code == 0

    late = command("run", sweep, *more, "--set", "search.max_hours=1e-9", cwd=sweep.parent)

    assert late.code == 0, late.err
    assert [trial["state"] for trial in trials(sweep).values()] == ["finished", "planned"]
    assert status(sweep)["state"] == "interrupted"

    assert command("run", sweep, *more, cwd=sweep.parent).code == 0
    assert [trial["state"] for trial in trials(sweep).values()] == ["finished", "finished"]
    assert status(sweep)["state"] == "finished"


@pytest.mark.slow
def test_a_worker_that_takes_no_step_in_time_is_ended_and_its_trial_says_where_it_hung(
    write_sweep: WriteSweep,
) -> None:
    sweep = write_sweep(
        space="{learning_rate: [1e-3], epochs: [1]}", extra="trial_timeout_s: 1e-3\nretries: 1\n"
    )

    result = command("run", sweep, cwd=sweep.parent)

    assert result.code == 1
    ends = [entry.event for entry in read(layout(sweep)) if isinstance(entry.event, TrialEnded)]
    failures = [end.failure for end in ends if end.failure is not None]
    assert [failure.kind for failure in failures] == ["hang"]
    assert failures[0].message == "no step within trial_timeout_s (0.001 s), 2 times"
    assert "most recent call first" in failures[0].traceback


@pytest.mark.slow
def test_a_worker_whose_memory_grows_is_replaced_in_its_slot_and_nobody_is_told(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    sweep = write_sweep(
        space="{learning_rate: [1e-3, 2e-3, 3e-3], epochs: [1]}", extra="retries: 0\nmax_concurrent: 1\n"
    )
    everywhere = tmp_path / "everywhere"
    everywhere.mkdir()
    (everywhere / "sitecustomize.py").write_text(
        "from finetune_sweep.tune import watch\nwatch._GROWTH, watch._GROWTH_BYTES = 0.5, -(1 << 50)\n"
    )
    program = (
        "import sys\n"
        "from finetune_sweep.cli import main\n"
        "from finetune_sweep.tune.driver import Driver\n"
        "fit = Driver._fit\n"
        "Driver._fit = lambda *given: (print('a round of Ray Tune'), fit(*given))\n"
        "sys.exit(main())\n"
    )
    paths = os.pathsep.join([str(everywhere), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(sweep)],
        cwd=sweep.parent,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    started = [entry.event for entry in read(layout(sweep)) if isinstance(entry.event, UnitStarted)]
    assert len({event.worker.pid for event in started}) == len(started) == 3
    assert done.stdout.count("a round of Ray Tune") == 1
    assert "did not complete" not in done.stderr
    assert "Trial task failed" not in done.stderr
    assert "ERROR" not in done.stderr
