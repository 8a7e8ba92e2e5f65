"""The last round: the best configurations and the baseline, again on fresh seeds, and what comes of it.

What made a configuration a finalist is the best of many scores, and so partly luck. On seeds that played no part in
that, the luck of the seed is gone. Everything here follows from the plan, the journal and the kept predictions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from finetune_sweep.durable import check_folder
from finetune_sweep.errors import StorageError
from finetune_sweep.events import Decided, FinalistsPlanned, TrialPlanned
from finetune_sweep.layout import VALIDATION_PREDICTIONS, Layout
from finetune_sweep.plan import Plan, models
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.selection import Runs, runs_of_rows, runs_of_score
from finetune_sweep.space import Config
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.trial import Trial, WorkUnit, trajectory
from finetune_sweep.verdict import Candidate, Verdict, decide

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BASELINE: Final = "baseline"
"""What people call it."""
NONE: Final = FinalistsPlanned("", {})
"""Nobody is run again."""
_SEED_BYTES: Final = 4
_DROPPED_COST: Final = 11 / 12
"""Of a training with one block less, in a model of usual size: a smaller one is cheaper, and so taken if as good."""


def fresh_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Seeds that follow from the sweep's and are not it; more of them later keep the first ones."""
    seeds: list[int] = []
    number = 0
    while len(seeds) < count:
        digest = hashlib.sha256(f"fresh seed {seed} {number}".encode()).digest()
        value = int.from_bytes(digest[:_SEED_BYTES], "big")
        seeds += [value] if value not in {seed, *seeds} else []
        number += 1
    return tuple(seeds)


def baseline_config(plan: Plan) -> Config:
    """What the baseline differs in from what the file fixes: the first model, if the space has several."""
    first = models(plan.sweep)[0]
    return {} if first == plan.sweep.model else {"model": first}


def plan_finalists(plan: Plan, record: SweepRecord) -> tuple[FinalistsPlanned, list[TrialPlanned]]:
    """Who is run again: the best distinct trajectories, and the baseline.

    Of the trials of a trajectory the best one stands for it, of equal ones that with the fewest epochs.

    Returns:
        The event, without candidates if the sweep wants none or no trial is finished; and the runs.
    """
    wanted = plan.sweep.selection
    baseline = plan.trial(baseline_config(plan))
    known = {trial.key: trial for trial in plan.trials}
    first: dict[str, Trial] = {}
    for ranked in record.ranking():
        if ranked.key in known and ranked.key != baseline.key:
            first.setdefault(trajectory(ranked.key, ranked.planned.params), known[ranked.key])
    chosen = list(first.values())[: wanted.finalists]
    if not wanted.finalists or not record.ranking():
        return NONE, []
    seeds = fresh_seeds(plan.sweep.seed, wanted.seeds)
    runs = {trial.key: [plan.trial(trial.config, seed) for seed in seeds] for trial in (*chosen, baseline)}
    planned = [_named(run, is_baseline=key == baseline.key) for key, group in runs.items() for run in group]
    keys = {key: tuple(run.key for run in group) for key, group in runs.items()}
    return FinalistsPlanned(baseline.key, keys), planned


def _named(run: Trial, *, is_baseline: bool) -> TrialPlanned:
    name = BASELINE if is_baseline else run.label
    return replace(run.planned(), label=f"{name} seed={run.seed}")


def final_runs(plan: Plan, record: SweepRecord) -> tuple[Trial, ...]:
    """The finalists' runs that the journal has, as trials that can be trained."""
    planned = [run.planned for runs in record.runs().values() for run in runs]
    return tuple({p.key: plan.trial(dict(p.config), p.seed) for p in planned}.values())


def without_predictions(record: SweepRecord, layout: Layout) -> list[str]:
    """The finished runs whose predictions are not there, or are damaged."""
    missing = []
    for run in (run for runs in record.runs().values() for run in runs if run.score is not None):
        try:
            check_folder(layout.predictions(run.key, run.best_epoch or 0))
        except StorageError:
            missing.append(run.key)
    return missing


