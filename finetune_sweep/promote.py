"""The last stage: the winner becomes a checkpoint that anyone can load, if it gives its metrics again.

The pretrained model and the winner's changed tensors are put together in one fresh process, and evaluated in
another that loads the folder as its user will. Then the test split is read, once; the card is written; the
folder takes the place of `best/`. What fails before that changes nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from finetune_sweep import card, finalists, resolved, sealed
from finetune_sweep.assembly import Found, assemble, evaluate_folder, with_robust_metric
from finetune_sweep.card import Evidence, FinalTest
from finetune_sweep.durable import check_folder, folder_aside, recover_folder, remove_leftovers
from finetune_sweep.errors import StorageError, UserError, nearest
from finetune_sweep.events import Promoted
from finetune_sweep.journal import Journal
from finetune_sweep.layout import VALIDATION_PREDICTIONS, Layout
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.resolved import Champion
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import changeable_columns
from finetune_sweep.train.robustness import Robustness
from finetune_sweep.trial import Trial
from finetune_sweep.tune.loaded import planned_data
from finetune_sweep.verification import verify

if TYPE_CHECKING:
    from finetune_sweep.train.data import Prepared

P = ParamSpec("P")
R = TypeVar("R")


class Fresh(Protocol):
    """Runs a function of a module in a process of its own, and raises what the function raises."""

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what the function returns."""


@dataclass(frozen=True)
class Options:
    """What the user may ask of a promotion.

    Args:
        key: The trial to promote; None for the best.
        again: Whether the test split is read although it was read for an earlier champion.
        dry_run: Whether to stop after the verification, and keep nothing.
        command: What the user typed, for the card.
        keep: Whether a trial that the user preferred stays, as long as the rule would promote the same as then.
    """

    key: str | None = None
    again: bool = False
    dry_run: bool = False
    command: str = "finetune-sweep run"
    keep: bool = False


def promote(
    plan: Plan, journal: Journal, layout: Layout, fresh: Fresh, options: Options | None = None
) -> Promoted:
    """Puts the winner into `best/`: verified, tested, with its card. The registry is told by `register`.

    Returns at once if it lies there already and nothing that its card says has changed.

    Args:
        plan: The sweep.
        journal: Of the sweep, held by this process.
        layout: Of the sweep.
        fresh: Runs the work in processes that share no state with this one.
        options: What the user asked for.

    Returns:
        What was promoted, as journalled; of a dry run, as it would be, without the test metrics.

    Raises:
        UserError: There is no such finished trial, or the data are no longer those of the plan.
        StorageError: The winner's checkpoint is missing or damaged, or the disk refuses.
        VerificationError: The checkpoint does not give the recorded metrics again.
    """
    options = options or Options()
    winner = choose(plan, journal.record, options)
    prepared = planned_data(plan)
    promotion = _Promotion(plan, journal, layout, fresh, options, winner)
    if options.dry_run:
        with tempfile.TemporaryDirectory(".tmp", ".best.", layout.root) as folder:
            promotion.verified(Path(folder))
        return Promoted(winner.key, epoch_of(winner), winner.metrics, {}, plan.sweep.registered_model, "")
    recover_folder(layout.best)
    standing = _standing(plan, journal.record, layout, winner, prepared, options)
    if standing is None:
        return promotion.carry_out(prepared)
    if options.key is not None and standing.instead_of != promotion.instead_of:
        standing = replace(standing, instead_of=promotion.instead_of)
        journal.append(standing)
    return standing


def pending(plan: Plan, journal: Journal, layout: Layout, options: Options) -> TrialRecord | None:
    """The trial whose checkpoint `promote` would need; None if what it would do is done.

    Raises:
        UserError: There is no such finished trial, or the data are no longer those of the plan.
    """
    winner = choose(plan, journal.record, options)
    standing = _standing(plan, journal.record, layout, winner, planned_data(plan), options)
    return winner if options.dry_run or standing is None else None


