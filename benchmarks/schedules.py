"""Does the default schedule lose accuracy? Winners of a grid under a constant rate, wsd and linear decay.

    python -m benchmarks.schedules            all of it: an hour and a half; stop it at any time, it goes on
    python -m benchmarks.schedules --table    what is there already, nothing is trained
    python -m benchmarks.schedules --seeds 2 --set data.limit.train=32      to try it

`constant` and `wsd` let trials share their training, `linear` does not, and is what the Hugging Face Trainer does by
itself. So each has to find a winner as good as linear decay does. Three data sets, five seeds: every trial is trained
once, and says something of the validation rows. These are split anew, 200 times, into halves: one chooses the winner of
each schedule, the other tests it. Differences are paired by seed; the error is that from seed to seed, on these rows.
What decides is the last line, of all data sets together: the mean of their differences, with the error that follows
from theirs, so that how much the data sets differ does not enter it. There a schedule that is as good is called lower
once in six times, and in one line or another more often.

The learning rates are those that Turc et al. (2019, https://arxiv.org/abs/1908.08962) give for small BERTs, without the
lowest, at which a few hundred texts teach little: linear decay, whose steps sum up to half of those of a constant rate,
would be the worse for that alone.
"""

from __future__ import annotations

import argparse
import functools
import math
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.methods import parser_of, said, train
from finetune_sweep.markdown import table
from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_sweep.trial import Trial

SWEEPS: Final = Path(__file__).parents[1] / "sweeps"
WORK: Final = Path("runs/schedules")
DATA: Final = ("bert", "pairs", "addresses")
"""The shipped sweeps whose data it is; the grid and the number of training texts are the same for all."""
SEEDS: Final = 5
TOGETHER: Final = "all"
PARTITIONS: Final = 200
METRIC: Final = "accuracy"
REFERENCE: Final = "linear"
SCHEDULES: Final = ("constant", "wsd", REFERENCE)
WARMUP_STEPS: Final = 20


@dataclass(frozen=True)
class Found:
    """The winners of a schedule on a data set, or on several.

    Args:
        tested: Shape `(data sets, seeds)`: the metric of the winner on rows that did not choose it, mean over the
            partitions.
    """

    tested: NDArray[np.float64]

    def against(self, other: Found) -> tuple[float, float]:
        """The mean difference, paired by seed, and its standard error from seed to seed; needs two seeds."""
        differences = self.tested - other.tested
        sets, seeds = differences.shape
        errors = differences.std(axis=1, ddof=1) / math.sqrt(seeds)
        return float(differences.mean()), float(np.linalg.norm(errors)) / sets

    def __add__(self, other: Found) -> Found:
        """Those of both."""
        return Found(np.concatenate([self.tested, other.tested]))


def plan_of(data: str, storage: Path, sets: Sequence[str] = ()) -> Plan:
    """The grid on the data of a shipped sweep, one schedule beside the other."""
    space = ", ".join(
        (
            "learning_rate: [5e-5, 1e-4, 3e-4]",
            "epochs: [2, 3, 4]",
            f"lr_schedule.type: [{', '.join(SCHEDULES)}]",
        )
    )
    own = [
        f"name=schedules-{data}",
        f"storage={storage}",
        f"space={{{space}}}",
        "data.limit={train: 256}",
        f"metric={{name: {METRIC}, epoch: last}}",
        f"training={{batch_size: 8, lr_schedule: {{type: {REFERENCE}, warmup_steps: {WARMUP_STEPS}}}}}",
        "selection.finalists=0",
        "keep_checkpoints=1",
    ]
    return make_plan(load_sweep(SWEEPS / f"{data}.yaml", [*own, *sets], check))


def trials_of(plan: Plan, seeds: int) -> dict[tuple[str, int], list[Trial]]:
    """The trials of each schedule and seed."""
    return {
        (schedule, seed): [
            plan.trial(trial.config, seed)
            for trial in plan.trials
            if trial.config["lr_schedule.type"] == schedule
        ]
        for schedule in SCHEDULES
        for seed in range(seeds)
    }


def winners(
    plan: Plan, runs: Mapping[tuple[str, int], Sequence[Predictions]], seeds: int
) -> dict[str, Found]:
    """The winner of each schedule and seed on one half of the rows, and what it does on the other.

    Args:
        plan: Names the task and the metric.
        runs: What the trials of each schedule and seed said of the same rows.
        seeds: How many there are.
    """
    rows = len(next(iter(runs.values()))[0])
    sign = 1.0 if plan.mode == "max" else -1.0
    tested = {schedule: np.zeros(seeds) for schedule in SCHEDULES}
    for number in range(PARTITIONS):
        order = np.random.default_rng(number).permutation(rows)
        choosing, testing = order[: rows // 2], order[rows // 2 :]
        for (schedule, seed), group in runs.items():
            best = max(group, key=lambda each: sign * _score(plan, each, choosing))
            tested[schedule][seed] += sign * _score(plan, best, testing) / PARTITIONS
    return {schedule: Found(values[np.newaxis]) for schedule, values in tested.items()}


def _score(plan: Plan, whole: Predictions, rows: NDArray[np.int64]) -> float:
    part = Predictions(whole.values[rows], whole.labels[rows], whole.losses[rows])
    return TASKS[plan.sweep.task].score(part, plan.classes)[plan.sweep.metric.name]


def together(found: Sequence[Mapping[str, Found]]) -> dict[str, Found]:
    """The winners of all data sets, as of one with as many seeds."""
    return {
        schedule: functools.reduce(operator.add, (each[schedule] for each in found)) for schedule in SCHEDULES
    }


def row(data: str, found: Mapping[str, Found]) -> tuple[str, ...]:
    """A line of the table."""
    cells = [data]
    for schedule in SCHEDULES:
        mean = f"{found[schedule].tested.mean():.4f}"
        if schedule != REFERENCE:
            difference, error = found[schedule].against(found[REFERENCE])
            verdict = "not lower" if difference >= -error else "lower"
            mean += f": {difference:+.4f} ± {error:.4f}, {verdict}"
        cells.append(mean)
    return tuple(cells)


def main() -> int:
    """Trains what is missing, and prints the table.

    Returns:
        0, or 1 if a trial has no result.
    """
    options = _parser().parse_args()
    if options.seeds < 2:
        _parser().error("--seeds: two or more, as the error is that from seed to seed")
    found, missing = {}, 0
    for data in options.data:
        plan = plan_of(data, options.work.absolute(), options.set)
        trials = trials_of(plan, options.seeds)
        if not options.table:
            train(
                replace(plan, trials=()), {f"{name} {seed}": group for (name, seed), group in trials.items()}
            )
        answers = {name: said(plan, group) for name, group in trials.items()}
        whole = {name: [each for each in group if each is not None] for name, group in answers.items()}
        lacking = sum(len(answers[name]) - len(whole[name]) for name in answers)
        if lacking:
            print(f"{data}: {lacking} trials have no result, so it has no line", file=sys.stderr)
            missing += lacking
        else:
            found[data] = winners(plan, whole, options.seeds)
    if len(found) > 1:
        found[TOGETHER] = together(list(found.values()))
    print(table(("data of", *SCHEDULES), [row(data, each) for data, each in found.items()]))
    return 1 if missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, WORK, SEEDS)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    return parser


if __name__ == "__main__":
    sys.exit(main())
