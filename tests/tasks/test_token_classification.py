from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForTokenClassification, pipeline

from finetune_sweep.tasks.arrays import IGNORED, Encoded, Predictions
from finetune_sweep.tasks.entities import Span, score, spans
from finetune_sweep.tasks.processors import load_tokenizer
from finetune_sweep.tasks.token_classification import TokenClassification
from finetune_sweep.train.loop import evaluate
from finetune_sweep.train.packing import Logits, PaddedModel
from tests.tasks.models import tiny_bert

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O B-X", [("X", 0, 1), ("X", 3, 3)]),
        ("I-X I-X I-Y", [("X", 0, 1), ("Y", 2, 2)]),  # IOB1: an entity may begin with I
        ("B-X B-X", [("X", 0, 0), ("X", 1, 1)]),
        ("B-X E-X S-Y I-X", [("X", 0, 1), ("Y", 2, 2), ("X", 3, 3)]),
        ("B-X L-X U-X", [("X", 0, 1), ("X", 2, 2)]),
        ("Street Street O City", [("Street", 0, 1), ("City", 3, 3)]),  # plain: neighbours are one
        ("O O", []),
    ],
)
def test_entities_are_those_of_their_tags(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == [Span(*span) for span in expected]


def test_scores_are_those_worked_out_by_hand() -> None:
    right = [["B-X", "I-X", "O", "B-Y"], ["O", "B-X"]]
    said = [["B-X", "O", "O", "B-Y"], ["B-Y", "B-X"]]
    # right: X 0-1, Y 3, X 1; said: X 0, Y 3, Y 0, X 1; both: Y 3 and X 1
    found = score(zip(right, said, strict=True))
    assert found == {"precision": 2 / 4, "recall": 2 / 3, "f1": pytest.approx(4 / 7)}
    assert score([(["O"], ["O"])]) == {"precision": 0, "recall": 0, "f1": 0}


@given(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=12))
def test_scores_are_those_of_sets_of_entities(pairs: list[tuple[str, str]]) -> None:
    right, said = [one for one, _ in pairs], [other for _, other in pairs]
    both = len(set(spans(right)) & set(spans(said)))
    found = score([(right, said)])
    assert found["recall"] == (both / len(spans(right)) if spans(right) else 0)
    assert found["precision"] == (both / len(spans(said)) if spans(said) else 0)


def test_words_without_a_label_do_not_count() -> None:
    labels = np.array([[IGNORED, 1, 2, IGNORED], [IGNORED, 0, IGNORED, IGNORED]])
    values = np.array([[IGNORED, 1, 2, IGNORED], [IGNORED, 1, IGNORED, IGNORED]])
    predictions = Predictions(values, labels, np.zeros(2, dtype=np.float32))
    found = TokenClassification().score(predictions, TAGS)
    # words: 1 2 0 against 1 2 1; entities: X 0-1 found, and an X 0 in the second text that is none
    assert found == pytest.approx(
        {"accuracy": 2 / 3, "precision": 1 / 2, "recall": 1, "f1": 2 / 3, "loss": 0}
    )


def test_batches_of_other_lengths_are_joined_in_the_order_of_their_rows() -> None:
    parts = [
        Predictions(np.array([[3, 4, 5]]), np.array([[3, 4, 5]]), np.array([2.0], dtype=np.float32)),
        Predictions(np.array([[1], [2]]), np.array([[1], [2]]), np.array([0.0, 1.0], dtype=np.float32)),
    ]
    whole = Predictions.join(parts, np.array([2, 0, 1]))
    assert whole.values.tolist() == [[1, IGNORED, IGNORED], [2, IGNORED, IGNORED], [3, 4, 5]]
    assert whole.losses.tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------ unseen words


def encoded(folder: Path, words: str, tags: str, classes: list[str], max_length: int) -> Encoded:
    rows = Dataset.from_dict({"tokens": [words.split(" ")], "tags": [tags.split()]})
    return TokenClassification().encode(rows, load_tokenizer(folder), classes, max_length)


def scores_of(row: Encoded, found: int, classes: list[str]) -> dict[str, float]:
    """The scores of a model that says the right class of the first words, and the last class of all others."""
    task = TokenClassification()
    batch = task.collate(row, np.zeros(1, dtype=np.int64), 0)
    guesses = batch["labels"][:, : batch["input_ids"].shape[1]].clone()
    places = torch.nonzero(guesses[0] != IGNORED).flatten()
    guesses[0, places[found:]] = len(classes) - 1
    logits = torch.nn.functional.one_hot(guesses.clamp(min=0), len(classes)).float()
    output = Logits(logits)
    said = task.predict(output, batch, task.losses(output, batch)).stored()
    joined = Predictions.join([said, said], np.array([1, 0]))
    assert task.score(joined, classes) == task.score(said, classes)
    return task.score(said, classes)


