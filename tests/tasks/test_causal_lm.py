"""What comes next in a text: the loss by the library's own, prompts that are not learned, models that look ahead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import IGNORED, Encoded
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.train.data import prepare
from finetune_sweep.train.loop import evaluate
from finetune_sweep.train.packing import PaddedModel
from tests.tasks.models import tiny_bert, tiny_gpt2

TASK = TASKS["causal-lm"]
END, A, B, C = 1, 3, 4, 5


def encoded(folder: Path, rows: dict[str, list[str]], max_length: int = 16) -> Encoded:
    return TASK.encode(Dataset.from_dict(rows), load_processor(folder, TASK), (), max_length)


def both(found: Encoded, row: int) -> tuple[list[int], list[int]]:
    ids, labels = (np.asarray(found.columns[name][row]).tolist() for name in ("input_ids", "labels"))
    return ids, labels


def test_a_text_is_learned_whole_and_ends_once(tmp_path: Path) -> None:
    found = encoded(tiny_gpt2(tmp_path), {"text": ["a b", "a b c a b c"]}, max_length=4)
    assert both(found, 0) == ([A, B, END], [A, B, END])
    assert both(found, 1)[0][:3] == [A, B, C]
    assert len(both(found, 1)[0]) == 4


def test_an_empty_prompt_is_none(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path)
    with_prompts = encoded(folder, {"prompt": ["", "a"], "text": ["b c", "c"]})
    without = encoded(folder, {"text": ["b c", "c"]})
    for name in ("input_ids", "labels"):
        assert list(with_prompts.columns[name][0]) == list(without.columns[name][0])


def test_a_prompt_is_given_and_not_learned_and_loses_its_beginning(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path)
    rows = {"prompt": ["a", "a a a a a b"], "text": ["b c", "c"]}
    found = encoded(folder, rows, max_length=5)
    ids, labels = both(found, 0)
    assert labels == [IGNORED] * (len(ids) - 3) + [B, C, END]
    ids, labels = both(found, 1)
    assert (len(ids), labels[-2:], set(labels[:-2])) == (5, [C, END], {IGNORED})
    long = encoded(folder, {"prompt": ["a"], "text": ["b " * 9]}, max_length=5)
    assert (len(both(long, 0)[0]), both(long, 0)[1].count(IGNORED)) == (5, 1)


def test_perplexity_is_that_of_the_library_over_all_tokens(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path)
    model, _ = TASK.build_model(folder, ())
    rows = encoded(folder, {"prompt": ["a", "b"], "text": ["b c a b", "c"]})
    said = evaluate(PaddedModel(model), TASK, rows, device="cpu", precision="fp32", pad_token_id=0)
    batch = TASK.collate(rows, np.array([0, 1]), 0)
    expected = model(**batch).loss.exp().item()
    found = TASK.score(said, ())
    assert found["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] != pytest.approx(np.log(expected), rel=1e-3)  # there rows count alike, not tokens
    assert np.asarray(said.values)[:, 1].tolist() == [5, 2]


def test_a_model_that_sees_the_next_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="a bert sees the words that it should say; take a decoder such as gpt2"
    ):
        TASK.build_model(tiny_bert(tmp_path), ())


def test_plain_texts_are_cleaned_by_their_text(tmp_path: Path) -> None:
    lines = [*(f'{{"text": "{"abcdef"[n % 6]} {n}"}}' for n in range(40)), '{"text": " "}', '{"text": "a 0"}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "validation.jsonl").write_text('{"text": "a 0"}\n{"text": "new"}\n')
    data = Data(source=str(tmp_path))
    prepared = prepare(data, TASK, tmp_path, tmp_path / "cache")
    assert "train: 1 row without text dropped" in prepared.report
    assert "train: 1 exact duplicate dropped" in prepared.report
    assert "train: 1 row dropped, the text stands in validation or test" in prepared.report


def test_what_a_user_lets_it_write_stays_within_its_positions(tmp_path: Path) -> None:
    model, _ = TASK.build_model(tiny_gpt2(tmp_path), ())
    assert model.generation_config.max_new_tokens == 16  # of 32 positions; the others are for the prompt
