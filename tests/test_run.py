"""The commands as a user types them, with real Ray, real MLflow and real training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune_sweep.durable import check_folder
from finetune_sweep.events import Evaluated, Event, Suggested, TrialEnded, UnitStarted
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from tests.commands import TIMEOUT_S, command, layout, status, trials, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import WriteSweep


def test_a_sweep_ends_with_a_model_and_goes_on_where_its_file_is_edited(write_sweep: WriteSweep) -> None:
    """One story, since each part starts from what the one before left: run, again, extended, shrunk."""
    sweep = write_sweep()
    folder = sweep.parent

    first = command("run", sweep, cwd=folder)
    assert (first.code, first.err) == (0, "")
    before = trials(sweep)
    assert [trial["state"] for trial in before.values()] == ["finished"] * 4
    assert [trial["epochs_done"] for trial in before.values()] == [1, 2, 1, 2]
    started = [entry.event for entry in read(layout(sweep)) if isinstance(entry.event, UnitStarted)]
    assert {event.worker.threads for event in started} == {1}
    check_best(folder / "runs" / "tiny" / "best")
    check_mlflow(folder, before)

    leave_what_kills_leave(folder / "runs" / "tiny", next(iter(before)))
    again = command("run", sweep, cwd=folder)
    assert again.code == 0
    assert not [path for path in (folder / "runs").rglob("*") if "left" in path.name]
    assert "nothing is left to train" in again.out
    assert trials(sweep) == before

    extended = command("run", sweep, "--set", "space.learning_rate=[1e-3, 1e-2, 3e-2]", cwd=folder)
    assert extended.code == 0
    assert "2 of 6 trials to train" in extended.out
    after = trials(sweep)
    assert {key: after[key] for key in before} == before

    best = status(sweep)["best"]["key"]
    kept = next(rate for rate in (1e-3, 1e-2, 3e-2) if rate != after[best]["config"]["learning_rate"])
    shrunk = command("run", sweep, "--set", f"space.learning_rate=[{kept}]", cwd=folder)
    assert shrunk.code == 0, shrunk.err
    assert status(sweep)["best"]["config"]["learning_rate"] == kept
    assert trials(sweep)[best]["current"] is False
    results = json.loads((folder / "runs" / "tiny" / "best" / "eval_results.json").read_text())
    assert results["key"] == status(sweep)["best"]["key"]


def leave_what_kills_leave(root: Path, key: str) -> None:
    """As if the last worker and the driver had died when all results were journalled."""
    (root / ".sweep.lock.yaml.left.tmp").touch()
    (root / "trials" / key / "resume-0001-left").mkdir(parents=True)
    (root / "trials" / key / ".epoch-0001.left.tmp").mkdir()
    (root / "trials" / key / "left.txt").touch()


def check_best(best: Path) -> None:
    model, report = AutoModelForSequenceClassification.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.id2label == {0: "blame", 1: "praise"}
    assert AutoTokenizer.from_pretrained(best)("ann saw a good film")["input_ids"][0] == 1


def check_mlflow(folder: Path, known: dict[str, Any]) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.info.run_id for run in children} == {trial["mlflow_run_id"] for trial in known.values()}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert len({frozenset(run.data.params) for run in children}) == 1
    assert all(value for run in children for value in run.data.params.values())
    assert len({frozenset(run.data.metrics) for run in children}) == 1
    for run in children:
        epochs = int(run.data.params["epochs"])
        history = client.get_metric_history(run.info.run_id, "validation_accuracy")
        assert [point.step for point in history] == list(range(1, epochs + 1))
    assert client.get_model_version_by_alias("tiny", "champion").version in {1, "1"}


@pytest.mark.slow
def test_slots_do_not_change_a_digit_and_neither_does_sharing(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(
        space="{learning_rate: [1e-3, 3e-3, 1e-2], epochs: [1, 2]}", training="{precision: fp32}"
    )
    folder = sweep.parent
    for name, sets in {"two": [], "one": ["max_concurrent=1"], "alone": ["space.epochs=[2]"]}.items():
        apart = f"storage={folder / name}"  # or the second would take over what the first has
        options = [option for text in [f"name={name}", apart, *sets] for option in ("--set", text)]
        assert command("run", sweep, *options, cwd=folder).code == 0

    def losses(name: str, epochs: int) -> list[tuple[float, float]]:
        entries = [entry.event for entry in read(Layout(folder / name, name))]
        found = {e.keys[-1]: e for e in entries if isinstance(e, Evaluated) and e.epoch == epochs}
        return [(e.train_loss, e.metrics["loss"]) for _, e in sorted(found.items())]

    assert len(losses("two", 2)) == 3
    assert losses("two", 2) == losses("one", 2) == losses("alone", 2)
    assert losses("two", 1) == losses("one", 1) == losses("alone", 1)


@pytest.fixture
def cluster_with_8_gpus(tmp_path: Path) -> Iterator[str]:
    """A Ray on this machine that believes in 8 GPUs; its processes end with the test."""
    ray = Path(sys.executable).with_name("ray")
    port = 26379
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    options = ["--num-gpus=8", "--num-cpus=8", "--node-ip-address=127.0.0.1", f"--port={port}", "--block"]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(
            [ray, "start", "--head", "--include-dashboard=false", *options], env=env, stdout=log, stderr=log
        )
        try:
            wait_until_it_listens(port)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)


def wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "Ray did not start in time"
            time.sleep(0.2)


@pytest.mark.slow
def test_eight_gpus_are_eight_slots_each_with_its_own_device(
    write_sweep: WriteSweep, cluster_with_8_gpus: str
) -> None:
    rates = ", ".join(f"{n}e-3" for n in range(1, 9))
    space = f"{{learning_rate: [{rates}], epochs: [20]}}"
    sweep = write_sweep(space=space, extra="device: cpu\nresources_per_trial: {cpu: 1, gpu: 1}\n")
    env = {"RAY_AUTH_MODE": "disabled"}

    result = command("run", sweep, "--address", cluster_with_8_gpus, cwd=sweep.parent, env=env)

    assert result.code == 0, result.err
    assert "8 at once" in result.out
    events = [entry.event for entry in read(layout(sweep))]
    workers = [event.worker for event in events if isinstance(event, UnitStarted)]
    assert len(workers) == 8
    assert {worker.cuda_visible_devices for worker in workers} == set("01234567")
    assert len({worker.pid for worker in workers}) == 8
    first_end = next(at for at, event in enumerate(events) if isinstance(event, TrialEnded))
    assert sum(isinstance(event, UnitStarted) for event in events[:first_end]) == 8


def test_what_no_node_has_is_refused_before_anything_starts(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(extra="resources_per_trial: {cpu: 999}\n")

    result = command("run", sweep, cwd=sweep.parent)

    assert result.code == 2
    assert "no node has 999 CPUs and 0 GPUs" in result.err
    assert "Traceback" not in result.err


def test_a_disk_that_is_almost_full_stops_the_sweep_before_it_is(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(extra=f"min_free_bytes: {10**18}\n")

    result = command("run", sweep, cwd=sweep.parent)

    assert result.code == 1
    assert "leaves min_free_bytes (1000000000.0 GB): make room" in result.err
    assert status(sweep)["state"] == "planned"


def test_a_fault_of_the_first_trial_stops_the_sweep_with_its_reason(
    write_sweep: WriteSweep, tiny_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    config = broken / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": ', '"intermediate_size": 1'))
    sweep = write_sweep(model=str(broken))

    result = command("run", sweep, cwd=sweep.parent)

    assert result.code == 1
    assert "the first trial failed, and all others would too" in result.err
    assert str(broken) in result.err
    assert sum(trial["attempts"] for trial in trials(sweep).values()) <= 4


def stop(
    sweep: Path,
    when: Callable[[list[Event]], bool],
    number: signal.Signals,
    reached: Callable[[], bool] = lambda: True,
) -> tuple[int, str]:
    """Runs a sweep and sends it a signal at a moment, to all its processes as a terminal does."""
    line = [sys.executable, "-m", "finetune_sweep", "run", str(sweep)]
    driver = subprocess.Popen(
        line, cwd=sweep.parent, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(sweep, when)
    while not reached() and driver.poll() is None:
        time.sleep(0.02)
    os.killpg(driver.pid, number)
    out, _ = driver.communicate(timeout=TIMEOUT_S)
    return driver.returncode, out


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    program = (
        "import os, signal\n"
        "from finetune_sweep.signals import collected\n"
        "with collected() as asked:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(asked.is_stopping())\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(asked.is_stopping())\n"
    )
    done = subprocess.run(
        ["nohup", sys.executable, "-c", program],  # noqa: S607 - found by the shell's rules, as a user's is
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["False", "True"]


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal\n"
        "from finetune_sweep.signals import collected\n"
        "with collected() as asked:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(asked.is_stopping(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('it went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.split()) == (130, ["True"])


def ended(events: list[Event]) -> int:
    return sum(isinstance(event, TrialEnded) for event in events)


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_the_same_command_goes_on(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space="{learning_rate: [1e-3, 2e-3, 3e-3, 4e-3], epochs: [40]}")

    def in_training(events: list[Event]) -> bool:
        return ended(events) > 0 and isinstance(events[-1], Evaluated) and 1 < events[-1].epoch < 20

    code, out = stop(sweep, in_training, signal.SIGHUP)
    assert code == 130
    assert "the same command goes on from here" in out
    assert status(sweep)["state"] == "interrupted"
    finished = {key: trial for key, trial in trials(sweep).items() if trial["state"] == "finished"}
    assert finished
    stored = [path.parent.name for path in layout(sweep).root.glob("trials/*/resume-*/manifest.json")]
    assert stored, "where the training stood was not stored"
    assert not layout(sweep).stop.exists()

    code, out = stop(sweep, lambda events: ended(events) == 4, signal.SIGTERM)
    assert code == 130, out
    assert not layout(sweep).best.exists()
    assert {trial["state"] for trial in trials(sweep).values()} == {"finished"}

    def is_promoting() -> bool:
        return any(layout(sweep).root.glob(".best.*.tmp/config.json"))

    code, out = stop(sweep, lambda events: ended(events) == 4, signal.SIGINT, is_promoting)
    assert code == 130, out  # also while it waits for the process that evaluates the promoted model
    assert not layout(sweep).best.exists()

    assert command("run", sweep, cwd=sweep.parent).code == 0
    after = trials(sweep)
    assert {key: after[key] for key in finished} == finished
    check_folder(layout(sweep).best)


@pytest.mark.slow
def test_after_a_second_ctrl_c_the_same_command_goes_on(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space="{learning_rate: [1e-3, 2e-3], epochs: [40]}")
    driver = subprocess.Popen([sys.executable, "-m", "finetune_sweep", "run", str(sweep)], cwd=sweep.parent)
    wait_for(sweep, lambda events: any(isinstance(event, Evaluated) for event in events))
    while driver.poll() is None:
        driver.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert driver.returncode == 130

    assert command("run", sweep, cwd=sweep.parent).code == 0
    assert {trial["state"] for trial in trials(sweep).values()} == {"finished"}


@pytest.mark.slow
def test_a_killed_search_that_learns_loses_no_suggestion_and_doubles_none(write_sweep: WriteSweep) -> None:
    space = """{learning_rate: {low: 1e-4, high: 1e-1, log: true}, freeze_depth: [0, 1, all],
      batch_size: {values: [4, 8], when: {freeze_depth: [0, 1]}}, epochs: [1]}"""
    sweep = write_sweep(space=space, search="{type: tpe, trials: 24, seed: 1, startup_trials: 6}")
    driver = subprocess.Popen(
        [sys.executable, "-m", "finetune_sweep", "run", str(sweep)],
        cwd=sweep.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(sweep, lambda events: sum(isinstance(event, TrialEnded) for event in events) >= 8)
    driver.kill()
    driver.wait(60)
    before = {key: trial for key, trial in trials(sweep).items() if trial["state"] == "finished"}
    assert 8 <= len(before) < 24

    assert command("run", sweep, cwd=sweep.parent).code == 0

    events = [entry.event for entry in read(layout(sweep))]
    assert [event.number for event in events if isinstance(event, Suggested)] == list(range(24))
    ended = [event.key for event in events if isinstance(event, TrialEnded)]
    assert len(ended) == len(set(ended))
    after = trials(sweep)
    kept = [(results_of(trial), results_of(after[key])) for key, trial in before.items()]
    assert [(was, now) for was, now in kept if was != now] == []
    assert {trial["state"] for trial in after.values()} == {"finished"}


def results_of(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial without its run in MLflow, which may have become known only after the kill."""
    return {name: value for name, value in trial.items() if name != "mlflow_run_id"}


