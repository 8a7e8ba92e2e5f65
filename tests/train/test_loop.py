from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune_sweep.errors import TrialError
from finetune_sweep.settings import RECIPE_VERSION, EarlyStopping, Training
from finetune_sweep.tasks.arrays import Batch, Encoded
from finetune_sweep.tasks.contract import Mode
from finetune_sweep.tasks.text_classification import TextClassification
from finetune_sweep.train.loop import evaluate, fit, start, stops_early
from finetune_sweep.train.memory import is_out_of_memory
from finetune_sweep.train.state import LoopState, derive_seed
from tests.train.runs import NEW, assert_same_weights, bert, gpt2, job_for, packed, split, trained

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("one_thread")
ONLY_IN_VALIDATION = 39
GOLDEN = [(0.69393, 0.69875), (0.657, 0.70287)]


# ------------------------------------------------------------------------------------- what a run yields


@pytest.mark.parametrize("build", [bert, gpt2])
def test_training_learns_and_counts(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    job = job_for(model, Training(learning_rate=1e-2, batch_size=8, epochs=6))
    evaluations, _ = trained(job, model)
    assert [e.epoch for e in evaluations] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in evaluations] == [3, 6, 9, 12, 15, 18]
    assert [e.examples for e in evaluations] == [20, 40, 60, 80, 100, 120]
    assert evaluations[-1].train_loss < evaluations[0].train_loss * 0.6
    assert set(evaluations[0].metrics) == set(job.task.metrics)
    assert all(e.train_seconds > 0 and e.eval_seconds > 0 for e in evaluations)
    assert not any(e.stopped for e in evaluations)


def test_the_training_loss_is_the_mean_over_the_examples() -> None:
    model = bert(dropout=0.0)
    job = job_for(model, Training(learning_rate=1e-30, batch_size=8, epochs=1, optimizer="sgd"))
    evaluations, _ = trained(job, model)
    predictions = evaluate(packed(model), job.task, job.train, device="cpu", precision="fp32", pad_token_id=0)
    assert evaluations[0].train_loss == pytest.approx(predictions.losses.mean(), abs=1e-6)
    assert evaluations[0].train_metrics == pytest.approx(job.task.score(predictions, job.classes), abs=1e-6)


def test_the_learning_rate_is_that_of_the_last_step() -> None:
    model = bert()
    settings = Training.model_validate(
        {
            "learning_rate": 0.006,
            "batch_size": 8,
            "epochs": 2,
            "lr_schedule": {"type": "linear", "warmup_steps": 0},
        }
    )
    evaluations, _ = trained(job_for(model, settings), model)
    assert [e.learning_rate for e in evaluations] == [0.006 * 4 / 6, 0.006 * 1 / 6]


def test_one_step_of_sgd_is_the_weight_minus_the_rate_times_the_gradient_of_the_mean_loss() -> None:
    model, other = bert(dropout=0.0), bert(dropout=0.0)
    settings = Training(
        learning_rate=0.5, batch_size=20, epochs=1, optimizer="sgd", weight_decay=0.0, max_grad_norm=0.0
    )
    job = job_for(model, settings)
    start(job, other, NEW)
    order = np.random.default_rng(derive_seed(0, "order", 1)).permutation(20)
    batch = job.task.collate(job.train, order, 0)
    output = other.train()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    nn.functional.cross_entropy(output.logits, batch["labels"], reduction="sum").div(20).backward()
    _, weights = trained(job, model)
    for name, parameter in other.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            weights[name], (parameter - 0.5 * parameter.grad).detach(), rtol=0, atol=1e-6
        )


def test_the_gradient_is_clipped_to_its_norm() -> None:
    model = bert(dropout=0.0)
    settings = Training(
        learning_rate=1.0, batch_size=20, epochs=1, optimizer="sgd", weight_decay=0.0, max_grad_norm=1e-3
    )
    job = job_for(model, settings)
    state = start(job, model, NEW)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    list(fit(job, state))
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before, strict=True)])
    assert moved.double().norm().item() == pytest.approx(1e-3, rel=1e-2)


