"""N0's side of W-noop: function trainables that import what N0's trials import, report once, and end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from benchmarks.peers.recipe import Recipe


def train(config: dict[str, Any]) -> None:
    """One trial, which trains nothing."""
    import benchmarks.peers.hugging_face  # noqa: F401 - what a trial of N0 imports

    tune.report({"eval_accuracy": config["learning_rate"], "ended": time.time()})


def run(recipe: Recipe) -> list[float]:
    """All trials, drawn at random.

    Returns:
        When each of them ended, in seconds since 1970.

    Raises:
        RuntimeError: If a trial failed.
    """
    ray.init(address="local")
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"learning_rate": tune.loguniform(1e-6, 1e-3)},
        tune_config=tune.TuneConfig(metric="eval_accuracy", mode="max", num_samples=recipe.trials),
        run_config=tune.RunConfig(
            name="noop",
            storage_path=recipe.folder,
            callbacks=[MLflowLoggerCallback(tracking_uri=recipe.tracking_uri, experiment_name="noop")],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} trials failed, the first: {results.errors[0]}")
    reported = [results[number].metrics for number in range(len(results))]
    return sorted(metrics["ended"] for metrics in reported if metrics is not None)


if __name__ == "__main__":
    given = Recipe.read(sys.argv[1])
    Path(given.folder, "ended.json").write_text(json.dumps(run(given)), encoding="utf-8")
