"""Whole sweeps over labels that say nothing: does anything beat the baseline?

    python -m benchmarks.winner_shuffled [--sweeps 20]

Each sweep has texts whose labels are drawn by lot, half of each, and a small model of random weights. Its trials, its
finalists on fresh seeds and its verdict are those of `run`, trained in this process without Ray.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep import finalists
from finetune_sweep.events import Decided
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.lock import SweepLock
from finetune_sweep.plan import Plan, make_plan, remaining
from finetune_sweep.sweepfile import load_sweep

if TYPE_CHECKING:
    from finetune_sweep.tune.loaded import Loaded

TEXTS: Final = 600
WORDS: Final = (
    "model",
    "data",
    "graph",
    "proof",
    "task",
    "noise",
    "loss",
    "kernel",
    "query",
    "token",
    "batch",
    "depth",
)
SWEEP: Final = """
name: shuffled
task: text-classification
model: ./model
data: {source: ./texts.csv, max_length: 16, split: {validation: 0.5, test: 0, seed: 0}}
space: {learning_rate: [1e-3, 3e-3, 1e-2], batch_size: [16], epochs: [2, 4]}
metric: accuracy
training: {precision: fp32}
selection: {finalists: 3, seeds: 3}
storage: ./runs
cache: ./cache
"""


def main() -> None:
    """Runs the sweeps and counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=20)
    found = 0
    count = parser.parse_args().sweeps
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        for number in range(count):
            decided = sweep(Path(folder), number)
            found += decided.beats_baseline
            print(f"sweep {number}: {decided.sentence}", flush=True)
    print(f"{found} of {count} sweeps over shuffled labels found something that beats the baseline")


def sweep(folder: Path, number: int) -> Decided:
    """One sweep over labels of its own."""
    from finetune_sweep.tune.loaded import Loaded

    shutil.rmtree(folder / "runs", ignore_errors=True)
    _write_texts(folder / "texts.csv", number)
    (folder / "sweep.yaml").write_text(SWEEP)
    loaded = load_sweep(folder / "sweep.yaml")
    plan = make_plan(loaded)
    layout = Layout(Path(loaded.storage or ""), loaded.name)
    process = Loaded(plan)
    with SweepLock(layout) as lock, closing(Journal(layout, lock.owner)) as journal:
        journal.append(*plan.events())
        _train(plan, journal, process)
        event, planned = finalists.plan_finalists(plan, journal.record)
        journal.append(*planned, event)
        _train(replace(plan, trials=finalists.final_runs(plan, journal.record)), journal, process, keep=True)
        decided = finalists.conclude(plan, journal.record, layout)
    if decided is None:
        raise RuntimeError(f"sweep {number} has no verdict: a run failed")
    return decided


def _train(plan: Plan, journal: Journal, loaded: Loaded, *, keep: bool = False) -> None:
    from finetune_sweep.tune.assignment import Assignment
    from finetune_sweep.tune.worker import run_unit

    for unit in remaining(plan, journal.record, {}):
        for events in run_unit(Assignment(unit, predictions=keep), plan, journal.layout, loaded):
            journal.append(*events)


def _write_texts(file: Path, number: int) -> None:
    """Different texts of random words; their labels are drawn apart from them."""
    drawn = random.Random(number)
    texts: dict[str, None] = {}
    while len(texts) < TEXTS:
        texts[" ".join(drawn.choices(WORDS, k=6))] = None
    labels = ["yes", "no"] * (TEXTS // 2)
    drawn.shuffle(labels)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *zip(texts, labels, strict=True)])


def save_model(folder: Path) -> None:
    """A BERT of two narrow blocks with random weights, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
