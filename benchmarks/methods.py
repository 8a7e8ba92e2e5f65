"""What each method brings over plain fine-tuning, on few texts and on more: the table of docs/methods.md.

    python -m benchmarks.methods            all of it: more than an hour; stop it at any time, it goes on
    python -m benchmarks.methods --table    what is there already, nothing is trained
    python -m benchmarks.methods --only L2-SP --texts 50 --seeds 2      to try it

There is a sweep for each number of texts, trained by the driver of `run` and kept in its journal: plain fine-tuning and
the methods, each on the same seeds. What a method brings is paired by seed and by validation row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.finalists import read_predictions, runs_of
from finetune_sweep.journal import Journal, read
from finetune_sweep.layout import Layout
from finetune_sweep.lock import SweepLock
from finetune_sweep.markdown import table
from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.selection import Runs, intervals
from finetune_sweep.space import Config
from finetune_sweep.sweepfile import load_sweep

if TYPE_CHECKING:
    from finetune_sweep.tasks.arrays import Predictions
    from finetune_sweep.trial import Trial
    from finetune_sweep.yamlio import Value

SWEEP: Final = Path(__file__).with_name("methods.yaml")
WORK: Final = Path("runs/methods")
PLAIN: Final = "plain"
FEW: Final = 100
MANY: Final = 800
SEEDS: Final = 5


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        setting: As it is written in a sweep file; empty for none.
        config: What it sets.
        on_many: Whether it is measured on many texts too, which takes long.
        augments: Whether it is an augmentation: on many texts, only the one is measured that was best on few.
    """

    setting: str = ""
    config: Config = field(default_factory=dict)
    on_many: bool = False
    augments: bool = False


def _augment(**rates: float) -> Method:
    settings: dict[str, Value] = {**rates, "copies": 2}
    text = ", ".join(f"{name}: {rate:g}" for name, rate in rates.items())
    return Method(f"augment: {{{text}, copies: 2}}", {"augment": settings}, augments=True)


METHODS: Final[Mapping[str, Method]] = {
    PLAIN: Method(on_many=True),
    "plain, three times as long": Method("epochs: 12", {"epochs": 12}),
    "gradual unfreezing": Method(
        "freeze_depth: all, unfreeze: {blocks: 3}",
        {"freeze_depth": "all", "unfreeze": {"blocks": 3}},
        on_many=True,
    ),
    "linear probe first": Method("linear_probe: {epochs: 1}", {"linear_probe": {"epochs": 1}}, on_many=True),
    "dropped blocks": Method("drop_layers: 2", {"drop_layers": 2}),
    "erased blocks": Method("reinit_layers: 1", {"reinit_layers": 1}),
    "erased pooler": Method("reinit_pooler: true", {"reinit_pooler": True}),
    "weakened": Method("shrink_perturb: 0.8", {"shrink_perturb": 0.8}),
    "mean of the tokens": Method("pooling: mean", {"pooling": "mean"}),
    "head of two layers": Method("head: mlp", {"head": "mlp"}),
    "LoRA": Method(
        "lora: {r: 8}, learning_rate: 1e-3", {"lora": {"r": 8}, "learning_rate": 1e-3}, on_many=True
    ),
    "L2-SP": Method("l2_sp: 0.01", {"l2_sp": 0.01}),
    "layer-wise rates": Method("layerwise_lr_decay: 0.9", {"layerwise_lr_decay": 0.9}),
    "plateau": Method("lr_schedule: plateau, epochs: 12", {"lr_schedule": {"type": "plateau"}, "epochs": 12}),
    "early stopping": Method(
        "early_stopping: {patience: 2}, epochs: 12", {"early_stopping": {"patience": 2}, "epochs": 12}
    ),
    "cosine": Method("lr_schedule: cosine", {"lr_schedule": {"type": "cosine"}}),
    "wsd": Method("lr_schedule: wsd", {"lr_schedule": {"type": "wsd"}}),
    "label smoothing": Method("label_smoothing: 0.1", {"label_smoothing": 0.1}),
    "adafactor": Method(
        "optimizer: adafactor, learning_rate: 1e-3", {"optimizer": "adafactor", "learning_rate": 1e-3}
    ),
    "adversarial": Method("adversarial_epsilon: 1.0", {"adversarial_epsilon": 1.0}),
    "adversarial, weakly": Method("adversarial_epsilon: 0.1", {"adversarial_epsilon": 0.1}),
    "similar words": _augment(replacement=0.1),
    "insertion": _augment(insertion=0.1),
    "swap": _augment(swap=0.1),
    "deletion": _augment(deletion=0.1),
    "EDA": _augment(replacement=0.05, insertion=0.05, swap=0.05, deletion=0.05),
    "AEDA": _augment(punctuation=0.3),
    "typos": _augment(typos=0.05),
}
"""A new method is a row here."""