def _standing(
    plan: Plan, record: SweepRecord, layout: Layout, winner: TrialRecord, prepared: Prepared, options: Options
) -> Promoted | None:
    """The promotion as journalled, if `best/` holds the winner and its card would say the same."""
    promoted = record.promoted
    if promoted is None or (promoted.key, promoted.epoch) != (winner.key, epoch_of(winner)):
        return None
    try:
        check_folder(layout.best)
        results = json.loads((layout.best / card.RESULTS).read_bytes())
    except (StorageError, OSError, ValueError):
        return None
    expected = (
        winner.key,
        plan.sweep.metric.name,
        len(card.finished(plan, record)),
        dict(prepared.fingerprints),
        card.announced(record, winner.key),
        list(_inputs(plan, prepared)),
    )
    said = ("key", "metric", "finished_trials", "fingerprints", "announced", "inputs")
    if tuple(results.get(name) for name in said) != expected:
        return None
    if _asks_for_robustness(plan) and results.get("robustness") is None:
        return None
    unread = "test" in prepared.fingerprints and results["test"] is None
    return None if unread and options.again else promoted


def _inputs(plan: Plan, prepared: Prepared) -> tuple[str, ...]:
    """The columns of the rows that the model is given."""
    there = prepared.splits["validation"].column_names
    columns = TASKS[plan.sweep.task].columns
    return tuple(column.name for column in columns if column.name in there and not column.target)


def _asks_for_robustness(plan: Plan) -> bool:
    """Not where no text may be changed: every copy would be a clean row."""
    return plan.sweep.selection.robustness and bool(changeable_columns(TASKS[plan.sweep.task]))


def epoch_of(winner: TrialRecord) -> int:
    """The epoch after which a trial's weights are the ones that count."""
    return winner.best_epoch if winner.best_epoch is not None else 0


def choose(plan: Plan, record: SweepRecord, options: Options) -> TrialRecord:
    """The trial that is to be promoted.

    Raises:
        UserError: No trial is finished, or not the one that the user names.
    """
    winner = find_winner(plan, record, options.key)
    promoted = record.promoted
    if options.keep and promoted is not None and promoted.instead_of == winner.key:
        return find_winner(plan, record, promoted.key)
    return winner


def find_winner(plan: Plan, record: SweepRecord, key: str | None = None) -> TrialRecord:
    """The run that the finalists' verdict names, else the best trial; or the trial that the user prefers.

    Raises:
        UserError: No trial is finished, or this one is not.
    """
    ranking = card.finished(plan, record)
    if not ranking:
        raise UserError(f"no trial of the sweep {plan.sweep.name!r} is finished, so none can be promoted")
    by_key = {trial.key: trial for trial in (*ranking, *record.all_current()) if trial.score is not None}
    if key is None:
        return by_key[record.decided.winner] if record.decided is not None else ranking[0]
    if key not in by_key:
        state = f" (it is {record.trials[key].state})" if key in record.trials else nearest(key, by_key)
        best = ", ".join(f"{trial.key} ({trial.planned.label}: {trial.score:g})" for trial in ranking[:3])
        raise UserError(
            f"--trial must be a finished trial of the sweep, got {key!r}{state}; the best are {best}"
        )
    return by_key[key]


