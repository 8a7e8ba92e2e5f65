"""What holds for every task; a new one needs a case in tests/tasks/models.py and passes all of this."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers.pipelines import get_supported_tasks

from finetune_sweep import outlook
from finetune_sweep.errors import UserError
from finetune_sweep.plan import check, make_plan
from finetune_sweep.record import SweepRecord
from finetune_sweep.settings import Training
from finetune_sweep.spec import Data, TaskName
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import IGNORED, Encoded, Predictions
from finetune_sweep.tasks.contract import Task
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import pad_token_id
from finetune_sweep.train.architecture import describe
from finetune_sweep.train.data import prepare
from finetune_sweep.train.loop import evaluate, fit, start
from finetune_sweep.train.packing import PackedModel, PaddedModel
from finetune_sweep.train.state import Job
from tests.tasks.models import CASES, Case, as_written
from tests.train.test_prefix_cache import on_states

NAMES = sorted(TASKS)
CHOOSING = sorted(name for name, case in CASES.items() if case.bad is not None)
"""Tasks whose answers are classes."""
TELLING_APART = [name for name in CHOOSING if name != "object-detection"]
"""Of these, those that need two classes: boxes of one class are told from no box."""
SIGNED = {"mcc", "pearson", "spearman", "r2"}
"""Metrics that may be below 0."""


class Made:
    """A case, encoded, with its model."""

    def __init__(self, task: Task, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = self.case.model(folder / "model")
        self.classes = task.classes(self.case.train)
        self.processor = load_processor(self.folder, task)
        self.task = task.bound(task.build_model(self.folder, self.classes)[0], self.processor)
        self.pad = pad_token_id(self.processor)
        self.encoded = self.task.encode(self.case.train, self.processor, self.classes, 16)

    def job(self, *, epochs: int = 2, batch_size: int = 8) -> Job:
        model, _ = self.task.build_model(self.folder, self.classes)
        return Job(
            task=self.task,
            train=self.encoded,
            validation=self.encoded,
            classes=self.classes,
            settings=Training(learning_rate=2e-2, batch_size=batch_size, epochs=epochs),
            depth=0,
            seed=0,
            device="cpu",
            precision="fp32",
            metric="loss",
            mode="min",
            pad_token_id=self.pad,
            arch=describe(model.config.to_dict()),
            unpadding=self.task.packs,
        )


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return Made(TASKS[request.param], CASES[request.param], tmp_path)


def same(left: Predictions, right: Predictions) -> bool:
    pairs = ((left.values, right.values), (left.labels, right.labels), (left.losses, right.losses))
    return all(np.array_equal(one, other) for one, other in pairs)


def test_every_task_has_a_name_for_sweep_files_and_a_case_here() -> None:
    assert set(TASKS) == set(get_args(TaskName)) == set(CASES)
    assert [name for name, task in TASKS.items() if task.name != name] == []


def test_one_column_is_the_target_and_it_is_the_last(made: Made) -> None:
    assert [column.target for column in made.task.columns][::-1].index(True) == 0
    assert sum(column.target for column in made.task.columns) == 1
    assert hasattr(transformers, made.task.auto_model)


def test_a_batch_has_its_rows_on_the_first_axis_and_fits_the_model(made: Made) -> None:
    model, new = made.task.build_model(made.folder, made.classes)
    rows = np.array([3, 0, 5], dtype=np.int64)
    batch = made.task.collate(made.encoded, rows, made.pad)
    assert {len(tensor) for tensor in batch.values()} == {3}
    output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    assert output.logits.shape[0] == 3
    losses = made.task.losses(output, batch)
    assert (losses.shape, losses.dtype) == ((3,), torch.float32)
    assert set(new) <= {name for name, _ in model.named_parameters()}
    if made.classes:
        assert output.logits.shape[-1] == len(made.classes) + (made.task.name == "object-detection")
        assert tuple((model.config.id2label or {}).values()) == made.classes


def test_what_a_batch_holds_of_a_row_does_not_depend_on_the_others(made: Made) -> None:
    model, _ = made.task.build_model(made.folder, made.classes)
    encoded, task = made.encoded, made.task
    both = [
        evaluate(PaddedModel(model), task, part, device="cpu", precision="fp32", pad_token_id=made.pad)
        for part in (encoded, _only(encoded, 7))
    ]
    assert both[0].losses[7] == pytest.approx(both[1].losses[0], abs=1e-5)


WITH_CLASSES = sorted(set(NAMES) - {"text-regression", "object-detection"})
"""The others are given no smoothed labels: numbers have none, and of boxes only a part of the loss is of classes."""


@pytest.mark.parametrize("made", WITH_CLASSES, indirect=True)
def test_smoothed_labels_are_a_mixture_of_the_right_class_and_all(made: Made) -> None:
    """A loss is linear in its target: with e it is (1 - e) times the row's own, and e times the mean over classes."""
    model, _ = made.task.build_model(made.folder, made.classes)
    batch = made.task.collate(made.encoded, np.array([3, 0, 5], dtype=np.int64), made.pad)
    output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    with torch.no_grad():
        own, smoothed = (made.task.losses(output, batch, smoothing) for smoothing in (0.0, 0.25))
        labels = batch["labels"]
        if labels.ndim > 1 and output.logits.ndim == 2:  # several classes a row, each of them there or not
            others = [torch.zeros_like(labels), torch.ones_like(labels)]
        else:
            others = [
                labels.masked_fill(labels != IGNORED, place) for place in range(output.logits.shape[-1])
            ]
        mean = torch.stack([made.task.losses(output, {**batch, "labels": each}) for each in others]).mean(0)
    torch.testing.assert_close(smoothed, 0.75 * own + 0.25 * mean, rtol=0, atol=1e-5)
    assert not torch.equal(smoothed, own)


