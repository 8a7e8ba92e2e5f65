"""Heads that are trained together come to what each comes to alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from finetune_sweep.errors import StorageError, TrialError
from finetune_sweep.settings import EarlyStopping, Training
from finetune_sweep.tasks.arrays import Encoded
from finetune_sweep.tasks.contract import Task
from finetune_sweep.tasks.text_classification import TextClassification
from finetune_sweep.tasks.text_regression import TextRegression
from finetune_sweep.train import heads, stack
from finetune_sweep.train.families import FAMILIES
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.stack import Stack
from tests.train.runs import NEW, assert_same_weights, bert, gpt2, job_for
from tests.train.test_architecture import BLOCKS, TEXTS, tiny
from tests.train.test_prefix_cache import on_states

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.train.state import Evaluation, Job

pytestmark = pytest.mark.usefixtures("one_thread")


def new_of(model: PreTrainedModel) -> tuple[str, ...]:
    return ("score.weight",) if hasattr(model, "score") else NEW if hasattr(model, "bert") else ()


def jobs_of(
    build: Callable[[], PreTrainedModel], settings: Sequence[dict[str, object]], cache: Path
) -> list[Job]:
    """Head-only jobs on the states of one model."""
    model = build()
    first = replace(job_for(model), depth=job_for(model).arch.blocks)
    first = on_states(first, model, first.arch.blocks, cache)
    made = []
    for each in settings:
        own = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 3, **each}
        seed = int(str(own.pop("seed", 0)))
        made.append(replace(first, settings=Training.model_validate(own), seed=seed))
    return made


def together(jobs: Sequence[Job], model: PreTrainedModel) -> tuple[list[list[Evaluation]], Stack]:
    state = stack.start(jobs, model, new_of(model))
    found: list[list[Evaluation]] = [[] for _ in jobs]
    for told in heads.fit(state, lambda: None):
        for index, result in told:
            assert not isinstance(result, TrialError)
            found[index].append(result)
    return found, state


def assert_near(left: Sequence[Evaluation], right: Sequence[Evaluation]) -> None:
    for one, other in zip(left, right, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=1e-4)
        assert other.metrics == pytest.approx(one.metrics, abs=1e-4)
        assert other.train_metrics == pytest.approx(one.train_metrics, abs=1e-4)
        counted = ("epoch", "step", "examples", "learning_rate", "micro_batch", "stopped")
        assert [getattr(one, name) for name in counted] == [getattr(other, name) for name in counted]


DIFFERENT: list[dict[str, object]] = [
    {},
    {"seed": 1},
    {"learning_rate": 1e-3, "epochs": 4},
    {"weight_decay": 0.5, "seed": 2, "epochs": 1},
    {"lr_schedule": {"type": "linear", "warmup_steps": 2}, "seed": 1},
    {"lr_schedule": {"type": "plateau", "patience": 1}, "epochs": 5},
    {"max_grad_norm": 0.0},
    {"max_grad_norm": 0.01},
]


@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_each_comes_to_what_it_comes_to_alone(
    build: Callable[[], PreTrainedModel], optimizer: str, tmp_path: Path
) -> None:
    """Also with dropout: each seed draws its own masks."""
    alike = {"optimizer": optimizer, "label_smoothing": 0.2 if optimizer == "sgd" else 0.0}
    jobs = jobs_of(build, [{**each, **alike} for each in DIFFERENT], tmp_path)
    found, state = together(jobs, build())
    for index, job in enumerate(jobs):
        model = build()
        alone = start(job, model, new_of(model))
        assert_near(list(fit(job, alone)), found[index])
        for name, tensor in alone.changed.items():
            torch.testing.assert_close(state.members[index].changed[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", TEXTS)
def test_every_family_has_a_head_that_can_be_stacked(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    origin = tiny(model_type)
    origin.config.pad_token_id = 1 if FAMILIES[model_type].counts_from_padding else 0

    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        model = tiny(model_type)
        model.config.pad_token_id = origin.config.pad_token_id
        model.resize_token_embeddings(40)
        return model

    jobs = jobs_of(build, [{}, {"seed": 1, "learning_rate": 1e-3}], tmp_path)
    found, _ = together(jobs, build())
    assert jobs[0].first == BLOCKS
    for index, job in enumerate(jobs):
        model = build()
        assert_near(list(fit(job, start(job, model, new_of(model)))), found[index])


def numbers(encoded: Encoded) -> NDArray[np.generic]:
    return np.array([ids[0] / 40 for ids in first_tokens(encoded)], dtype=np.float32)


def marks(encoded: Encoded) -> NDArray[np.generic]:
    return np.array([[ids[0] > 20, ids[1] > 20, ids[0] % 2] for ids in first_tokens(encoded)], dtype=np.int64)


def first_tokens(encoded: Encoded) -> list[list[int]]:
    ids = encoded.columns["input_ids"]
    return [ids[row][:2].tolist() for row in range(len(encoded))]


@pytest.mark.parametrize(
    ("task", "label", "classes", "smoothing"),
    [
        (TextRegression(), numbers, ("number",), 0.0),
        (TextClassification(several=True), marks, ("one", "two", "three"), 0.0),
        (TextClassification(several=True), marks, ("one", "two", "three"), 0.2),
    ],
    ids=["text-regression", "text-tagging", "text-tagging, smoothed"],
)
def test_each_comes_to_what_it_comes_to_alone_in_the_other_tasks_of_texts(
    task: Task,
    label: Callable[[Encoded], NDArray[np.generic]],
    classes: tuple[str, ...],
    smoothing: float,
    tmp_path: Path,
) -> None:
    def build() -> PreTrainedModel:
        model = bert()
        torch.manual_seed(0)
        model.classifier = torch.nn.Linear(model.config.hidden_size, len(classes))
        model.num_labels = model.config.num_labels = len(classes)
        return model

    jobs = []
    for job in jobs_of(build, [{**each, "label_smoothing": smoothing} for each in DIFFERENT[:5]], tmp_path):
        train, validation = (
            Encoded({**part.columns, "labels": label(part)}) for part in (job.train, job.validation)
        )
        jobs.append(replace(job, task=task, train=train, validation=validation, classes=classes))
    found, _ = together(jobs, build())
    for index, job in enumerate(jobs):
        assert_near(list(fit(job, start(job, build(), NEW))), found[index])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("asked", [2, 6, 13, 17])
def test_a_stack_goes_on_from_snapshots_as_if_it_had_not_stopped(
    asked: int, optimizer: str, tmp_path: Path
) -> None:
    """Within an epoch, between two evaluations of one, and where some have ended."""
    jobs = jobs_of(bert, [{**each, "optimizer": optimizer} for each in DIFFERENT], tmp_path)
    whole, trained = together(jobs, bert())
    interrupted, left = stack.start(jobs, bert(), NEW), iter(range(asked))
    list(heads.fit(interrupted, lambda: None, lambda: next(left, None) is None))
    snapshots = interrupted.snapshots()
    assert 0 < interrupted.step < trained.step

    going = list(snapshots)
    resumed = stack.start([jobs[index] for index in going], bert(), NEW)
    resumed.load(list(snapshots.values()))
    list(heads.fit(resumed, lambda: None))

    assert [member.history for member in resumed.members] == [whole[index] for index in going]
    for place, index in enumerate(going):
        assert_same_weights(resumed.members[place].changed, trained.members[index].changed)


def test_a_snapshot_of_another_head_is_refused(tmp_path: Path) -> None:
    jobs = jobs_of(bert, [{}], tmp_path)
    state = stack.start(jobs, bert(), NEW)
    (snapshot,) = state.snapshots().values()
    other = replace(snapshot, tensors={**snapshot.tensors, "model.classifier.bias": torch.zeros(3)})
    with pytest.raises(StorageError, match="the checkpoint holds the head"):
        state.load([other])


def test_each_batch_of_an_evaluation_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextClassification, "evaluation_batch", 2)
    beats = []
    jobs = jobs_of(bert, [{"epochs": 1}, {"epochs": 1, "seed": 1}], tmp_path)
    list(heads.fit(stack.start(jobs, bert(), NEW), lambda: beats.append(1)))
    steps, batches_of_each = 3, 5
    assert len(beats) == steps + 2 * batches_of_each


def test_texts_are_padded_once_a_unit_and_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(bert, [{}, {"seed": 1}], tmp_path)
    whole, _ = together(jobs, bert())
    collate, padded = TextClassification.collate, []

    def counted(task: TextClassification, encoded: Encoded, rows: NDArray[np.int64], pad: int) -> Batch:
        padded.append(len(rows))
        return collate(task, encoded, rows, pad)

    monkeypatch.setattr(TextClassification, "collate", counted)
    monkeypatch.setattr(stack, "_AT_ONCE", 8)
    found, _ = together(jobs, bert())
    assert found == whole
    assert sum(padded) == len(jobs[0].train) + len(jobs[0].validation)
    assert max(padded) == 8


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_company_changes_nothing_to_the_last_digit(
    build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    jobs = jobs_of(build, DIFFERENT, tmp_path)
    found, state = together(jobs, build())
    for chosen in ([2], [2, 0], [5, 2, 6]):
        fewer, smaller = together([jobs[index] for index in chosen], build())
        assert fewer == [found[index] for index in chosen]
        for place, index in enumerate(chosen):
            assert_same_weights(smaller.members[place].changed, state.members[index].changed)


def test_half_precision_stays_near(tmp_path: Path) -> None:
    jobs = [replace(job, precision="bf16") for job in jobs_of(bert, [{}, {"seed": 1}], tmp_path)]
    found, _ = together(jobs, bert())
    for index, job in enumerate(jobs):
        alone = fit(job, start(job, bert(), NEW))
        for one, other in zip(alone, found[index], strict=True):
            assert other.train_loss == pytest.approx(one.train_loss, abs=0.01)
            assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=0.01)


def test_one_that_diverges_ends_and_the_others_go_on(tmp_path: Path) -> None:
    wild = {"optimizer": "sgd", "learning_rate": 9.9, "weight_decay": 9.9, "max_grad_norm": 0.0}
    jobs = jobs_of(bert, [{"optimizer": "sgd"}, wild], tmp_path)
    jobs[1] = replace(jobs[1], settings=jobs[1].settings.model_copy(update={"learning_rate": 1e30}))
    told = list(heads.fit(stack.start(jobs, bert(), NEW), lambda: None))
    failures = [(index, result) for each in told for index, result in each if isinstance(result, TrialError)]
    assert [index for index, _ in failures] == [1]
    assert failures[0][1].failure == "diverged"
    with pytest.raises(TrialError) as alone:
        list(fit(jobs[1], start(jobs[1], bert(), NEW)))
    assert alone.value.message.split(" became ")[0] == failures[0][1].message.split(" became ")[0]
    calm = [result for each in told for index, result in each if index == 0]
    assert calm == together(jobs[:1], bert())[0][0]
    ((only,),) = heads.fit(stack.start(jobs[1:], bert(), NEW), lambda: None)
    assert str(only[1]) == str(failures[0][1])


def test_each_stops_early_by_itself(tmp_path: Path) -> None:
    stopping = EarlyStopping(patience=1, min_delta=100.0)
    jobs = jobs_of(bert, [{"epochs": 4}, {"epochs": 4}], tmp_path)
    jobs[0] = replace(jobs[0], settings=jobs[0].settings.model_copy(update={"early_stopping": stopping}))
    found, _ = together(jobs, bert())
    assert [len(each) for each in found] == [2, 4]
    assert [each[-1].stopped for each in found] == [True, False]


@pytest.mark.parametrize("fitting", [3, 1, 0])
def test_members_that_do_not_fit_into_memory_together_take_their_steps_in_parts(
    fitting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(bert, DIFFERENT, tmp_path)
    whole, state = together(jobs, bert())
    compute = heads._gradients
    sizes = []

    def gradients(of: Stack, running: Sequence[int], *rest: Any) -> Any:  # noqa: ANN401
        if len(running) > fitting:
            raise torch.OutOfMemoryError
        sizes.append(len(running))
        return compute(of, running, *rest)

    monkeypatch.setattr(heads, "_gradients", gradients)
    if not fitting:
        with pytest.raises(TrialError, match="out of memory while training one head") as raised:
            together(jobs, bert())
        assert raised.value.failure == "out_of_memory"
        return
    parts, other = together(jobs, bert())
    assert max(sizes) <= fitting < len(jobs)
    assert other.at_once <= fitting
    assert parts == whole
    for left, right in zip(state.members, other.members, strict=True):
        assert_same_weights(dict(left.changed), dict(right.changed))