@dataclass(frozen=True)
class Recording(TextClassification):
    """Notes which rows it is asked for, and the random state that the model then meets."""

    rows: list[list[int]] = field(default_factory=list)

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        if len(encoded) == 20:
            self.rows.append(rows.tolist())
        return super().collate(encoded, rows, pad_token_id)


def test_every_epoch_sees_each_row_once_in_an_order_of_its_own() -> None:
    model, task = bert(), Recording()
    trained(replace(job_for(model), task=task), model)
    assert [len(rows) for rows in task.rows] == [8, 8, 4, 8, 8, 4]
    first, second = sum(task.rows[:3], []), sum(task.rows[3:], [])  # noqa: RUF017
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_the_recipe_gives_these_losses() -> None:
    """A change here changes what users' trials come to: raise `RECIPE_VERSION` if it is meant."""
    model = bert()
    evaluations, _ = trained(job_for(model), model)
    found = [(e.train_loss, e.metrics["loss"]) for e in evaluations]
    assert RECIPE_VERSION == 3
    assert found == [pytest.approx(losses, abs=1e-4) for losses in GOLDEN]


# ---------------------------------------------------------- what the result depends on, to the last digit


def test_a_run_is_the_beginning_of_a_longer_one() -> None:
    short, long = (Training(learning_rate=1e-2, batch_size=8, epochs=epochs) for epochs in (2, 4))
    model = bert()
    evaluations, _ = trained(job_for(model, short), model)
    model = bert()
    longer, _ = trained(job_for(model, long), model)
    assert longer[:2] == evaluations
    assert len(longer) == 4


def test_what_ran_before_in_the_process_does_not_matter() -> None:
    model = bert()
    pretrained = copy.deepcopy(model.state_dict())
    trained(replace(job_for(model), seed=5, depth="embeddings"), model)
    model.load_state_dict(pretrained)
    torch.rand(3)
    after_another = trained(replace(job_for(model), depth=1), model)
    fresh = bert()
    alone = trained(replace(job_for(fresh), depth=1), fresh)
    assert after_another[0] == alone[0]
    assert_same_weights(after_another[1], alone[1])


def test_two_runs_taking_turns_do_not_disturb_each_other() -> None:
    models = [bert(), bert()]
    jobs = [replace(job_for(model), seed=seed) for seed, model in enumerate(models)]
    runs = [fit(job, start(job, model, NEW)) for job, model in zip(jobs, models, strict=True)]
    in_turns = list(zip(*runs, strict=True))
    model = bert()
    assert [second for _, second in in_turns] == trained(jobs[1], model)[0]


@pytest.mark.parametrize("change", ["seed", "dropout"])
def test_the_seed_and_dropout_do_matter(change: str) -> None:
    model = bert()
    evaluations, _ = trained(job_for(model), model)
    model = bert(dropout=0.1 if change == "seed" else 0.2)
    others, _ = trained(replace(job_for(model), seed=int(change == "seed")), model)
    assert evaluations[0].train_loss != others[0].train_loss


# --------------------------------------------------------------------------- freezing, precision, memory


