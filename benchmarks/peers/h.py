"""H: `Trainer.hyperparameter_search` with Optuna's grid sampler, in one process with all cores.

https://huggingface.co/docs/transformers/hpo_train: `model_init`, an `hp_space` of Optuna's suggestions, a direction.
What is no field of `TrainingArguments`, the depth of freezing, is suggested in `model_init`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import optuna
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks.peers.hugging_face import arguments, build_model, compute_metrics, history, load_rows
from benchmarks.peers.recipe import Outcome, Recipe, write_outcomes

FIELDS = {"batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs"}


class Remember(TrainerCallback):
    """Keeps the evaluations of every trial."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def on_train_end(  # type: ignore[override]
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """Called by the Trainer when a trial is trained."""
        if state.trial_params is not None:
            self.outcomes.append(Outcome(dict(state.trial_params), history(state.log_history)))


def run(recipe: Recipe) -> list[Outcome]:
    """The whole grid, one trial after another."""
    splits, tokenizer = load_rows(recipe)

    def model_init(trial: optuna.Trial | None) -> PreTrainedModel:
        if trial is None or "freeze_depth" not in recipe.space:
            return build_model(recipe, recipe.fixed["freeze_depth"])
        depth = trial.suggest_categorical("freeze_depth", recipe.space["freeze_depth"])
        return build_model(recipe, depth if depth is not None else 0)

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        searched = {name: values for name, values in recipe.space.items() if name != "freeze_depth"}
        return {FIELDS.get(n, n): trial.suggest_categorical(n, values) for n, values in searched.items()}

    remember = Remember()
    trainer = Trainer(
        model_init=model_init,
        args=TrainingArguments(**arguments(recipe, {}, recipe.folder) | {"report_to": "mlflow"}),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[remember],
    )
    sampler = optuna.samplers.GridSampler({name: list(values) for name, values in recipe.space.items()})

    def objective(metrics: dict[str, float]) -> float:
        return metrics["eval_accuracy"]

    trainer.hyperparameter_search(
        hp_space=hp_space,
        compute_objective=objective,
        n_trials=math.prod(len(values) for values in recipe.space.values()),
        direction="maximize",
        backend="optuna",
        sampler=sampler,
    )
    return remember.outcomes


if __name__ == "__main__":
    given = Recipe.read(sys.argv[1])
    write_outcomes(run(given), given.folder)