@pytest.mark.parametrize("max_length", [3, 4, 7, 16])
def test_words_behind_the_cut_count_as_tagged_o(tmp_path: Path, max_length: int) -> None:
    classes = ["B-X", "B-Y", "I-Y", "O"]
    row = encoded(tiny_bert(tmp_path), "a b c d e f a b", "B-X O O O B-Y I-Y O B-X", classes, max_length)
    assert len(row.columns["input_ids"][0]) == min(max_length, 10)
    found = scores_of(row, 1, classes)
    # of the entities X 0, Y 4-5 and X 7 the first; 5 of 8 words are right
    assert math.isfinite(found.pop("loss"))
    assert found == {"precision": 1, "recall": 1 / 3, "f1": 1 / 2, "accuracy": 5 / 8}


def test_without_a_tag_o_words_behind_the_cut_are_wrong(tmp_path: Path) -> None:
    classes = ["City", "Street"]
    row = encoded(tiny_bert(tmp_path), "a b c d", "Street Street City Street", classes, 4)
    found = scores_of(row, 2, classes)
    # Street 0-1 is found; City 2 and Street 3 were not seen
    assert (found["accuracy"], found["recall"], found["precision"]) == (2 / 4, 1 / 3, 1)


@pytest.mark.parametrize("nothing", ["\u2003", ""])
def test_a_word_that_the_tokenizer_drops_stays_in_its_place(tmp_path: Path, nothing: str) -> None:
    classes = ["B-X", "I-X", "O"]
    row = encoded(tiny_bert(tmp_path), f"a {nothing} b c", "B-X I-X I-X O", classes, 16)
    assert list(row.columns["input_ids"][0]) == [1, 4, 6, 8, 2]
    assert list(row.columns["labels"][0]) == [IGNORED, 0, 1, 2, IGNORED]
    found = scores_of(row, 3, classes)
    # right: X 0-2; said: B O I O, which is X 0 and X 2
    assert (found["accuracy"], found["precision"], found["recall"]) == (3 / 4, 0, 0)


def test_an_evaluation_counts_every_word_whatever_its_length(tmp_path: Path) -> None:
    task, classes = TokenClassification(), ("B-X", "O")
    model, _ = task.build_model(tiny_bert(tmp_path), classes)
    rows = Dataset.from_dict({"tokens": [["ab", "c", "d"], ["e"]], "tags": [["O", "B-X", "O"], ["O"]]})
    for max_length in (3, 16):
        part = task.encode(rows, load_tokenizer(tmp_path), classes, max_length)
        said = evaluate(PaddedModel(model), task, part, device="cpu", precision="fp32", pad_token_id=0)
        assert (said.labels != IGNORED).sum(axis=1).tolist() == [3, 1]
        assert round(task.score(said, classes)["accuracy"] * 4) == task.score(said, classes)["accuracy"] * 4


# ------------------------------------------------------------------------------------- tokens of bytes


def bytes_model(folder: Path, *, trims: bool) -> Path:
    """A RoBERTa, whose tokenizer is of bytes and puts no space before a text."""
    merges = ["Ġ M", "a i", "ĠM ai", "ĠMai n", "t r", "1 2"]
    made = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {token: place for place, token in enumerate([*made, *(m.replace(" ", "") for m in merges)])}
    words = Tokenizer(models.BPE(vocab, [(m.split()[0], m.split()[1]) for m in merges]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = (("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]))
    words.post_processor = RobertaProcessing(*ends, trim_offsets=trims, add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(str(folder))
    config = RobertaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=vocab["<pad>"],
    )
    RobertaForTokenClassification(config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("trims", [True, False])
def test_words_are_read_as_a_pipeline_reads_their_text(tmp_path: Path, *, trims: bool) -> None:
    tokenizer = load_tokenizer(bytes_model(tmp_path, trims=trims))
    row = encoded(tmp_path, "123 Main Street ok", "NUMBER STREET STREET O", ["NUMBER", "O", "STREET"], 32)
    pipe = pipeline("token-classification", model=str(tmp_path), tokenizer=str(tmp_path))
    (given,) = pipe.preprocess("123 Main Street ok", is_split_into_words=False)  # type: ignore[no-untyped-call]
    ids = row.columns["input_ids"][0].tolist()
    assert ids == given["input_ids"][0].tolist()
    labels = [int(label) for label in row.columns["labels"][0]]
    firsts = [
        (token, label) for token, label in zip(tokenizer.convert_ids_to_tokens(ids), labels, strict=True)
    ]
    assert [pair for pair in firsts if pair[1] != IGNORED] == [("12", 0), ("ĠMain", 2), ("Ġ", 2), ("Ġ", 1)]
    assert len(row.columns["unseen"][0]) == 0
