"""What a journal comes to: the state of a sweep and of each of its trials, replayed from the events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune_sweep.events import (
    CheckpointRemoved,
    CheckpointWritten,
    Decided,
    Entry,
    Evaluated,
    FinalistsPlanned,
    Metrics,
    Promoted,
    SessionEnded,
    SessionStarted,
    Suggested,
    SweepPlanned,
    TestRead,
    Tracked,
    TrialEnded,
    TrialPlanned,
    TrialState,
    UnitStarted,
    WorkerInfo,
)
from finetune_sweep.ranking import Ranking

Stage = Literal["search", "finalist", "baseline"]


@dataclass
class TrialRecord:
    """A trial as the journal tells it. Times are seconds since 1970.

    `score` is the metric that the sweep optimises, at `best_epoch`, the epoch that counts; only of a finished trial.
    """

    planned: TrialPlanned
    state: TrialState = "planned"
    evaluations: list[Evaluated] = field(default_factory=list)
    evaluation_times: list[float] = field(default_factory=list)
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    end: TrialEnded | None = None
    worker: WorkerInfo | None = None
    checkpoint: str | None = None
    mlflow_run_id: str | None = None
    score: float | None = None
    best_epoch: int | None = None

    @property
    def key(self) -> str:
        """The trial's key."""
        return self.planned.key

    def apply(self, entry: Entry, plan: SweepPlanned | None) -> None:
        """Moves the state on by an event of this trial."""
        match entry.event:
            case UnitStarted(_, _, worker):
                self.begin(worker, entry.time)
            case Evaluated() as event:
                self.add(event, entry.time)
            case TrialEnded() as event:
                self.finish(event, entry.time)
                if plan is not None:
                    self.rate(plan)
            case CheckpointWritten(_, checkpoint):
                self.checkpoint = checkpoint
            case CheckpointRemoved():
                self.checkpoint = None
            case Tracked(_, run_id):
                self.mlflow_run_id = run_id

    def begin(self, worker: WorkerInfo, moment: float) -> None:
        """A worker trains it; what it has a result for stays."""
        if not self.done:
            self.state, self.worker, self.started, self.end = "running", worker, moment, None
            self.attempts += 1

    def add(self, evaluation: Evaluated, moment: float) -> None:
        """Notes an evaluation; the first one of an epoch stands."""
        if all(evaluation.epoch > known.epoch for known in self.evaluations):
            self.evaluations.append(evaluation)
            self.evaluation_times.append(moment)

    def rate(self, plan: SweepPlanned) -> None:
        """Sets the score of a finished trial and the epoch that counts, by what the sweep optimises now.

        They follow from the evaluations, so that an edited metric ranks the trials that are there.
        """
        if self.state != "finished" or self.end is None:
            return
        self.score, self.best_epoch = self.end.score, self.end.best_epoch
        done = [each for each in self.evaluations if each.epoch <= self.end.epochs_done]
        rated = counting(done, plan.metric, plan.mode, plan.epoch)
        if rated is not None:
            self.score, self.best_epoch = rated.metrics[plan.metric], rated.epoch

    def finish(self, end: TrialEnded, moment: float) -> None:
        """Notes the end; the first result stands."""
        if not self.done:
            self.state, self.end, self.ended, self.checkpoint = end.state, end, moment, end.checkpoint

    @property
    def epochs(self) -> int:
        """How many it is to train."""
        return int(str(self.planned.params["epochs"]))

    @property
    def done(self) -> bool:
        """Whether the trial has a result, or will never have one."""
        return self.state in {"finished", "stopped", "diverged"}

    @property
    def metrics(self) -> Metrics:
        """The validation metrics at the epoch that counts; before the end, at the last evaluation."""
        for evaluation in reversed(self.evaluations):
            if self.best_epoch is None or evaluation.epoch == self.best_epoch:
                return evaluation.metrics
        return {}


