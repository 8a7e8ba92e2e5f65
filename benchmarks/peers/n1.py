"""N1: the sweep of N0 by an expert of Ray Tune and transformers.

A class trainable whose actors are reused, so that nothing is imported or tokenised twice; one thread a slot; bfloat16
where ours uses it; checkpoints without the optimizer, as no trial is resumed; a trial's record goes to MLflow in one
batch, from the worker.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import ray
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from ray import tune
from transformers import Trainer

from benchmarks.peers.hugging_face import arguments, history, load_rows, make_trainer
from benchmarks.peers.recipe import Outcome, Point, Recipe, write_outcomes


class ExpertTrial(tune.Trainable):
    """A worker that trains one configuration after another."""

    trainer_class: type[Trainer] = Trainer

    def setup(self, config: dict[str, Any], recipe: Recipe, experiment: str) -> None:  # type: ignore[override]
        """Loads what all trials share."""
        torch.set_num_threads(1)
        self.recipe, self.experiment = recipe, experiment
        self.rows = load_rows(recipe)
        self.client = MlflowClient(recipe.tracking_uri)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next configuration."""
        self.grid_config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Trains a configuration from its first to its last epoch."""
        args = arguments(self.recipe, self.grid_config, f"{self.recipe.folder}/checkpoints/{self.trial_id}")
        trainer = make_trainer(
            self.recipe, self.grid_config, args | {"save_only_model": True}, self.rows, self.trainer_class
        )
        trainer.train()
        points = history(trainer.state.log_history)
        log_trial(self.client, self.experiment, self.grid_config, points)
        return {"done": True, "points": points, "eval_accuracy": points[-1].accuracy}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the Trainer saves."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing: no trial is resumed."""


def log_trial(client: MlflowClient, experiment: str, config: dict[str, Any], points: list[Point]) -> None:
    """Writes a trial to MLflow, all of its metrics at once."""
    run = client.create_run(experiment)
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, value, now, point.epoch)
        for point in points
        for name, value in (("eval_accuracy", point.accuracy), ("eval_loss", point.loss))
    ]
    client.log_batch(run.info.run_id, metrics, [Param(name, str(value)) for name, value in config.items()])
    client.set_terminated(run.info.run_id)


def run(recipe: Recipe, trial: type[ExpertTrial] = ExpertTrial) -> list[Outcome]:
    """The whole grid.

    Raises:
        RuntimeError: If a trial failed.
    """
    ray.init(address="local", include_dashboard=False)
    experiment = MlflowClient(recipe.tracking_uri).create_experiment("expert")
    trainable = tune.with_parameters(trial, recipe=recipe, experiment=experiment)
    tuner = tune.Tuner(
        tune.with_resources(trainable, recipe.resources),
        param_space={name: tune.grid_search(list(values)) for name, values in recipe.space.items()},
        tune_config=tune.TuneConfig(metric="eval_accuracy", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name="expert",
            storage_path=recipe.folder,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} trials failed, the first: {results.errors[0]}")
    ended = (results[number] for number in range(len(results)))
    return [Outcome(r.config, r.metrics["points"]) for r in ended if r.config is not None and r.metrics]


if __name__ == "__main__":
    given = Recipe.read(sys.argv[1])
    write_outcomes(run(given), given.folder)
