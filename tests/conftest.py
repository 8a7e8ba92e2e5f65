"""What many tests start from: a tiny real model, a small csv of reviews, a sweep over both."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WriteSweep = Callable[..., Path]

NAMES = ("ann", "bob", "eve", "dan", "mia")
THINGS = ("film", "book", "song", "play", "game", "poem")
VERDICTS = {"praise": ("good", "great"), "blame": ("bad", "poor")}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "saw", *NAMES, *THINGS, "good", "great", "bad", "poor"]

SWEEP = """\
name: {name}
task: text-classification
model: {model}
data: {{source: {data}, columns: {{text: review, label: verdict}}, max_length: 16}}
space: {space}
search: {search}
metric: accuracy
training: {training}
storage: ./runs
cache: ./cache
"""


@pytest.fixture
def environment_as_before() -> Iterator[None]:
    """What Ray is told, and what it sets itself, would stay in the environment of this process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 blocks and width 16 with a tokenizer of words, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 different reviews in two classes, told by one word."""
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "verdict"])
        for name in NAMES:
            for thing in THINGS:
                for verdict, words in VERDICTS.items():
                    writer.writerows([f"{name} saw a {word} {thing}", verdict] for word in words)
    return file


@pytest.fixture
def write_sweep(tmp_path: Path, tiny_model: Path, reviews: Path) -> WriteSweep:
    """Writes `sweep.yaml` into the test's folder; its parts can be replaced by name."""

    def write(file: str = "sweep.yaml", extra: str = "", **parts: str) -> Path:
        defaults = {
            "name": "tiny",
            "model": str(tiny_model),
            "data": str(reviews),
            "space": "{learning_rate: [1e-3, 1e-2], epochs: [1, 2]}",
            "search": "{type: grid}",
            "training": "{precision: fp32}",
        }
        path = tmp_path / file
        path.write_text(SWEEP.format(**defaults | parts) + extra, encoding="utf-8")
        return path

    return write
