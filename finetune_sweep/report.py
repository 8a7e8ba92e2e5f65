"""The numbers of a sweep, as of now: what `status` prints and what the display draws.

Everything is derived from the journal's record alone; nothing here prints.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune_sweep.events import Decided, Failure, Promoted, TrialState
from finetune_sweep.record import Stage, SweepRecord, TrialRecord, measured
from finetune_sweep.selection import expected_best, places_on_a_curve
from finetune_sweep.trial import trajectory
from finetune_sweep.yamlio import Value

SweepState = Literal["planned", "running", "interrupted", "failed", "finished"]
"""
- `planned`: no trial was begun.
- `running`: a living driver holds the sweep.
- `interrupted`: begun, and left before all had ended: stopped, killed or out of `max_hours`; `run` goes on.
- `failed`: all have ended and none has a result, or the driver gave up on an error before all had ended.
- `finished`: all have ended and at least one has a result, whether or not it was promoted.
"""


@dataclass(frozen=True)
class TrialReport:
    """A trial as of now.

    Attributes:
        label: What differs from the other trials.
        trajectory: The key of the longest trial that shares its training.
        epochs: The epochs it trains at most.
        metrics: Of the validation split, at the epoch that counts; before the end, at the last evaluation.
        score: The sweep's metric at the epoch that counts; None until it finished.
        seconds: Of training and evaluating, as if it had not shared them.
        checkpoint: Relative to the sweep's folder.
        current: Whether the sweep still contains it.
        stage: What it was trained for: the search, a finalist on a fresh seed, the baseline.
        reused_from: The sweep that trained it, if it was not this one.
    """

    key: str
    label: str
    trajectory: str
    config: Mapping[str, Value]
    seed: int
    state: TrialState
    epochs: int
    epochs_done: int
    metrics: Mapping[str, float]
    score: float | None
    best_epoch: int | None
    attempts: int
    seconds: float
    failure: Failure | None
    checkpoint: str | None
    mlflow_run_id: str | None
    current: bool
    stage: Stage = "search"
    reused_from: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not be trained further in this run."""
        return self.state not in {"planned", "running"}

    def to_json(self) -> dict[str, Value]:
        """The trial in `status --json`; `current` is there, and false, if the sweep no longer contains it."""
        content: dict[str, Value] = {
            "key": self.key,
            "config": dict(self.config),
            "seed": self.seed,
            "state": self.state,
            "epochs_done": self.epochs_done,
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "best_epoch": self.best_epoch,
            "attempts": self.attempts,
            "mlflow_run_id": self.mlflow_run_id,
            "stage": self.stage,
        }
        if self.reused_from:
            content["reused_from"] = self.reused_from
        return content if self.current else {**content, "current": False}