@dataclass(frozen=True)
class _Promotion:
    """One promotion while it is carried out."""

    plan: Plan
    journal: Journal
    layout: Layout
    fresh: Fresh
    options: Options
    winner: TrialRecord

    @property
    def trial(self) -> Trial:
        trials = (*self.plan.trials, *finalists.final_runs(self.plan, self.journal.record))
        return next(trial for trial in trials if trial.key == self.winner.key)

    @property
    def instead_of(self) -> str:
        """The trial that the rule would have promoted; empty if it is this one."""
        by_rule = find_winner(self.plan, self.journal.record).key
        return "" if by_rule == self.winner.key else by_rule

    def carry_out(self, prepared: Prepared) -> Promoted:
        remove_leftovers(self.layout.root)
        with folder_aside(self.layout.best) as aside:
            found = self.verified(aside)
            self._keep_predictions(found)
            test = self._final_test(aside, prepared.fingerprints.get("test", ""))
            measured = self._robustness(aside, found)
            card.write(self._evidence(prepared, found, test, measured), aside)
            resolved.write_beside(aside, self.layout, self._champion(prepared))
        model = self.plan.sweep.registered_model
        promoted = Promoted(
            self.winner.key,
            epoch_of(self.winner),
            self.winner.metrics,
            test.metrics,
            model,
            "",
            self.instead_of,
        )
        self.journal.append(promoted)
        return promoted

    def verified(self, folder: Path) -> Found:
        """Fills a folder with the complete model, and makes sure that it gives the recorded metrics."""
        self.fresh(assemble, folder, self._context, self.trial, self.checked_checkpoint())
        found = self._evaluate(folder, "validation")
        verify(self.winner, found)
        return found

    def checked_checkpoint(self) -> Path:
        """The checkpoint of the trial.

        Raises:
            StorageError: If it is gone or damaged.
        """
        if self.winner.checkpoint is None:
            raise StorageError(
                f"trial {self.winner.key} has no checkpoint any more; `run` trains it again for one"
            )
        checkpoint = self.layout.within(self.winner.checkpoint)
        check_folder(checkpoint)
        return checkpoint

    def _keep_predictions(self, found: Found) -> None:
        """Stores what the model said of the validation rows: a later champion is compared with it, row by row."""
        folder = self.layout.predictions(self.winner.key, epoch_of(self.winner))
        if found.predictions is not None and not folder.exists():
            with folder_aside(folder) as aside:
                found.predictions.save(aside / VALIDATION_PREDICTIONS)

    @property
    def _context(self) -> Plan:
        """What another process needs of the plan."""
        return replace(self.plan, trials=())

    def _evaluate(self, folder: Path, split: str, plan: Plan | None = None) -> Found:
        threads = (
            self.winner.worker.threads if self.winner.worker else self.plan.sweep.resources_per_trial.threads
        )
        return self.fresh(evaluate_folder, folder, plan or self._context, self.trial, split, threads)

    def _final_test(self, folder: Path, fingerprint: str) -> FinalTest:
        """Reads the test split for the champion and, if it was, for the baseline."""
        asked = sealed.Asked(self.winner.key, epoch_of(self.winner), fingerprint)
        test = sealed.read_test(
            self.journal, asked, lambda: self._evaluate(folder, "test").metrics, again=self.options.again
        )
        baseline = self._baseline()
        if not test.metrics or baseline is None:
            return test
        asked = sealed.Asked(baseline.key, epoch_of(baseline), fingerprint)
        metrics = sealed.read_baseline(self.journal, asked, lambda: self._tested(baseline).metrics)
        return replace(test, baseline=metrics)

    def _baseline(self) -> TrialRecord | None:
        """The baseline's run to be compared with; None if it is the champion, or its checkpoint is not there."""
        record = self.journal.record
        run = record.trials.get(record.decided.baseline) if record.decided is not None else None
        return None if run is None or run.key == self.winner.key or run.checkpoint is None else run

    def _tested(self, run: TrialRecord) -> Found:
        """A run's complete model on the test split; nothing of it is kept."""
        other = replace(self, winner=run)
        with tempfile.TemporaryDirectory(".tmp", ".best.", self.layout.root) as folder:
            self.fresh(assemble, Path(folder), self._context, other.trial, other.checked_checkpoint())
            return other._evaluate(Path(folder), "test")  # noqa: SLF001 - of its own class

    def _champion(self, prepared: Prepared) -> Champion:
        """What the lock beside the model says of it."""
        record, winner = self.journal.record, self.winner
        scores = record.decided.scores if record.decided is not None else {}
        own = next(
            (
                scores[name]
                for name, runs in record.runs().items()
                if name in scores and winner.key in {run.key for run in runs}
            ),
            {},
        )
        return Champion(
            self.trial,
            epoch_of(winner),
            winner.metrics,
            winner.worker,
            prepared.fingerprints,
            own.get("mean"),
            own.get("spread"),
        )

    def _robustness(self, folder: Path, found: Found) -> Robustness | None:
        """The model on perturbed validation rows, if the sweep asks for it, or its metric is of these."""
        if found.robustness is not None or not _asks_for_robustness(self.plan):
            return found.robustness
        plan = with_robust_metric(self._context)
        return self._evaluate(folder, "validation", plan).robustness

    def _evidence(
        self, prepared: Prepared, found: Found, test: FinalTest, measured: Robustness | None
    ) -> Evidence:
        return Evidence(
            plan=self.plan,
            record=self.journal.record,
            trial=self.trial,
            fingerprints=prepared.fingerprints,
            validation=self.winner.metrics,
            test=test,
            hardware=found.hardware,
            command=self.options.command,
            inputs=_inputs(self.plan, prepared),
            robustness=measured,
        )
