"""Texts that a model writes: how near they are to the right ones, and what of a row enters a batch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data
from finetune_sweep.tasks import TASKS, wording
from finetune_sweep.tasks.arrays import IGNORED, Predictions
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.train.data import prepare
from finetune_sweep.train.loop import evaluate
from finetune_sweep.train.packing import PaddedModel
from tests.tasks.models import tiny_t5

TASK = TASKS["text-to-text"]
PAIRS = (
    ("the cat sat on the mat", "the cat is on the mat"),
    ("Police killed the gunman.", "police kill the gunman"),
    ("", "nothing was said"),
)


def said(*pairs: tuple[str, str]) -> Predictions:
    values, labels = (wording.codes([pair[side] for pair in pairs]) for side in (0, 1))
    return Predictions(values, labels, np.zeros(len(pairs), dtype=np.float32))


@pytest.mark.parametrize(
    ("metric", "expected"),
    # Of 6 words each, 5 are common, 3 of 5 pairs, and 5 in this order; of 4 words, 3, then 1 of 3 pairs.
    [
        ("rouge1", (5 / 6, 3 / 4, 0)),
        ("rouge2", (3 / 5, 1 / 3, 0)),
        ("rougeL", (5 / 6, 3 / 4, 0)),
        ("exact_match", (0, 0, 0)),
    ],
)
def test_words_in_common_are_counted_as_by_hand(metric: str, expected: tuple[float, ...]) -> None:
    """The numbers of ROUGE are those of the package rouge-score 0.1.2, too."""
    assert TASK.row_scores(said(*PAIRS), metric) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("你好世界。", "你好中国", 2 / 4),  # of 4 characters each, 2 are common
        ("カナ and kana", "カタ and kana", 3 / 4),
        ("नमस्ते दुनिया", "नमस्ते संसार", 1 / 2),  # of 2 words each, 1 is common; vowel signs are of their word
        ("cafe\u0301", "cafe", 0),
        ("5\ufe0f\u20e3 naïve_x don't", "5 naïve_x, don t!", 1),  # a keycap is its digit, as without marks
    ],
)
def test_words_of_other_scripts_are_counted_as_by_hand(one: str, other: str, expected: float) -> None:
    assert TASK.row_scores(said((one, other)), "rouge1") == pytest.approx([expected])


@given(st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from(" _'\u2019\u20ac\u2764\ufe0f")))
def test_words_of_latin_script_are_runs_of_letters(text: str) -> None:
    text = text.replace("İ", "")  # in lower case, it has its dot as a mark
    other = " ".join(re.findall(r"\w+", text.lower()))
    assert TASK.row_scores(said((text, other)), "rougeL") == pytest.approx([1.0 if other else 0.0])


def test_errors_are_those_of_all_rows_over_the_length_of_all_right_texts() -> None:
    # Words: sat/is; Police/police, killed/kill, gunman./gunman; three that are missing. 6 + 4 + 3 right words.
    found = TASK.score(said(*PAIRS), ())
    assert found["word_error_rate"] == pytest.approx((1 + 3 + 3) / 13)
    # Characters: s,a,t -> i,s is 3; P/p, -ed, -. is 4; all of "nothing was said".
    assert found["character_error_rate"] == pytest.approx((3 + 4 + 16) / (21 + 22 + 16))


def test_the_distance_of_two_words_is_that_of_the_textbook() -> None:
    assert wording.distance("kitten", "sitting") == 3
    assert wording.distance("", "abc") == wording.distance("abc", "") == 3
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, right = ("".join(rng.choice(list("abc"), size=rng.integers(0, 8))) for _ in range(2))
        assert wording.distance(left, right) == _by_the_table(left, right)


def _by_the_table(left: str, right: str) -> int:
    """Wagner and Fischer (1974), cell by cell."""
    cells = {(i, 0): i for i in range(len(left) + 1)} | {(0, j): j for j in range(len(right) + 1)}
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            cells[i, j] = min(
                cells[i - 1, j] + 1, cells[i, j - 1] + 1, cells[i - 1, j - 1] + int(one != other)
            )
    return cells[len(left), len(right)]


def test_texts_are_read_back_from_their_codes() -> None:
    texts = ["", "naïve 日本", "a b"]
    assert wording.texts_of(wording.codes(texts)) == texts


def test_the_decoder_is_given_the_tokens_before_and_labels_have_room_for_what_is_written(
    tmp_path: Path,
) -> None:
    folder = tiny_t5(tmp_path)
    model, new = TASK.build_model(folder, ())
    task, tokenizer = TASK.bound(model, load_processor(folder, TASK)), load_processor(folder, TASK)
    rows = Dataset.from_dict({"text": ["a b", "c"], "target": ["d e f", "f"]})
    encoded = task.encode(rows, tokenizer, (), 16)
    batch = task.collate(encoded, np.array([0, 1]), 0)
    assert new == ()
    assert batch["decoder_input_ids"].tolist() == [[0, 6, 7, 8], [0, 8, 1, 0]]
    assert batch["labels"].tolist() == [[6, 7, 8, 1, *[IGNORED] * 4], [8, 1, *[IGNORED] * 6]]
    output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    labels = batch["labels"][:, :4]
    whole = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100
    )
    losses = task.losses(output, batch)
    assert (4 * losses[0] + 2 * losses[1]).item() / 6 == pytest.approx(whole.item(), rel=1e-5)


def test_what_is_written_is_the_likeliest_token_each_time(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path)
    model, _ = TASK.build_model(folder, ())
    tokenizer = load_processor(folder, TASK)
    task = TASK.bound(model, tokenizer)
    encoded = task.encode(Dataset.from_dict({"text": ["a b c"], "target": ["d e"]}), tokenizer, (), 16)
    found = evaluate(PaddedModel(model), task, encoded, device="cpu", precision="fp32", pad_token_id=0)
    ids = [0]
    given = torch.tensor([[3, 4, 5, 1]])
    while len(ids) <= 6 and ids[-1] != 1:
        logits = model(input_ids=given, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    names: Mapping[int, str] = dict(enumerate(["", "", "", *"abcdef"]))
    assert wording.texts_of(found.values)[0].split() == [names[i] for i in ids if names[i]]
    assert wording.texts_of(found.labels) == ["d e"]


def test_of_what_a_folder_says_of_writing_that_of_tokens_stays(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path)
    search = {"num_beams": 4, "do_sample": True, "min_length": 5, "max_length": 99, "repetition_penalty": 2.0}
    tokens = {"forced_bos_token_id": 3, "forced_eos_token_id": 1, "bad_words_ids": [[2]]}
    (folder / "generation_config.json").write_text(json.dumps({**search, **tokens}))
    model, _ = TASK.build_model(folder, ())
    found = model.generation_config.to_diff_dict()
    assert {name: found.get(name) for name in tokens} == tokens
    assert (found["decoder_start_token_id"], found["eos_token_id"], found["pad_token_id"]) == (0, 1, 0)
    assert (found["num_beams"], found["do_sample"]) == (1, False)
    assert not found.keys() & {"min_length", "max_length", "max_new_tokens", "repetition_penalty"}


def test_a_text_is_as_long_as_the_folder_says_whatever_the_rows(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path)
    model, _ = TASK.build_model(folder, ())
    model.generation_config.eos_token_id = None  # it never ends
    tokenizer = load_processor(folder, TASK)
    short, long = (
        TASK.encode(Dataset.from_dict({"text": ["a b"], "target": [text]}), tokenizer, (), 16)
        for text in ("a", "a b c d")
    )
    TASK.as_evaluated(model, lambda: short)
    assert model.generation_config.max_new_tokens == 4  # twice `a </s>`
    task = TASK.bound(model, tokenizer)
    batch = task.collate(long, np.array([0]), 0)
    output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    with torch.inference_mode():
        said = task.respond(model, output, batch, torch.zeros(1)).stored()
    assert len(wording.texts_of(said.values)[0].split()) <= 4
    assert wording.texts_of(said.labels) == ["a b c d"]


@pytest.mark.parametrize("robust", [16, 32])
def test_of_training_rows_there_is_the_loss_alone(robust: int) -> None:
    from finetune_sweep.train import robustness

    nothing = np.zeros((robust, 0), dtype=np.int32)
    task = robustness.task_for("robust_rougeL", TASK)
    found = task.score(Predictions(nothing, nothing, np.ones(robust, dtype=np.float32)), ())
    assert found == {"loss": 1.0}


def test_a_row_without_a_text_to_write_is_refused_with_its_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "target": "b"}\n{"text": "c", "target": " "}\n' * 10)
    data = Data(source="train.jsonl")
    with pytest.raises(UserError, match=r"train.jsonl: row 2 of train has no target, nor have 9 others"):
        prepare(data, TASK, tmp_path, tmp_path / "cache")