@dataclass(frozen=True)
class SweepReport:
    """A sweep as of now.

    Attributes:
        metric: The name of the metric; empty before the sweep was planned.
        trials: Those of the search, in the order of the plan, then the finalists' runs, then those that an edited
            file dropped.
        ranking: The keys of the finished trials of the search, best first.
        finalists: Each finalist with the keys of its runs, best first, the baseline last.
        decided: What the finalists came to.
        expected_best: Of a random search, numbers of trials and the expected best score of so many.
        promoted: What lies in `best/`.
        train_seconds: Spent on training and evaluating, by all workers together; shared training counts once.
        seconds_left: Until the last trial ends, by estimate; None when nothing runs or was measured.
    """

    sweep: str
    state: SweepState
    metric: str
    trials: tuple[TrialReport, ...]
    ranking: tuple[str, ...]
    promoted: Promoted | None
    train_seconds: float
    seconds_left: float | None
    finalists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decided: Decided | None = None
    expected_best: tuple[tuple[int, float], ...] = ()

    @property
    def searched(self) -> tuple[TrialReport, ...]:
        """The trials of the search that can win."""
        return tuple(trial for trial in self.current if trial.stage == "search")

    @property
    def current(self) -> tuple[TrialReport, ...]:
        """The trials of the search that can win, and the finalists' runs."""
        return tuple(trial for trial in self.trials if trial.current)

    @property
    def best(self) -> TrialReport | None:
        """The best finished trial so far."""
        return self.trial(self.ranking[0]) if self.ranking else None

    @property
    def counts(self) -> dict[TrialState, int]:
        """How many of the trials that can win are in each state."""
        return dict(Counter(trial.state for trial in self.current))

    @property
    def ended(self) -> int:
        """How many of the trials that can win have ended."""
        return sum(trial.ended for trial in self.current)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The searched settings, in the order of the space."""
        return tuple(dict.fromkeys(name for trial in self.searched for name in trial.config))

    def trial(self, key: str) -> TrialReport:
        """The trial with this key.

        Raises:
            KeyError: If there is none.
        """
        return {trial.key: trial for trial in self.trials}[key]

    def to_json(self) -> dict[str, Value]:
        """What `status --json` prints; numbers that JSON does not have become null."""
        best: Value = None
        if (winner := self.best) is not None:
            best = {**winner.to_json(), "score": winner.score}
        trials: list[Value] = [trial.to_json() for trial in self.trials]
        content: dict[str, Value] = {
            "sweep": self.sweep,
            "state": self.state,
            "trials": trials,
            "best": best,
            "verdict": verdict_json(self.decided) if self.decided is not None else None,
        }
        curve: list[Value] = [list(point) for point in self.expected_best]
        return content | ({"expected_best": curve} if curve else {})


def verdict_json(decided: Decided) -> dict[str, Value]:
    """The verdict in `status --json` and beside the promoted model."""
    scores: dict[str, Value] = {name: dict(values) for name, values in decided.scores.items()}
    return {
        "winner": decided.winner,
        "baseline": decided.baseline or None,
        "beats_baseline": decided.beats_baseline,
        "difference": decided.difference,
        "interval": None if decided.difference is None else [decided.low, decided.high],
        "told_apart_from_runner_up": decided.told_apart,
        "sentence": decided.sentence,
        "finalists": scores,
    }


def status(record: SweepRecord, sweep_name: str, locked: bool, slots: int | None = None) -> SweepReport:  # noqa: FBT001 - named at its one call
    """The sweep as of now.

    Args:
        record: What the journal says.
        sweep_name: The sweep's name.
        locked: Whether a living driver holds the sweep.
        slots: Work units trained at once, for the time left; by default those that run now.
    """
    trajectories = _trajectories(record.all_current())
    longest = {trial.key: group[-1].key for group in trajectories for trial in group}
    kept = [
        dataclasses.replace(_trial(t, longest[t.key], current=True), stage=record.stage(t.key))
        for t in record.all_current()
    ]
    gone = [
        dataclasses.replace(_trial(t, t.key, current=False), stage=record.stage(key))
        for key, t in record.trials.items()
        if key not in longest
    ]
    return SweepReport(
        sweep=sweep_name,
        state=_state(record, locked=locked),
        metric=record.plan.metric if record.plan is not None else "",
        trials=(*kept, *gone),
        ranking=tuple(trial.key for trial in record.ranking()),
        promoted=record.promoted,
        train_seconds=sum(measured(record.trials.values()).values()),
        seconds_left=_seconds_left(trajectories, slots) if locked else None,
        finalists=dict(record.finalists.candidates) if record.finalists is not None else {},
        decided=record.decided,
        expected_best=_expected_best(record),
    )


def _expected_best(record: SweepRecord) -> tuple[tuple[int, float], ...]:
    if record.plan is None or record.plan.search != "random":
        return ()
    scores = [trial.score for trial in record.ranking() if trial.score is not None]
    places = places_on_a_curve(len(scores))
    curve = expected_best(scores, places, higher_is_better=record.plan.mode == "max")
    return tuple(zip(places, curve, strict=True))


def _trial(trial: TrialRecord, trajectory: str, *, current: bool) -> TrialReport:
    end = trial.end
    evaluated = trial.evaluations[-1].epoch if trial.evaluations else 0
    return TrialReport(
        key=trial.key,
        label=trial.planned.label,
        trajectory=trajectory,
        config=trial.planned.config,
        seed=trial.planned.seed,
        state=trial.state,
        epochs=trial.epochs,
        epochs_done=max(evaluated, end.epochs_done if end is not None else 0),
        metrics=trial.metrics,
        score=trial.score,
        best_epoch=trial.best_epoch,
        attempts=trial.attempts,
        seconds=sum(measured([trial]).values()),
        failure=end.failure if end is not None else None,
        checkpoint=trial.checkpoint,
        mlflow_run_id=trial.mlflow_run_id,
        current=current,
        reused_from=end.reused_from if end is not None else "",
    )


def _state(record: SweepRecord, *, locked: bool) -> SweepState:
    trials = record.all_current()
    if locked:
        return "running"
    if not any(trial.attempts or trial.end is not None for trial in trials):
        return "planned"
    if all(trial.done or trial.state == "failed" for trial in trials):
        return "finished" if any(trial.score is not None for trial in trials) else "failed"
    return "interrupted" if record.exit_code in {None, 0, 130} else "failed"


# -------------------------------------------------------------------------------------------- time and cost


def _trajectories(trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Trials that share their training, by epochs."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(trajectory(trial.key, trial.planned.params), []).append(trial)
    return [sorted(group, key=lambda trial: trial.epochs) for group in groups.values()]


def _seconds_left(trajectories: Sequence[Sequence[TrialRecord]], slots: int | None) -> float | None:
    """Mean seconds of an epoch times the epochs left, over the slots; at least the longest trajectory."""
    seconds = measured(trial for group in trajectories for trial in group).values()
    left = [_epochs_left(group) for group in trajectories]
    running = sum(any(trial.state == "running" for trial in group) for group in trajectories)
    slots = slots or running
    if not seconds or not slots:
        return None
    return sum(seconds) / len(seconds) * max(sum(left) / slots, *left)


def _epochs_left(trajectory: Sequence[TrialRecord]) -> int:
    still = [trial for trial in trajectory if trial.state in {"planned", "running"}]
    done = [evaluation.epoch for trial in still for evaluation in trial.evaluations]
    return max((trial.epochs for trial in still), default=0) - max(done, default=0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