def test_the_frozen_part_stays_to_the_bit_and_the_rest_moves() -> None:
    model = bert()
    before = copy.deepcopy(model.state_dict())
    _, after = trained(replace(job_for(model), depth=1), model)
    frozen = ("bert.embeddings.", "bert.encoder.layer.0.")
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen), name


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_fp32() -> None:
    settings = Training(learning_rate=1e-3, batch_size=8, epochs=1)
    model, other = bert(dropout=0.0), bert(dropout=0.0)
    fp32, _ = trained(job_for(model, settings), model)
    bf16, weights = trained(replace(job_for(other, settings), precision="bf16"), other)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert bf16[0].metrics["loss"] != fp32[0].metrics["loss"]
    assert bf16[0].metrics["loss"] == pytest.approx(fp32[0].metrics["loss"], abs=0.02)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_is_the_same_batch(parts: int) -> None:
    model, other = bert(dropout=0.0), bert(dropout=0.0)
    settings = Training(learning_rate=0.1, batch_size=8, epochs=2, optimizer="sgd")
    _, whole = trained(job_for(model, settings), model)
    settings = settings.model_copy(update={"gradient_accumulation_steps": parts})
    evaluations, in_parts = trained(job_for(other, settings), other)
    assert evaluations[0].micro_batch == -(-8 // parts)
    for name, tensor in whole.items():
        torch.testing.assert_close(in_parts[name], tensor, rtol=0, atol=1e-6)


def limit_memory(state: LoopState, rows: int, error: Exception) -> None:
    """Lets the model raise an error when it trains on more rows at once; the embeddings are then computed."""

    def check(module: nn.Module, _args: object, output: Tensor) -> None:
        if module.training and len(output) > rows:
            raise error

    state.model.get_submodule("bert.pooler").register_forward_hook(check)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_micro_batch_and_redoes_the_step(error: Exception) -> None:
    model = bert()
    job = job_for(model)
    state = start(job, model, NEW)
    limit_memory(state, 3, error)
    evaluations = list(fit(job, state))
    assert [e.micro_batch for e in evaluations] == [2, 2]
    other = bert()
    in_parts = job.settings.model_copy(update={"gradient_accumulation_steps": 4})
    assert trained(replace(job, settings=in_parts), other)[0] == evaluations
    assert_same_weights(model.state_dict(), other.state_dict())


def test_out_of_memory_on_one_example_fails_the_trial() -> None:
    model = bert()
    job = job_for(model)
    state = start(job, model, NEW)
    limit_memory(state, 0, OUT_OF_MEMORY[0])
    with pytest.raises(TrialError, match="one example at a time") as raised:
        next(fit(job, state))
    assert raised.value.failure == "out_of_memory"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_errors_are_left_as_they_are() -> None:
    model = bert()
    job = job_for(model)
    state = start(job, model, NEW)
    limit_memory(state, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        next(fit(job, state))


def test_a_real_refusal_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


# -------------------------------------------------------------------------------------------- divergence


def test_a_loss_that_is_no_number_is_divergence() -> None:
    model = bert()
    with torch.no_grad():
        model.get_parameter("bert.pooler.dense.weight").fill_(float("nan"))
    with pytest.raises(TrialError, match="training loss became nan in epoch 1, by step 1") as raised:
        trained(job_for(model), model)
    assert raised.value.failure == "diverged"


def test_a_metric_that_is_no_number_is_divergence() -> None:
    model = bert()
    with torch.no_grad():
        model.get_parameter("bert.embeddings.word_embeddings.weight")[ONLY_IN_VALIDATION] = float("nan")
    job = replace(job_for(model), validation=split(9, seed=2, extra=[ONLY_IN_VALIDATION]))
    with pytest.raises(TrialError, match="validation accuracy became nan in epoch 1") as raised:
        trained(job, model)
    assert raised.value.failure == "diverged"


# ---------------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    ("scores", "patience", "min_delta", "ends"),
    [
        ([0.5], 1, 0.0, False),
        ([0.5, 0.6], 1, 0.0, False),
        ([0.5, 0.5], 1, 0.0, True),
        ([0.5, 0.4, 0.5], 2, 0.0, True),
        ([0.5, 0.4, 0.6], 2, 0.0, False),
        ([0.5, 0.4, 0.6, 0.6], 2, 0.0, False),
        ([0.5, 0.625], 1, 0.25, True),
        ([0.5, 0.75], 1, 0.25, False),
        ([0.5, 0.625, 0.75], 2, 0.25, False),
    ],
)
def test_early_stopping_waits_for_an_improvement(
    scores: list[float], patience: int, min_delta: float, *, ends: bool
) -> None:
    assert stops_early(scores, EarlyStopping(patience=patience, min_delta=min_delta)) is ends


@pytest.mark.parametrize(("monitor", "mode"), [("loss", "max"), ("metric", "max"), ("metric", "min")])
def test_early_stopping_watches_the_loss_or_the_metric(monitor: str, mode: Mode) -> None:
    model = bert()
    settings = Training.model_validate(
        {
            "learning_rate": 1e-2,
            "batch_size": 8,
            "epochs": 9,
            "early_stopping": {"patience": 1, "monitor": monitor},
        }
    )
    job = replace(job_for(model, settings), mode=mode)
    evaluations, _ = trained(job, model)
    values = [e.metrics["loss"] if monitor == "loss" else e.metrics["accuracy"] for e in evaluations]
    rises = mode == "max" and monitor == "metric"
    better = [b > a if rises else b < a for a, b in pairwise(values)]
    assert evaluations[-1].stopped
    assert better == [True] * (len(values) - 2) + [False]


def test_a_run_that_stops_early_is_still_a_prefix() -> None:
    runs = []
    for epochs in (2, 3, 5):
        model = bert()
        stopping = EarlyStopping(patience=2, min_delta=100.0)
        settings = Training(learning_rate=1e-2, batch_size=8, epochs=epochs, early_stopping=stopping)
        runs.append(trained(job_for(model, settings), model)[0])
    assert [len(run) for run in runs] == [2, 3, 3]
    assert runs[0] == runs[1][:2]
    assert runs[1] == runs[2]


# -------------------------------------------------------------------------------------------- evaluation


def test_predictions_are_in_the_order_of_the_rows_and_do_not_depend_on_the_batch() -> None:
    model, task, rows = bert(), TextClassification(), split(150, seed=3)
    predictions = evaluate(packed(model), task, rows, device="cpu", precision="fp32", pad_token_id=0)
    assert np.array_equal(predictions.labels, np.asarray(rows.columns["labels"]))
    for row in (0, 77, 149):
        batch = task.collate(rows, np.array([row]), 0)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        np.testing.assert_allclose(predictions.values[row], logits[0].numpy(), rtol=0, atol=1e-6)


def test_evaluation_repeats_to_the_bit_and_turns_dropout_off() -> None:
    model, rows = bert().train(), split(70, seed=3)
    first, second = (
        evaluate(packed(model), TextClassification(), rows, device="cpu", precision="fp32", pad_token_id=0)
        for _ in range(2)
    )
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.losses, second.losses)


def test_the_state_keeps_the_predictions_that_the_metrics_are_of() -> None:
    model = bert()
    job = job_for(model)
    state = start(job, model, NEW)
    for evaluation in fit(job, state):
        assert state.predictions is not None
        assert job.task.score(state.predictions, job.classes) == evaluation.metrics


def test_an_evaluation_that_does_not_fit_into_memory_is_halved() -> None:
    model, task, rows = bert(), TextClassification(), split(9, seed=3)
    whole = evaluate(packed(model), task, rows, device="cpu", precision="fp32", pad_token_id=0)

    def check(_module: nn.Module, _args: object, output: Tensor) -> None:
        if len(output) > limit:
            raise OUT_OF_MEMORY[0]

    model.get_submodule("bert.pooler").register_forward_hook(check)
    limit = 2
    halved = evaluate(packed(model), task, rows, device="cpu", precision="fp32", pad_token_id=0)
    np.testing.assert_allclose(halved.losses, whole.losses, rtol=0, atol=1e-6)
    limit = 0
    with pytest.raises(TrialError, match="one row at a time") as raised:
        evaluate(packed(model), task, rows, device="cpu", precision="fp32", pad_token_id=0)
    assert raised.value.failure == "out_of_memory"
