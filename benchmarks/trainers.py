"""Does our training come to what the Trainer of transformers comes to? Side by side, on ten seeds.

    python -m benchmarks.trainers            all of it: some twenty minutes; stop it at any time, it goes on
    python -m benchmarks.trainers --table    what is there already, nothing is trained
    python -m benchmarks.trainers --seeds 2 --rates 1e-4     to try it

The rows, weights and settings are those of W54 in fp32: batches of 16, nothing frozen, 4 epochs at a constant rate. The
Trainer is set up as for the peers of the other benchmarks. The two draw the order of rows and the dropout masks from
other generators, so one training says little; the mean over the seeds, with its standard error, does. One thing is not
by chance: the first warmup step of the Trainer has a rate of 0, which takes one of the steps away from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import material
from benchmarks.methods import parser_of, train
from benchmarks.peers.recipe import Point, Recipe, Setting
from benchmarks.suite import workload_file
from benchmarks.table import paired, render
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.sweepfile import load_sweep

if TYPE_CHECKING:
    from finetune_sweep.trial import Trial

WORKLOAD: Final = "w54"
WORK: Final = Path("runs/trainers")
RATES: Final = (5e-5, 1e-4)
"""That of W54's winner, and the lower of those that Turc et al. (2019) found best for small BERTs."""
BATCH_SIZE: Final = 16
EPOCHS: Final = 4
SEEDS: Final = 10
_AT_ONCE: Final = 2

Ends = dict[tuple[float, int], Point]
"""By learning rate and seed: the evaluation after the last epoch."""


def main() -> None:
    """Trains what is missing, and prints the table."""
    options = _parser().parse_args()
    if options.seeds < 2:
        _parser().error("--seeds: two or more, as the error is that from seed to seed")
    work, wanted = (
        options.work.absolute(),
        [(rate, s) for rate in options.rates for s in range(options.seeds)],
    )
    plan = plan_of(options.rates, work, options.set)
    trials = [plan.trial(trial.config, seed) for trial in plan.trials for seed in range(options.seeds)]
    if not options.table:
        train_theirs(wanted, work, options.set)
        train(replace(plan, trials=()), {"ours": trials})
    found = ends_of_ours(trials, Layout(work, plan.sweep.name)), ends_of_theirs(wanted, work)
    print(render(("learning rate", "seeds", "Trainer", "ours", "ours minus Trainer"), list(rows(*found))))


def plan_of(rates: Sequence[float], work: Path, sets: Sequence[str] = ()) -> Plan:
    """W54's rows and settings, with these learning rates alone."""
    own = [
        "name=ours",
        f"storage={work}",
        f"cache={work / 'cache'}",
        f"space={{learning_rate: [{', '.join(map(repr, rates))}]}}",
        f"training.batch_size={BATCH_SIZE}",
        f"training.epochs={EPOCHS}",
        "training.precision=fp32",
        "selection.finalists=0",
        "keep_checkpoints=1",
    ]
    return make_plan(load_sweep(workload_file(WORKLOAD), [*own, *sets], check))


def train_theirs(wanted: Sequence[tuple[float, int]], work: Path, sets: Sequence[str] = ()) -> None:
    """Lets the Trainer train what is missing, two at once, each in a process of its own with one thread."""
    missing = [each for each in wanted if not _file(work, *each).exists()]
    if not missing:
        return
    recipe = material.make(workload_file(WORKLOAD), work / "material", sets)
    recipe = replace(recipe, bf16=False, gpu=0.0, folder=str(work), fixed=fixed_of(recipe))
    with ProcessPoolExecutor(_AT_ONCE, get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(train_one, replace(recipe, seed=s), rate): (rate, s) for rate, s in missing}
        for count, future in enumerate(as_completed(futures), 1):
            file = _file(work, *futures[future])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asdict(future.result())), encoding="utf-8")
            print(f"Trainer: {count} of {len(missing)}", flush=True)


def fixed_of(recipe: Recipe) -> dict[str, Setting]:
    """The settings of the Trainer, all but the learning rate."""
    return {**recipe.fixed, "batch_size": BATCH_SIZE, "epochs": EPOCHS, "freeze_depth": 0}


def train_one(recipe: Recipe, rate: float) -> Point:
    """A training by the Trainer, of which nothing is kept but its last evaluation."""
    from benchmarks.peers.hugging_face import arguments, history, load_rows, make_trainer

    config = {"learning_rate": rate}
    args = arguments(recipe, config, recipe.folder) | {"save_strategy": "no"}
    trainer = make_trainer(recipe, config, args, load_rows(recipe))
    trainer.train()
    return history(trainer.state.log_history)[-1]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _file(work: Path, rate: float, seed: int) -> Path:
    return work / "trainer" / f"{rate:g}-{seed}.json"


def ends_of_theirs(wanted: Sequence[tuple[float, int]], work: Path) -> Ends:
    """What the Trainer came to, as far as it has trained."""
    files = {each: _file(work, *each) for each in wanted}
    return {
        each: Point(**json.loads(file.read_text(encoding="utf-8")))
        for each, file in files.items()
        if file.exists()
    }


def ends_of_ours(trials: Sequence[Trial], layout: Layout) -> Ends:
    """What our training came to, as far as it has trained."""
    record = replay(read(layout)) if layout.root.exists() else SweepRecord()
    known = [(trial, record.trials.get(trial.key)) for trial in trials]
    lasts = [
        (trial, of.evaluations[-1]) for trial, of in known if of is not None and of.done and of.evaluations
    ]
    return {
        (trial.training.learning_rate, trial.seed): Point(
            last.epoch, last.metrics["accuracy"], last.metrics["loss"]
        )
        for trial, last in lasts
    }


def rows(ours: Ends, theirs: Ends) -> Iterator[tuple[str, ...]]:
    """A line for each learning rate, of the seeds that both have, and one of all: accuracy, then loss in nats."""
    both = sorted(ours.keys() & theirs.keys())
    rates = sorted({rate for rate, _ in both})
    for rate in [*rates, None] if len(rates) > 1 else rates:
        pairs = [(ours[each], theirs[each]) for each in both if rate in {None, each[0]}]
        sides = [[p.accuracy for p in side] for side in zip(*pairs, strict=True)]
        losses = [[p.loss for p in side] for side in zip(*pairs, strict=True)]
        means = [
            f"{statistics.fmean(a):.4f}, loss {statistics.fmean(b):.4f}"
            for a, b in zip(sides, losses, strict=True)
        ]
        difference = f"{paired(*sides)}; loss {paired(*losses)}"
        yield (f"{rate:g}" if rate is not None else "all", str(len(pairs)), means[1], means[0], difference)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, WORK, SEEDS)
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="learning rates")
    return parser


if __name__ == "__main__":
    main()
