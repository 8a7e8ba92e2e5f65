"""Is the announced score what the test gives? Ours against "the best single trial wins", on resampled partitions.

    python -m benchmarks.winner train      trains the space of the BERT paper on 200 texts, on four seeds; resumes, and
                                           what each model said is part of the repository, so nothing is left to train
    python -m benchmarks.winner compare    compares both rules on 200 partitions of the stored predictions

`--learning-rates 3e-5 1e-4 3e-4` puts others in the place of the paper's, of which all but the highest teach next to
nothing in the few steps that 200 texts give: then one configuration is far above all others, and any rule finds it.

Every trial is trained once a seed and says something of 718 rows. These are then split anew, 200 times, into 277 rows
that choose and 441 that test; in each partition every seed is once the one of the search, and the others are the fresh
ones. So the two rules see the same trials, the same rows and the same luck.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.selection import runs_of_rows
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.trial import Trial, WorkUnit, work_units
from finetune_sweep.verdict import Candidate, Preference, decide

if TYPE_CHECKING:
    from numpy.typing import NDArray

SWEEP: Final = Path(__file__).parents[1] / "sweeps" / "bert_paper.yaml"
WINNER: Final = Path(__file__).with_name("results") / "winner"
"""In the repository: what each model said of each row."""
SEEDS: Final = (0, 1, 2, 3)
TRAINING_TEXTS: Final = 200
CHOOSING_ROWS: Final = 277
PARTITIONS: Final = 200
FINALISTS: Final = 3
BASELINE: Final = {"learning_rate": 3e-5, "batch_size": 16, "epochs": 3, "freeze_depth": 0}

Answers = Mapping[tuple[str, int], "NDArray[np.bool_]"]
"""By trial and seed, what was right: shape `(epochs, rows)`."""


def plan_of(learning_rates: Sequence[str] = ()) -> Plan:
    """The sweep that is looked at, with these learning rates in the place of its own; 3e-5 has to be among them."""
    sets = [f"data.limit={{train: {TRAINING_TEXTS}}}", "selection.finalists=0"]
    if learning_rates:
        rest = "batch_size: [16, 32], epochs: [2, 3, 4], freeze_depth: [0, 3, 6]"
        sets.append(f"space={{learning_rate: [{', '.join(learning_rates)}], {rest}}}")
    return make_plan(load_sweep(SWEEP, sets, check))


# ------------------------------------------------------------------------------------------------- training


def train(plan: Plan, folder: Path, workers: int) -> None:
    """Trains what the folder does not have, in processes of one thread each."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (WorkUnit(tuple(plan.trial(trial.config, seed) for trial in unit.trials)), _file(folder, unit, seed))
        for seed in SEEDS
        for unit in plan.units
    ]
    missing = [(unit, file) for unit, file in jobs if not file.exists()]
    print(f"{len(missing)} of {len(jobs)} trainings are missing")
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = replace(plan, trials=())
    with ProcessPoolExecutor(workers, get_context("spawn"), _load, (context,)) as pool:
        for number, file in enumerate(pool.map(_train_one, missing), 1):
            print(f"{number}/{len(missing)} {file.name}", flush=True)


def _file(folder: Path, unit: WorkUnit, seed: int) -> Path:
    return folder / f"{unit.name}-{seed}.npz"


def _load(plan: Plan) -> None:
    import torch

    from finetune_sweep.tune.loaded import Loaded

    torch.set_num_threads(1)
    globals()["LOADED"] = Loaded(plan)


def _train_one(job: tuple[WorkUnit, Path]) -> Path:
    """Trains a trajectory, and keeps what was right after each epoch."""
    from finetune_sweep.train import loop

    unit, file = job
    fitted, state = globals()["LOADED"].job(unit.trials[-1])
    right = []
    for _ in loop.fit(fitted, state):
        said = state.predictions
        right.append(np.asarray(said.values).argmax(axis=1) == said.labels)
    aside = file.with_suffix(".tmp.npz")
    np.savez(aside, right=np.stack(right))
    aside.replace(file)
    return file


# ------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Outcome:
    """What a rule came to on one partition.

    Args:
        announced: What it said that the score is.
        test: What its model does on the test rows.
        recipe: What its settings do there, mean over all seeds.
        spread: The standard deviation of that from seed to seed.
    """

    announced: float
    test: float
    recipe: float
    spread: float

    @property
    def gap(self) -> float:
        """How much too high the announced score was."""
        return self.announced - self.test


def compare(plan: Plan, folder: Path, prefer: Preference) -> None:
    """Prints both rules beside each other."""
    answers = _read(plan, folder)
    outcomes: list[tuple[Outcome, Outcome]] = []
    rows = next(iter(answers.values())).shape[1]
    for number in range(PARTITIONS):
        order = np.random.default_rng(number).permutation(rows)
        choosing, testing = order[:CHOOSING_ROWS], order[CHOOSING_ROWS:]
        table = _Table(plan, answers, choosing, testing, prefer)
        outcomes += [(table.best_single(seed), table.ours(seed)) for seed in SEEDS]
    print(f"{PARTITIONS} partitions of {rows} rows, each seed of {len(SEEDS)} once that of the search")
    print(f"{'':<24}{'best single trial':>20}{'ours':>12}{'difference':>14}   95 % of partitions")
    for name, value in FACTS.items():
        _line(name, [(value(theirs), value(ours)) for theirs, ours in outcomes])


