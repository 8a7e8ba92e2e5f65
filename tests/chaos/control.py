"""The same faults without this package's protection: stock Ray Tune, its MLflow callback, and `Tuner.restore`.

If this holds, what the documents say of it is out of date, and `make chaos` fails.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

TRIALS: Final = 6
KILL_AFTER: Final = 3
"""Finished trials, before the driver is killed."""
CONTROL_S: Final = 300.0
PATIENCE: Final = 3.0
"""How many times as long as with an MLflow that answers a sweep may take whose MLflow is away."""


def driver_killed(work: Path) -> list[str]:
    """Kills the driver of a stock sweep when some trials are finished, restores it, and tells what was lost."""
    folder, finished = _killed(work)
    return _violations(folder, finished, _start(folder, "restore").wait(CONTROL_S))


def state_damaged(work: Path) -> list[str]:
    """The same, and the state file is cut: what is told is only whether it began anew without a word."""
    folder, finished = _killed(work)
    for state in (folder / "ray" / "stock").glob("experiment_state-*.json"):
        state.write_bytes(state.read_bytes()[:-100])
    code = _start(folder, "restore").wait(CONTROL_S)
    ended = Counter(_ended(folder))
    is_anew = code == 0 and all(ended[trial] > 1 for trial in finished)
    return [f"all {len(finished)} finished trials ran again, with exit code 0"] if is_anew else []


def mlflow_away(work: Path) -> list[str]:
    """A stock sweep whose MLflow does not answer: whether its trials are trained all the same, if not as quickly."""
    began = time.monotonic()
    if _start(_fresh(work), "fit").wait(CONTROL_S):
        raise RuntimeError(f"the control failed by itself, see {work}/control/out.log")
    limit_s = PATIENCE * (time.monotonic() - began)
    folder = _fresh(work)
    process = _start(folder, "away")
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    count = len(_ended(folder))
    return [f"{count} of {TRIALS} trials had ended after {limit_s:.0f} s"] if count < TRIALS else []


CONTROLS: Final[Mapping[str, Callable[[Path], list[str]]]] = {
    "control: driver killed, stock Tuner.restore": driver_killed,
    "control: its state file damaged": state_damaged,
    "control: MLflow away, stock callback": mlflow_away,
}


def _fresh(work: Path) -> Path:
    folder = work / "control"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _killed(work: Path) -> tuple[Path, list[str]]:
    folder = _fresh(work)
    process = _start(folder, "fit")
    deadline = time.monotonic() + CONTROL_S
    while len(_ended(folder)) < KILL_AFTER and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = _ended(folder)
    if len(finished) < KILL_AFTER:
        raise RuntimeError(f"the control did not get so far, see {folder}/out.log")
    return folder, finished


def _start(folder: Path, mode: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }
    with (folder / "out.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, __file__, mode, str(folder)], env=environment, stdout=log, stderr=log
        )


def _ended(folder: Path) -> list[str]:
    log = folder / "ended.log"
    return log.read_text(encoding="utf-8").split() if log.exists() else []


def _violations(folder: Path, finished: list[str], code: int) -> list[str]:
    from mlflow import MlflowClient

    ended = Counter(_ended(folder))
    found = [f"trial {trial} was finished and ran again" for trial in finished if ended[trial] > 1]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    counts = Counter(run.data.params.get("x", "?") for run in runs)
    found += [f"trial {x} has {count} runs in MLflow" for x, count in sorted(counts.items()) if count > 1]
    found += [f"run {run.info.run_name} is left RUNNING" for run in runs if run.info.status == "RUNNING"]
    if found and code == 0:
        found.append("the exit code is 0 all the same")
    return found


# ------------------------------------------------------------------------- the stock program, in its own process


def _train(config: dict[str, Any]) -> None:
    from ray import tune

    for epoch in range(1, 4):
        time.sleep(0.2)
        tune.report({"loss": config["x"] / epoch})
    with Path(config["log"]).open("a", encoding="utf-8") as log:
        log.write(f"{config['x']}\n")


def _stock(mode: str, folder: Path) -> None:
    """As Ray's documentation has it."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    place = str(folder / "ray")
    space = {"x": tune.grid_search(list(range(1, TRIALS + 1))), "log": str(folder / "ended.log")}
    if mode == "restore":
        tuner = tune.Tuner.restore(f"{place}/stock", trainable=_train, param_space=space, resume_errored=True)
    else:
        nobody = "http://127.0.0.1:9"  # the port of `discard`, which no machine offers any more
        callback = MLflowLoggerCallback(
            tracking_uri=nobody if mode == "away" else f"sqlite:///{folder}/mlflow.db",
            experiment_name="stock",
            save_artifact=False,
        )
        tuner = tune.Tuner(
            _train,
            param_space=space,
            run_config=tune.RunConfig(storage_path=place, name="stock", callbacks=[callback], verbose=0),
        )
    results = tuner.fit()
    (folder / "result.json").write_text(json.dumps({"errors": results.num_errors, "trials": len(results)}))


if __name__ == "__main__":
    _stock(sys.argv[1], Path(sys.argv[2]))