# ------------------------------------------------------------------------------------------------- the verdict


def conclude(plan: Plan, record: SweepRecord, layout: Layout) -> Decided | None:
    """Who has won; None if no finalist has all of its runs.

    A configuration with a run that failed or diverged cannot win.

    Raises:
        StorageError: If the predictions of a run are missing or damaged.
    """
    baseline = record.finalists.baseline if record.finalists is not None else ""
    whole = {name: runs for name, runs in record.runs().items() if record.best_run(runs) is not None}
    candidates = {name: _candidate(plan, record, name, runs, layout) for name, runs in whole.items()}
    finalists = [candidate for name, candidate in candidates.items() if name != baseline]
    if not finalists:
        return None
    verdict = decide(
        finalists,
        candidates.get(baseline),
        plan.sweep.metric.name,
        higher_is_better=plan.mode == "max",
        prefer=plan.sweep.selection.prefer,
    )
    return _decided(record, verdict, whole, candidates, baseline)


def _decided(
    record: SweepRecord,
    verdict: Verdict,
    runs: Mapping[str, Sequence[TrialRecord]],
    candidates: Mapping[str, Candidate],
    baseline: str,
) -> Decided:
    order = [name for name in candidates if name != baseline] + [
        name for name in candidates if name == baseline
    ]
    scores = {
        name: {
            "mean": interval.value,
            "spread": candidates[name].runs.spread,
            "low": interval.low,
            "high": interval.high,
        }
        for name, interval in zip(order, verdict.scores, strict=True)
    }
    best = {name: record.best_run(group) for name, group in runs.items()}
    gain, of_baseline = verdict.difference, best.get(baseline)
    winner = best[verdict.winner]
    return Decided(
        winner=winner.key if winner is not None else "",
        baseline=of_baseline.key if of_baseline is not None else "",
        beats_baseline=verdict.beats_baseline,
        difference=gain.value if gain is not None else None,
        low=gain.low if gain is not None else None,
        high=gain.high if gain is not None else None,
        told_apart=verdict.told_apart,
        sentence=verdict.sentence,
        scores=scores,
    )


def _candidate(
    plan: Plan, record: SweepRecord, name: str, runs: Sequence[TrialRecord], layout: Layout
) -> Candidate:
    params = runs[0].planned.params
    label = record.trials[name].planned.label if name in record.trials else BASELINE
    trial = plan.trial(dict(runs[0].planned.config), runs[0].planned.seed)
    cost = WorkUnit((trial,)).cost * _DROPPED_COST**trial.training.drop_layers
    scale = f"{params['model']} {params['data.max_length']}"
    said = [read_predictions(layout, run.key, run.best_epoch or 0) for run in runs]
    return Candidate(name, label, runs_of(plan, said), cost, scale)


def runs_of(plan: Plan, said: Sequence[Predictions]) -> Runs:
    """The sweep's metric of runs, from what each said of the same rows."""
    import numpy as np

    task, metric = TASKS[plan.sweep.task], plan.sweep.metric.name
    rows = [task.row_scores(predictions, metric) for predictions in said]
    known = [each for each in rows if each is not None]
    if len(known) == len(said):
        return runs_of_rows(np.stack(known))

    def score(run: int, drawn: NDArray[np.int64]) -> float:
        whole = said[run]
        part = Predictions(whole.values[drawn], whole.labels[drawn], whole.losses[drawn])
        return task.score(part, plan.classes)[metric]

    return runs_of_score(len(said), len(said[0]), score)


def read_predictions(layout: Layout, key: str, epoch: int) -> Predictions:
    """What a trial's model said of the validation rows after an epoch.

    Raises:
        StorageError: If that was not kept, or is damaged.
    """
    folder = layout.predictions(key, epoch)
    check_folder(folder)
    return Predictions.load(folder / VALIDATION_PREDICTIONS)
