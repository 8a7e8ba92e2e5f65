"""Numbers for texts, and two texts at once: metrics by a second implementation, and which text a token is of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sklearn import metrics

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.train.architecture import describe
from finetune_sweep.train.data import prepare
from finetune_sweep.train.packing import PackedModel, PaddedModel
from tests.tasks.models import SYLLABLES, tiny_bert

TASK = TASKS["text-regression"]


def numbers(said: list[float], right: list[float]) -> Predictions:
    values, labels = np.array(said, dtype=np.float32), np.array(right, dtype=np.float32)
    return Predictions(values, labels, np.square(values - labels))


def test_metrics_are_those_of_scipy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 5, size=40).astype(float)  # with ties
    said = right + rng.normal(size=40).round(1)
    predictions = numbers(said.tolist(), right.tolist())
    assert TASK.score(predictions, ("number",)) == pytest.approx(
        {
            "pearson": stats.pearsonr(said, right).statistic,
            "spearman": stats.spearmanr(said, right).statistic,
            "r2": metrics.r2_score(right, said),
            "mean_absolute_error": metrics.mean_absolute_error(right, said),
            "loss": metrics.mean_squared_error(right, said),
        },
        rel=1e-5,
    )


def test_where_nothing_varies_the_correlations_are_zero() -> None:
    found = TASK.score(numbers([1, 1], [0, 2]), ("number",))
    assert (found["pearson"], found["spearman"], found["r2"]) == (0, 0, 0)
    assert TASK.score(numbers([1, 2], [3, 3]), ("number",))["r2"] == 0


def test_the_second_text_has_types_of_its_own_with_padding_and_without(tmp_path: Path) -> None:
    folder = _with_types(tiny_bert(tmp_path))
    model, _ = TASK.build_model(folder, ("number",))
    model.eval()  # type: ignore[no-untyped-call]
    rows = Dataset.from_dict({"text": ["a b", "c"], "text_pair": ["d", "e f a"], "number": [1.0, 2.0]})
    encoded = TASK.encode(rows, load_processor(folder, TASK), ("number",), 16)
    batch = TASK.collate(encoded, np.array([0, 1]), 0)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1.0, 2.0]
    with torch.inference_mode():
        padded = PaddedModel(model)(batch).logits
        packed = PackedModel(model, describe(model.config.to_dict()))(batch).logits
        alone = PaddedModel(model)({name: t for name, t in batch.items() if name != "token_type_ids"}).logits
    assert packed == pytest.approx(padded, abs=1e-6)
    assert alone != pytest.approx(padded, abs=1e-6)


def _with_types(folder: Path) -> Path:
    """The same tokenizer, as BERT's tells two texts apart."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_processor(folder, TASK)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SYLLABLES.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps({**settings, "model_input_names": names}))
    return folder


def test_what_is_no_number_is_refused_with_its_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,number\na,1\nb,two\n")
    with pytest.raises(UserError, match=r"rows.csv: row 2: must be a finite number, got 'two'"):
        prepare(Data(source="rows.csv"), TASK, tmp_path, tmp_path / "cache")