def test_texts_are_trained_adversarially_whatever_is_asked_of_them(made: Made) -> None:
    if any(column.kind == "image" for column in made.task.columns):
        return  # refused: there are no word embeddings
    job = made.job(epochs=1)
    settings = job.settings.model_copy(update={"adversarial_epsilon": 0.1})
    model, new = made.task.build_model(made.folder, made.classes)
    (evaluation,) = fit(replace(job, settings=settings), start(job, model, new))
    assert evaluation.train_loss > 1.5 * evaluation.train_metrics["loss"]


def _only(encoded: Encoded, row: int) -> Encoded:
    from finetune_sweep.tasks.arrays import Ragged

    return Encoded(
        {
            name: Ragged.of([column[row].tolist()]) if isinstance(column, Ragged) else column[row : row + 1]
            for name, column in encoded.columns.items()
        }
    )


def test_the_loss_falls_in_twenty_steps(made: Made) -> None:
    job = made.job(epochs=7)
    model, new = made.task.build_model(made.folder, made.classes)
    evaluations = list(fit(job, start(job, model, new)))
    assert evaluations[-1].step == 21
    assert evaluations[-1].train_loss < 0.9 * evaluations[0].train_loss
    assert set(evaluations[-1].metrics) == set(made.task.metrics)


def test_a_resumed_training_equals_an_uninterrupted_one(made: Made) -> None:
    job = made.job()
    whole = list(fit(job, start(job, *made.task.build_model(made.folder, made.classes))))
    asked = iter([False, False, False, False, True])
    state = start(job, *made.task.build_model(made.folder, made.classes))
    before = list(fit(job, state, is_stopping=lambda: next(asked)))
    after = list(fit(job, state))
    assert [e.metrics for e in before + after] == [e.metrics for e in whole]
    assert [e.train_metrics for e in before + after] == [e.train_metrics for e in whole]