FACTS: Final[Mapping[str, Callable[[Outcome], float]]] = {
    "announced minus test": lambda found: found.gap,
    "the same without its sign": lambda found: abs(found.gap),
    "announced minus recipe's": lambda found: found.announced - found.recipe,
    "spread from seed to seed": lambda found: found.spread,
    "test accuracy": lambda found: found.test,
}
"""What is compared; the recipe's is the mean of the test accuracies over all seeds."""


def _line(name: str, pairs: Sequence[tuple[float, float]]) -> None:
    """Prints the means of both rules, and between which values 95 % of the partitions have the difference."""
    theirs, ours = np.array(pairs).T
    low, high = np.quantile((ours - theirs).reshape(PARTITIONS, -1).mean(axis=1), [0.025, 0.975])
    difference = (ours - theirs).mean()
    print(
        f"{name:<26}{theirs.mean():>18.4f}{ours.mean():>12.4f}{difference:>+14.4f}   {low:+.4f} to {high:+.4f}"
    )


def _read(plan: Plan, folder: Path) -> Answers:
    answers: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for unit in plan.units:
        for seed in SEEDS:
            file = _file(folder, unit, seed)
            if not file.exists():
                sys.exit(f"{file} is missing: python -m benchmarks.winner train")
            with np.load(file) as stored:
                for trial in unit.trials:
                    answers[trial.key, seed] = stored["right"][: trial.epochs]
    return answers


class _Table:
    """The scores of all trials on one partition."""

    def __init__(
        self,
        plan: Plan,
        answers: Answers,
        choosing: NDArray[np.int64],
        testing: NDArray[np.int64],
        prefer: Preference,
    ) -> None:
        self._prefer: Preference = prefer
        self._trials = {trial.key: trial for trial in plan.trials}
        self._choosing = {name: right[:, choosing] for name, right in answers.items()}
        self._testing = {name: right[:, testing].mean(axis=1) for name, right in answers.items()}
        scores = {name: right.mean(axis=1) for name, right in self._choosing.items()}
        self._epoch = {name: int(values.argmax()) for name, values in scores.items()}
        self._score = {name: float(values.max()) for name, values in scores.items()}
        self._baseline = next(t.key for t in plan.trials if dict(t.config) == BASELINE)

    def best_single(self, seed: int) -> Outcome:
        """The trial with the highest score wins, and that score is announced."""
        best = self._ranking(seed)[0].key
        return self._outcome(self._score[best, seed], best, seed)

    def ours(self, seed: int) -> Outcome:
        """Finalists on fresh seeds; the mean is announced, the best run of the winner promoted."""
        fresh = [other for other in SEEDS if other != seed]
        chosen = [t.key for t in _distinct(self._ranking(seed)) if t.key != self._baseline][:FINALISTS]
        *finalists, baseline = (self._candidate(key, fresh) for key in (*chosen, self._baseline))
        verdict = decide(finalists, baseline, "accuracy", higher_is_better=True, prefer=self._prefer)
        winner = verdict.winner
        promoted = max(fresh, key=lambda other: self._score[winner, other])
        announced = float(np.mean([self._score[winner, other] for other in fresh]))
        return self._outcome(announced, winner, promoted)

    def _ranking(self, seed: int) -> list[Trial]:
        return sorted(self._trials.values(), key=lambda t: (-self._score[t.key, seed], t.epochs))

    def _candidate(self, key: str, seeds: Sequence[int]) -> Candidate:
        rows = np.stack([self._choosing[key, seed][self._epoch[key, seed]] for seed in seeds])
        trial = self._trials[key]
        cost = trial.epochs * (1.0 if trial.depth == 0 else 0.6)
        return Candidate(key, trial.label, runs_of_rows(rows.astype(np.float64)), cost)

    def _test(self, key: str, seed: int) -> float:
        return float(self._testing[key, seed][self._epoch[key, seed]])

    def _outcome(self, announced: float, key: str, seed: int) -> Outcome:
        recipe = np.array([self._test(key, each) for each in SEEDS])
        return Outcome(announced, self._test(key, seed), float(recipe.mean()), float(recipe.std(ddof=1)))


def _distinct(ranking: Sequence[Trial]) -> Iterator[Trial]:
    """The best trial of each trajectory."""
    groups = {trial.key: unit.name for unit in work_units(ranking) for trial in unit.trials}
    seen: set[str] = set()
    for trial in ranking:
        if groups[trial.key] not in seen:
            seen.add(groups[trial.key])
            yield trial


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["train", "compare"])
    parser.add_argument("--folder", type=Path, default=WINNER, help="of the predictions")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--learning-rates", nargs="+", default=[], metavar="RATE")
    parser.add_argument(
        "--prefer", choices=get_args(Preference), default="best", help="as `selection.prefer`"
    )
    arguments = parser.parse_args()
    plan = plan_of(arguments.learning_rates)
    if arguments.step == "train":
        train(plan, arguments.folder, arguments.workers)
    else:
        compare(plan, arguments.folder, arguments.prefer)


if __name__ == "__main__":
    main()