def main() -> None:
    """Trains what is missing, and prints the table."""
    options = _parser().parse_args()
    names = [PLAIN, *(name for name in METHODS if name in options.only)] if options.only else list(METHODS)
    columns: dict[int, Mapping[str, Runs]] = {}
    for texts in options.texts:
        wanted = names if options.only or texts < MANY else _on_many(names, columns)
        planned = plan_of(texts, options.work.absolute(), options.set)
        runs = {
            name: [planned.trial(METHODS[name].config, seed) for seed in range(options.seeds)]
            for name in wanted
        }
        if not options.table:
            train(planned, runs)
        columns[texts] = results(planned, runs)
    print("\n".join(rows(columns)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, WORK, SEEDS)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=[], help="these, beside plain")
    parser.add_argument("--texts", nargs="+", type=int, default=[FEW, MANY], help="training texts")
    return parser


def parser_of(description: str | None, work: Path, seeds: int) -> argparse.ArgumentParser:
    """The options of a benchmark that trains what is missing on several seeds, and prints a table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="two or more")
    parser.add_argument("--table", action="store_true", help="only what is there")
    parser.add_argument("--work", type=Path, default=work, help="the folder of what was trained")
    parser.add_argument(
        "--set", action="append", default=[], help="as for the commands, to try the benchmark"
    )
    return parser


def _on_many(names: Sequence[str], columns: Mapping[int, Mapping[str, Runs]]) -> list[str]:
    """What is measured on many texts: the methods marked so, and the augmentation that was best on few."""
    few = columns.get(FEW, {})
    augmented = {name: runs.mean for name, runs in few.items() if METHODS[name].augments}
    best = {max(augmented, key=lambda name: augmented[name])} if augmented else set()
    return [name for name in names if METHODS[name].on_many or name in best]


def plan_of(texts: int, storage: Path, sets: Sequence[str] = ()) -> Plan:
    """The sweep for a number of training texts, without its trials."""
    own = [f"name=methods-{texts}", f"data.limit.train={texts}", f"storage={storage}"]
    return replace(make_plan(load_sweep(SWEEP, [*own, *sets], check)), trials=())


def train(plan: Plan, runs: Mapping[str, Sequence[Trial]]) -> None:
    """Trains those of the runs that are missing, on all slots of this machine."""
    from finetune_sweep.tune.driver import Driver
    from finetune_sweep.tune.engine import Engine

    plan = replace(plan, trials=tuple({t.key: t for group in runs.values() for t in group}.values()))
    layout = _layout(plan)
    with (
        SweepLock(layout) as lock,
        closing(Journal(layout, lock.owner)) as journal,
        Engine(plan.sweep) as engine,
    ):
        journal.append(*plan.events())
        told = _Progress(journal, len(plan.trials))
        Driver(plan, layout, journal, engine, told, lambda: False, finals=True).train()


@dataclass
class _Progress:
    """Says how many trainings have ended, whenever it is one more."""

    journal: Journal
    count: int
    ended: int = -1

    def __call__(self) -> None:
        ended = sum(trial.done for trial in self.journal.record.current())
        if ended > self.ended:
            print(f"{self.journal.layout.root.name}: {ended} of {self.count}", flush=True)
        self.ended = ended


def results(plan: Plan, runs: Mapping[str, Sequence[Trial]]) -> dict[str, Runs]:
    """What each method came to, where all of its runs have a result."""
    answers = {name: said(plan, group) for name, group in runs.items()}
    return {
        name: runs_of(plan, known)
        for name, group in answers.items()
        if len(known := [each for each in group if each is not None]) == len(group)
    }


def said(plan: Plan, trials: Sequence[Trial]) -> list[Predictions | None]:
    """What each trial said of the validation rows after the epoch that counts; None of one that has no result."""
    layout = _layout(plan)
    record = replay(read(layout)) if layout.root.exists() else SweepRecord()
    known = [record.trials.get(trial.key) for trial in trials]
    return [
        read_predictions(layout, trial.key, each.best_epoch or 0)
        if each is not None and each.score is not None
        else None
        for trial, each in zip(trials, known, strict=True)
    ]


def _layout(plan: Plan) -> Layout:
    return Layout(Path(plan.sweep.storage or ""), plan.sweep.name)


def rows(columns: Mapping[int, Mapping[str, Runs]]) -> Iterator[str]:
    """The table as docs/methods.md has it: means, and differences from plain fine-tuning with their intervals."""
    head = ("method", "setting", *(f"{texts} texts" for texts in columns))
    known = [name for name in METHODS if any(name in runs for runs in columns.values())]
    yield table(
        head,
        [
            (
                name,
                f"`{METHODS[name].setting}`" if METHODS[name].setting else "",
                *(_cell(name, runs) for runs in columns.values()),
            )
            for name in known
        ],
    )


def _cell(name: str, runs: Mapping[str, Runs]) -> str:
    if name not in runs:
        return ""
    if name == PLAIN or PLAIN not in runs:
        return f"{runs[name].mean:.3f}"
    (gain,) = intervals([runs[name] - runs[PLAIN]])
    return f"{runs[name].mean:.3f}: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


if __name__ == "__main__":
    main()