def test_a_training_on_cached_states_is_the_one_from_the_inputs(made: Made, tmp_path: Path) -> None:
    if not made.task.packs:
        return  # there is no cache, as the next test reads in the plan
    evaluations = []
    for is_cached in (False, True):
        job = replace(made.job(epochs=3), depth=1)
        model, new = made.task.build_model(made.folder, made.classes)
        job = on_states(job, model, 1, tmp_path / "cache") if is_cached else job
        state = start(job, model, new)
        assert isinstance(state.forward, PackedModel)
        evaluations.append(list(fit(job, state)))
    for plain, cached in zip(*evaluations, strict=True):
        assert cached.train_loss == pytest.approx(plain.train_loss, abs=1e-5)
        assert cached.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-5)


SWEEP = """
name: tiny
task: {task}
model: ./model
data: {{source: ./rows.parquet, max_length: 16, split: {{validation: 0.25, test: 0.25}}}}
metric: loss
training: {{learning_rate: 1e-2, freeze_depth: 1}}
storage: ./runs
cache: ./cache
"""


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_says_whether_frozen_blocks_are_computed_once(name: str, tmp_path: Path) -> None:
    CASES[name].model(tmp_path / "model")
    as_written(CASES[name].train).to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "tiny.yaml").write_text(SWEEP.format(task=name))
    (row,) = outlook.look(make_plan(load_sweep(tmp_path / "tiny.yaml", (), check)), SweepRecord()).trained
    each = (
        f"in each epoch, as the cache is for heads that read one token of a text, and that of {name} does not"
    )
    assert ("computed once, at most" if TASKS[name].packs else each) in row.cache
    takes_texts = any(column.kind in {"text", "tokens"} for column in TASKS[name].columns)
    assert ("texts are padded" in str(row)) == (takes_texts and not TASKS[name].packs)


def test_perfect_predictions_have_perfect_metrics(made: Made) -> None:
    best = {"max": 1.0, "min": 0.0}
    expected = {name: best[mode] for name, mode in made.task.metrics.items()}
    expected |= {"perplexity": 1.0} if "perplexity" in expected else {}
    assert made.task.score(_perfect(made), made.classes) == pytest.approx(expected)


def _perfect(made: Made) -> Predictions:
    """What a model says that is right and sure."""
    model, _ = made.task.build_model(made.folder, made.classes)
    said = evaluate(
        PaddedModel(model), made.task, made.encoded, device="cpu", precision="fp32", pad_token_id=made.pad
    )
    labels = np.asarray(said.labels)
    values = labels
    if not labels.size:  # losses of the tokens of each row, how many they are, and how many were right
        values = np.asarray(said.values)[:, [1, 1, 1]] * np.array([0.0, 1.0, 1.0])
    elif made.classes and said.values.shape != labels.shape and labels.ndim < 3:
        values = 20.0 * np.eye(len(made.classes), dtype=np.float32)[labels]
    elif np.issubdtype(said.values.dtype, np.floating) and np.issubdtype(labels.dtype, np.integer):
        values = 40.0 * labels.astype(np.float32) - 20
    return Predictions(values, labels, np.zeros_like(said.losses))


def test_metrics_are_in_range_and_the_mean_of_row_scores(made: Made) -> None:
    model, _ = made.task.build_model(made.folder, made.classes)
    said = evaluate(
        PaddedModel(model), made.task, made.encoded, device="cpu", precision="fp32", pad_token_id=made.pad
    )
    found = made.task.score(said, made.classes)
    assert set(found) == set(made.task.metrics)
    assert all(found[name] <= 1 for name, mode in made.task.metrics.items() if mode == "max")
    assert all(value >= 0 for name, value in found.items() if name not in SIGNED)
    for name in made.task.metrics:
        rows = made.task.row_scores(said, name)
        assert rows is None or rows.mean() == pytest.approx(found[name])