def counting(
    evaluations: Iterable[Evaluated],
    metric: str,
    mode: Literal["max", "min"],
    epoch: Literal["best", "last"],
) -> Evaluated | None:
    """The evaluation that counts: the last one, or the best, of equal ones the first; None if none has the metric."""
    rated = [each for each in evaluations if metric in each.metrics]
    if not rated or epoch == "last":
        return rated[-1] if rated else None
    sign = 1.0 if mode == "max" else -1.0
    return max(rated, key=lambda each: (sign * each.metrics[metric], -each.epoch))


@dataclass
class SweepRecord:
    """A sweep as the journal tells it.

    `trials` holds every trial that was ever part of it, also those that an edited file no longer contains;
    `plan.keys` names the present ones of the search, `finalists` those that run the best of them again. What the
    finalists came to is forgotten where the search has changed since.
    """

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    plan: SweepPlanned | None = None
    finalists: FinalistsPlanned | None = None
    decided: Decided | None = None
    promoted: Promoted | None = None
    suggestions: list[Suggested] = field(default_factory=list)
    test_reads: list[TestRead] = field(default_factory=list)
    mlflow_run_id: str | None = None
    session: SessionStarted | None = None
    exit_code: int | None = None
    started: float | None = None
    updated: float | None = None
    _stages: dict[str, Stage] = field(default_factory=dict)
    _ranking: Ranking | None = field(default=None, repr=False, compare=False)

    def apply(self, entry: Entry) -> None:
        """Moves the state on by one entry."""
        self.updated = entry.time
        match entry.event:
            case SessionStarted() | SessionEnded():
                self._apply_to_session(entry.event, entry.time)
            case SweepPlanned() | FinalistsPlanned() | Decided():
                self._apply_to_plan(entry.event)
            case TrialPlanned() as event:
                self.trials.setdefault(event.key, TrialRecord(event))
            case Suggested() as event:
                self._suggest(event)
            case Tracked("", run_id):
                self.mlflow_run_id = run_id
            case TestRead() as event:
                self.test_reads.append(event)
            case Promoted() as event:
                self.promoted = event
            case _:
                self._apply_to_trials(entry)

    def _apply_to_plan(self, event: SweepPlanned | FinalistsPlanned | Decided) -> None:
        """What finalists came to holds for the trials and the metric that they were chosen by."""
        match event:
            case SweepPlanned():
                if self.plan is not None and _contest(self.plan) != _contest(event):
                    self.finalists = self.decided = None
                self.plan, self._ranking = event, None
                for trial in self.trials.values():
                    trial.rate(event)
            case FinalistsPlanned():
                if event != self.finalists:
                    self.finalists, self.decided = event, None
                for name, keys in event.candidates.items():
                    stage: Stage = "baseline" if name == event.baseline else "finalist"
                    self._stages |= dict.fromkeys(keys, stage)
            case Decided():
                self.decided = event

    def _apply_to_session(self, event: SessionStarted | SessionEnded, moment: float) -> None:
        """What was running when a driver left, or when the next one came, is not running any more."""
        match event:
            case SessionStarted():
                self.session, self.started, self.exit_code = event, moment, None
            case SessionEnded(exit_code):
                self.exit_code = exit_code
        for trial in self.trials.values():
            if trial.state == "running":
                trial.state = "planned"

    def _apply_to_trials(self, entry: Entry) -> None:
        """Hands an event to its trials; one whose plan was lost with a damaged line is trained again."""
        match entry.event:
            case UnitStarted(_, keys) | Evaluated(_, keys):
                pass
            case TrialEnded(key) | CheckpointWritten(key) | CheckpointRemoved(key) | Tracked(key):
                keys = (key,)
            case _:
                keys = ()
        for trial in (self.trials[key] for key in keys if key in self.trials):
            before = trial.score
            trial.apply(entry, self.plan)
            if trial.score != before:
                self._rank(trial, before)

    def _rank(self, trial: TrialRecord, before: float | None) -> None:
        """Puts a new score in its place; where one was changed, all are ranked anew when they are asked for."""
        if before is not None:
            self._ranking = None
        elif self._ranking is not None and trial.score is not None:
            self._ranking.add(trial.key, trial.score, trial.epochs)

    def _suggest(self, event: Suggested) -> None:
        self.suggestions.append(event)
        if self.plan is not None and event.key not in self.plan.keys:
            self.plan = dataclasses.replace(self.plan, keys=(*self.plan.keys, event.key))
            self.finalists = self.decided = self._ranking = None

    def current(self) -> list[TrialRecord]:
        """The trials of the search that can win, in the order of the plan."""
        return (
            [self.trials[key] for key in self.plan.keys if key in self.trials]
            if self.plan is not None
            else []
        )

    def runs(self) -> dict[str, list[TrialRecord]]:
        """The runs of each finalist on fresh seeds, best finalist first, the baseline last."""
        if self.finalists is None:
            return {}
        candidates = self.finalists.candidates.items()
        return {name: [self.trials[key] for key in keys if key in self.trials] for name, keys in candidates}

    def all_current(self) -> list[TrialRecord]:
        """The trials of the search, and after them the finalists' runs, each once."""
        runs = [trial for group in self.runs().values() for trial in group]
        return list({trial.key: trial for trial in (*self.current(), *runs)}.values())

    def stage(self, key: str) -> Stage:
        """For what a trial is run, or once was: the search, a finalist, the baseline."""
        return self._stages.get(key, "search")

    def ranking(self, count: int | None = None) -> list[TrialRecord]:
        """The finished trials of the search, best first; ties go to the fewest epochs, then the plan's order.

        Args:
            count: How many; None for all.
        """
        if self.plan is None:
            return []
        if self._ranking is None:
            self._ranking = Ranking(self.plan.keys, self.plan.mode)
            for trial in self.current():
                if trial.score is not None:
                    self._ranking.add(trial.key, trial.score, trial.epochs)
        return [self.trials[key] for key in self._ranking.best(count)]

    def best_run(self, runs: Sequence[TrialRecord]) -> TrialRecord | None:
        """The run with the best score, of equal ones the first; None unless all are finished."""
        scored = [(trial.score, trial) for trial in runs if trial.score is not None]
        if self.plan is None or not scored or len(scored) < len(runs):
            return None
        choose = max if self.plan.mode == "max" else min
        return choose(scored, key=lambda pair: pair[0])[1]

    def promotable(self, count: int) -> list[TrialRecord]:
        """The trials whose checkpoints may still be asked for: the best of the search, and finalists' runs.

        After the verdict these are the winner and the baseline.

        Args:
            count: How many of the search.
        """
        kept = self.ranking(count)
        for runs in self.runs().values():
            best = self.best_run(runs)
            kept += runs if best is None else [best]
        if self.decided is not None:
            asked = (self.decided.winner, self.decided.baseline)
            kept = [*self.ranking(count), *(self.trials[key] for key in asked if key in self.trials)]
        return kept

    def best(self) -> TrialRecord | None:
        """The best trial of the search so far."""
        return next(iter(self.ranking(1)), None)


def measured(trials: Iterable[TrialRecord]) -> dict[tuple[str, int], float]:
    """Seconds of every evaluated epoch, by work unit and epoch: what several trials share is there once.

    What another sweep trained is left out.
    """
    return {
        (evaluation.unit, evaluation.epoch): evaluation.train_seconds + evaluation.eval_seconds
        for trial in trials
        if trial.end is None or not trial.end.reused_from
        for evaluation in trial.evaluations
    }


def _contest(plan: SweepPlanned) -> tuple[object, ...]:
    """What decides who the finalists are, and how they are compared."""
    return set(plan.keys), plan.fingerprint, plan.metric, plan.mode, plan.epoch


def replay(entries: Iterable[Entry]) -> SweepRecord:
    """The state that follows from entries."""
    record = SweepRecord()
    for entry in entries:
        record.apply(entry)
    return record
