from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data
from finetune_sweep.train.data import encode_split
from tests.train.sources import TASK, Example, examples, prepared, three_files


def test_a_fingerprint_tells_of_rows_labels_and_order(tmp_path: Path) -> None:
    rows = examples(12)
    other_label: list[Example] = [{**rows[0], "label": "neg"}, *rows[1:]]
    prints = {
        prepared(
            tmp_path, three_files(tmp_path, train=part, validation=examples(3, 20), test=examples(3, 30))
        ).fingerprints["train"]
        for part in (rows, rows[::-1], rows[:-1], other_label)
    }
    assert len(prints) == 4


def test_fingerprints_are_the_same_on_every_machine(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(6), validation=examples(3, 20), test=examples(3, 30))
    assert (
        prepared(tmp_path, data).fingerprint
        == "7cfec77c6724169eef0197c1243138280891c14cc8dd5fd760d06795785bd0ac"
    )


def test_a_second_call_reads_the_copy(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(40), validation=examples(6, 50))
    first = prepared(tmp_path, data)
    copies = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/data").rglob("*.arrow")}
    second = prepared(tmp_path, data.model_copy(update={"max_length": 7}))
    assert copies == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/data").rglob("*.arrow")}
    assert (first.fingerprints, first.classes, first.report, first.notes) == (
        second.fingerprints,
        second.classes,
        second.report,
        second.notes,
    )
    assert {split: rows.to_list() for split, rows in first.splits.items()} == {
        split: rows.to_list() for split, rows in second.splits.items()
    }


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(40), validation=examples(6, 50))
    before = prepared(tmp_path, data)
    three_files(tmp_path, train=examples(39))
    assert len(prepared(tmp_path, data).splits["train"]) < len(before.splits["train"])


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(40), validation=examples(6, 50))
    first = prepared(tmp_path, data)
    copy = next((tmp_path / "cache/data").rglob("train/*.arrow"))
    content = bytearray(copy.read_bytes())
    content[content.index(b"text 1")] ^= 1
    copy.write_bytes(content)
    second = prepared(tmp_path, data)
    assert second.splits["train"].to_list()[0]["text"].startswith("text ")
    assert second.fingerprints == first.fingerprints


def test_nothing_is_left_of_reading(tmp_path: Path) -> None:
    prepared(tmp_path, three_files(tmp_path, train=examples(40), validation=examples(6, 50)))
    assert not list((tmp_path / "cache/datasets").iterdir())


def prepared_elsewhere(folder: Path) -> str:
    data = Data(files={"train": "train.jsonl", "validation": "validation.jsonl"})
    return prepared(folder, data).fingerprint


def test_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    data = three_files(tmp_path, train=examples(400), validation=examples(60, 500))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        prints = pool.map(prepared_elsewhere, [tmp_path] * 4, chunksize=1)
    assert set(prints) == {prepared(tmp_path, data).fingerprint}


# ----------------------------------------------------------------------------------------------- tokens


def tokenizer_folder(folder: Path, words: list[str], positions: int = 32) -> Path:
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(str(folder))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "max_position_embeddings": positions})
    )
    return folder


def test_tokens_are_kept_by_tokenizer_and_length(tmp_path: Path) -> None:
    rows = prepared(
        tmp_path, three_files(tmp_path, train=examples(12), validation=examples(3, 20), test=examples(3, 30))
    )
    folder = tokenizer_folder(tmp_path / "model", ["text", "0", "1"])
    cache = tmp_path / "cache"
    first = encode_split(rows, "train", TASK, folder, 8, cache)
    assert list(first.columns["input_ids"][0]) == [2, 3]
    again = encode_split(rows, "train", TASK, folder, 8, cache)
    assert isinstance(again.columns["labels"].base, np.memmap)  # type: ignore[union-attr]  # labels are no Ragged
    assert len(list((cache / "tokens").glob("*/manifest.json"))) == 1
    assert list(encode_split(rows, "train", TASK, folder, 4, cache).lengths()) == [2] * 12
    tokenizer_folder(folder, ["0", "text", "1"])
    other = encode_split(rows, "train", TASK, folder, 8, cache)
    assert list(other.columns["input_ids"][0]) == [3, 2]


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path: Path) -> None:
    rows = prepared(
        tmp_path, three_files(tmp_path, train=examples(12), validation=examples(3, 20), test=examples(3, 30))
    )
    folder = tokenizer_folder(tmp_path / "model", ["text"], positions=16)
    with pytest.raises(UserError, match=r"max_length 17: .*model takes at most 16 tokens"):
        encode_split(rows, "train", TASK, folder, 17, tmp_path / "cache")