def test_what_is_not_finite_scores_nan_in_everything(made: Made) -> None:
    perfect = _perfect(made)
    losses = perfect.losses.copy()
    losses[2] = np.nan
    assert all(np.isnan(v) for v in made.task.score(replace(perfect, losses=losses), made.classes).values())


def test_predictions_and_encoded_rows_are_read_back(made: Made, tmp_path: Path) -> None:
    model, _ = made.task.build_model(made.folder, made.classes)
    made.encoded.save(tmp_path)
    again = Encoded.load(tmp_path)
    said = [
        evaluate(PaddedModel(model), made.task, part, device="cpu", precision="fp32", pad_token_id=made.pad)
        for part in (made.encoded, again)
    ]
    said[0].save(tmp_path / "said.npz")
    assert same(*said)
    assert same(said[0], Predictions.load(tmp_path / "said.npz"))


def test_a_saved_model_says_the_same_and_serves_a_pipeline(made: Made, tmp_path: Path) -> None:
    model, _ = made.task.build_model(made.folder, made.classes)
    model.save_pretrained(str(tmp_path / "saved"))
    made.processor.save_pretrained(str(tmp_path / "saved"))
    again = getattr(transformers, made.task.auto_model).from_pretrained(str(tmp_path / "saved"))
    said = [
        evaluate(
            PaddedModel(each), made.task, made.encoded, device="cpu", precision="fp32", pad_token_id=made.pad
        )
        for each in (model, again)
    ]
    assert same(*said)
    if made.task.pipeline not in get_supported_tasks():
        return
    given = made.task.input_example()[0]
    pipeline: Any = transformers.pipeline
    answer = pipeline(made.task.pipeline, model=str(tmp_path / "saved"))(given)
    if made.classes:
        assert {entry.get("label", entry.get("entity")) for entry in answer} <= set(made.classes)
    assert json.dumps(answer, default=float)


@pytest.mark.parametrize("made", CHOOSING, indirect=True)
def test_a_target_that_training_never_saw_is_refused_with_its_row(made: Made) -> None:
    assert made.case.bad is not None
    with pytest.raises(UserError, match=r"row 1: label .*never' is none of the classes"):
        made.task.encode(made.case.bad, made.processor, made.classes, 16)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CHOOSING)))
def test_a_row_that_is_none_of_the_task_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    assert CASES[name].broken is not None
    column, cells, message = CASES[name].broken or ("", [], "")
    rows = CASES[name].train.remove_columns(column).add_column(column, cells)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    data = Data(source=str(tmp_path / "rows.parquet"))
    with pytest.raises(UserError, match=rf"rows\.parquet: {message}"):
        prepare(data, TASKS[name], tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_a_target_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    rows, target = as_written(CASES[name].train), TASKS[name].columns[-1]
    cells = [None if row == 6 else cell for row, cell in enumerate(rows[target.name])]
    rows.remove_columns(target.name).add_column(target.name, cells).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(UserError, match=r"rows\.parquet: row 7 of train has no "):
        prepare(Data(source=str(tmp_path / "rows.parquet")), TASKS[name], tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("made", TELLING_APART, indirect=True)
def test_one_class_alone_is_refused(made: Made) -> None:
    target = made.task.columns[-1]
    one: object = "a" if target.kind == "class" else ["a"]
    with pytest.raises(UserError, match="at least two classes, the training rows have only 'a'"):
        made.task.classes(Dataset.from_dict({target.name: [one, one]}))


def test_only_tokens_that_begin_a_word_have_a_label(tmp_path: Path) -> None:
    made = Made(TASKS["token-classification"], CASES["token-classification"], tmp_path)
    words = made.case.train["tokens"]
    for row, tokens in enumerate(words):
        ids, labels = (np.asarray(made.encoded.columns[name][row]) for name in ("input_ids", "labels"))
        assert len(ids) == len(labels) == 2 + sum(len(token) for token in tokens)
        assert (labels != IGNORED).sum() == len(tokens)
        assert labels[0] == labels[-1] == IGNORED
