"""A sweep of a tiny BERT that real work units trained, for the tests of what comes after."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from finetune_sweep import card, promote, resolved
from finetune_sweep.events import Event, Promoted
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.lock import SweepLock
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.promote import Options
from finetune_sweep.record import TrialRecord
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit

P = ParamSpec("P")
R = TypeVar("R")

SWEEP = """
name: tiny
task: text-classification
model: ./model
data:
  {data}
  max_length: 16
space: {{learning_rate: [3e-3, 1e-2], epochs: [1, 2]}}
metric: {{name: loss}}
training: {training}
storage: ./runs
cache: ./cache
tracking: {{uri: "{uri}", registered_model: tiny classifier}}
"""
NAMES = ("ann", "bob", "eve", "dan", "mia")
THINGS = ("film", "book", "song", "play", "game", "poem")
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "##s", "saw", "the", *NAMES, *THINGS]


@dataclass(frozen=True)
class Trained:
    """A sweep whose trials are all finished."""

    plan: Plan
    layout: Layout


@dataclass(frozen=True)
class Opened:
    """The same, held by this process."""

    plan: Plan
    layout: Layout
    journal: Journal

    def promote(self, fresh: promote.Fresh, options: Options | None = None) -> Promoted:
        return promote.promote(self.plan, self.journal, self.layout, fresh, options)

    @property
    def ranking(self) -> list[TrialRecord]:
        return self.journal.record.ranking()

    @property
    def events(self) -> list[Event]:
        return [entry.event for entry in self.journal.entries]

    def results(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads((self.layout.best / card.RESULTS).read_text())

    def card(self) -> str:
        return (self.layout.best / card.CARD).read_text()


def here(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return function(*args, **kwargs)


def never(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:  # noqa: ARG001 - as `Fresh`
    pytest.fail(f"{function} was called")


def stop_at(number: int) -> promote.Fresh:
    """Runs functions in this process, until the user presses Ctrl-C at the one with this number."""
    calls = 0

    def fresh(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return fresh


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)


def save_rows(file: Path, labels: tuple[str, str] = ("bad", "good")) -> None:
    """Writes 60 different texts, half of each label."""
    rows = [
        (f"{name} saw the {word} {thing}s", labels[word == "good"])
        for name in NAMES
        for thing in THINGS
        for word in ("bad", "good")
    ]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


def train(
    folder: Path,
    data: str,
    uri: str = "sqlite:///mlflow.db",
    training: str = "{freeze_depth: 1, batch_size: 4}",
) -> Trained:
    """Trains a sweep as the driver does, in this process."""
    save_model(folder / "model")
    save_rows(folder / "rows.csv")
    (folder / "tiny.yaml").write_text(SWEEP.format(data=data, uri=uri, training=training))
    sweep = load_sweep(folder / "tiny.yaml")
    plan = make_plan(sweep)
    layout = Layout(Path(sweep.storage or ""), sweep.name)
    torch.set_num_threads(1)
    loaded = Loaded(plan)
    with hold(Trained(plan, layout)) as held:
        resolved.write(plan, layout)
        held.journal.append(*plan.events())
        for unit in plan.units:
            for events in run_unit(Assignment(unit), plan, layout, loaded):
                held.journal.append(*events)
    return Trained(plan, layout)


@contextlib.contextmanager
def hold(trained: Trained) -> Iterator[Opened]:
    with SweepLock(trained.layout) as lock:
        journal = Journal(trained.layout, lock.owner)
        try:
            yield Opened(trained.plan, trained.layout, journal)
        finally:
            journal.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