def test_a_second_driver_is_refused_and_told_who_holds_the_sweep(write_sweep: WriteSweep) -> None:
    from finetune_sweep.lock import SweepLock

    sweep = write_sweep()
    with SweepLock(layout(sweep)):
        result = command("run", sweep, cwd=sweep.parent)

    assert result.code == 3
    assert f"driven by process {os.getpid()}" in result.err


@pytest.mark.slow
def test_another_sweep_of_the_same_name_is_refused_naming_both(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space="{learning_rate: [1e-2], epochs: [1]}")
    assert command("run", sweep, cwd=sweep.parent).code == 0

    result = command("run", sweep, "--set", "data.split.seed=5", cwd=sweep.parent)

    assert result.code == 2
    assert "holds a sweep of the name 'tiny' with other data" in result.err


def test_what_init_writes_runs_without_an_edit(tmp_path: Path) -> None:
    """As pandas writes a frame by default: the index stands before the columns, and has no name."""
    words = {"praise": ("good", "great", "fine", "lovely"), "blame": ("bad", "poor", "dull", "awful")}
    things = ("film", "book", "song", "play", "game", "poem")
    rows = [f"a {word} {thing},{label}" for thing in things for label in words for word in words[label]]
    lines = [",text,label", *(f"{index},{row}" for index, row in enumerate(rows))]
    (tmp_path / "reviews.csv").write_text("\n".join(lines))
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    written = command("init", "reviews.csv", cwd=tmp_path, env=env)
    assert (written.code, written.err) == (0, "")
    result = command("run", "reviews.yaml", cwd=tmp_path, env=env)
    assert result.code == 0, result.err

    champion = tmp_path / "runs" / "reviews" / "best"
    model, report = AutoModelForSequenceClassification.from_pretrained(champion, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.id2label == {0: "blame", 1: "praise"}
    best = status(tmp_path / "reviews.yaml")["best"]
    results = json.loads((champion / "eval_results.json").read_text())
    assert (results["key"], results["validation"]) == (best["key"], best["metrics"])
