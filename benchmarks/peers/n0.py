"""N0: a grid with Ray Tune, a Hugging Face Trainer in each trial, as the documentation of both shows it.

https://docs.ray.io/en/latest/tune/getting-started.html: a function trainable that reports after each evaluation, a
grid as `param_space`, an MLflow callback. The Trainer evaluates and saves after each epoch. Actors are not reused,
which is Tune's default; Ray gives each trial of one CPU one thread.
"""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.peers.hugging_face import arguments, load_rows, make_trainer
from benchmarks.peers.recipe import Outcome, Point, Recipe, write_outcomes


class ReportEvaluation(TrainerCallback):
    """Tells Ray Tune what an evaluation gave."""

    def on_evaluate(  # type: ignore[override]
        self,
        _args: TrainingArguments,
        _state: TrainerState,
        _control: TrainerControl,
        metrics: dict[str, float],
        **_: object,
    ) -> None:
        """Called by the Trainer after each evaluation."""
        tune.report(metrics)


def train(config: dict[str, Any], recipe: Recipe) -> None:
    """One trial."""
    # Not in the trial's own folder: Ray Tune would copy all of it once more.
    folder = f"{recipe.folder}/checkpoints/{tune.get_context().get_trial_id()}"
    trainer = make_trainer(recipe, config, arguments(recipe, config, folder), load_rows(recipe))
    trainer.add_callback(ReportEvaluation())
    trainer.train()


def run(recipe: Recipe) -> list[Outcome]:
    """The whole grid.

    Raises:
        RuntimeError: If a trial failed.
    """
    ray.init(address="local")  # never one that happens to run
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, recipe=recipe), recipe.resources),
        param_space={name: tune.grid_search(list(values)) for name, values in recipe.space.items()},
        tune_config=tune.TuneConfig(metric="eval_accuracy", mode="max"),
        run_config=tune.RunConfig(
            name="n0",
            storage_path=recipe.folder,
            callbacks=[MLflowLoggerCallback(tracking_uri=recipe.tracking_uri, experiment_name="n0")],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} trials failed, the first: {results.errors[0]}")
    outcomes = []
    for result in (results[number] for number in range(len(results))):
        reported = result.metrics_dataframe
        if reported is not None and result.config is not None:
            rows = reported.to_dict("records")
            points = [Point(round(row["epoch"]), row["eval_accuracy"], row["eval_loss"]) for row in rows]
            outcomes.append(Outcome(result.config, points))
    return outcomes


if __name__ == "__main__":
    given = Recipe.read(sys.argv[1])
    write_outcomes(run(given), given.folder)
