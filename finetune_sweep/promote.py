"""The last stage: the winner becomes a checkpoint that anyone can load, if it gives its metrics again.

The pretrained model and the winner's changed tensors are put together in one fresh process, and evaluated in
another that loads the folder as its user will. Then the test split is read, once; the card is written; the
folder takes the place of `best/`. What fails before that changes nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

from finetune_sweep import card
from finetune_sweep.assembly import Found, assemble, evaluate_folder
from finetune_sweep.card import Evidence, FinalTest
from finetune_sweep.errors import StorageError, UserError, VerificationError, nearest
from finetune_sweep.events import Promoted, TestIntended, TestRead
from finetune_sweep.journal import Journal
from finetune_sweep.layout import (
    Layout,
    check_folder,
    explained,
    folder_aside,
    recover_folder,
    remove_leftovers,
)
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.trial import Trial
from finetune_sweep.tune.loaded import planned_data

if TYPE_CHECKING:
    from finetune_sweep.train.data import Prepared

P = ParamSpec("P")
R = TypeVar("R")

CONTINUOUS: Final = frozenset({"loss", "auroc"})
"""Metrics that move with the last digits of a logit; the others count predictions."""
TOLERANCE: Final = 1e-3
"""Relative, for continuous metrics of a checkpoint that was trained on other hardware."""


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
    """

    key: str | None = None
    again: bool = False
    dry_run: bool = False
    command: str = "finetune-sweep run"


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
    winner = find_winner(plan, journal.record, options.key)
    prepared = planned_data(plan)
    promotion = _Promotion(plan, journal, layout, fresh, options, winner)
    if options.dry_run:
        with tempfile.TemporaryDirectory(".tmp", ".best.", layout.root) as folder:
            promotion.verified(Path(folder))
        return Promoted(winner.key, epoch_of(winner), winner.metrics, {}, plan.sweep.registered_model, "")
    recover_folder(layout.best)
    standing = _standing(plan, journal.record, layout, winner, prepared, options)
    return standing or promotion.carry_out(prepared)


def pending(plan: Plan, journal: Journal, layout: Layout, options: Options) -> TrialRecord | None:
    """The trial whose checkpoint `promote` would need; None if what it would do is done.

    Raises:
        UserError: There is no such finished trial, or the data are no longer those of the plan.
    """
    winner = find_winner(plan, journal.record, options.key)
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
    )
    if tuple(results[name] for name in ("key", "metric", "finished_trials", "fingerprints")) != expected:
        return None
    unread = "test" in prepared.fingerprints and results["test"] is None
    return None if unread and options.again else promoted


def epoch_of(winner: TrialRecord) -> int:
    """The epoch after which a trial's weights are the ones that count."""
    return winner.best_epoch if winner.best_epoch is not None else 0


def find_winner(plan: Plan, record: SweepRecord, key: str | None = None) -> TrialRecord:
    """The best trial of the sweep, or the one that the user prefers.

    Raises:
        UserError: No trial is finished, or this one is not.
    """
    ranking = card.finished(plan, record)
    if not ranking:
        raise UserError(f"no trial of the sweep {plan.sweep.name!r} is finished, so none can be promoted")
    if key is None:
        return ranking[0]
    by_key = {trial.key: trial for trial in ranking}
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
        return next(trial for trial in self.plan.trials if trial.key == self.winner.key)

    def carry_out(self, prepared: Prepared) -> Promoted:
        remove_leftovers(self.layout.root)
        with folder_aside(self.layout.best) as aside:
            found = self.verified(aside)
            test = self._final_test(aside, prepared.fingerprints.get("test", ""))
            card.write(self._evidence(prepared, found, test), aside)
            with explained(aside):
                shutil.copyfile(self.layout.resolved, aside / self.layout.resolved.name)
        model = self.plan.sweep.registered_model
        promoted = Promoted(
            self.winner.key, epoch_of(self.winner), self.winner.metrics, test.metrics, model, ""
        )
        self.journal.append(promoted)
        return promoted

    def verified(self, folder: Path) -> Found:
        """Fills a folder with the complete model, and makes sure that it gives the recorded metrics."""
        if self.winner.checkpoint is None:
            raise StorageError(
                f"trial {self.winner.key} has no checkpoint any more; `run` trains it again for one"
            )
        checkpoint = self.layout.root / self.winner.checkpoint
        check_folder(checkpoint)
        self.fresh(assemble, folder, self._context, self.trial, checkpoint)
        found = self._evaluate(folder, "validation")
        verify(self.winner, found)
        return found

    @property
    def _context(self) -> Plan:
        """What another process needs of the plan."""
        return replace(self.plan, trials=())

    def _evaluate(self, folder: Path, split: str) -> Found:
        threads = (
            self.winner.worker.threads if self.winner.worker else self.plan.sweep.resources_per_trial.threads
        )
        return self.fresh(evaluate_folder, folder, self._context, self.trial, split, threads)

    def _final_test(self, folder: Path, fingerprint: str) -> FinalTest:
        """Reads the test split, unless it was read before; the intent is journalled first."""
        if not fingerprint:
            note = "There is no test split: nothing here was measured on rows that no choice has seen."
            return FinalTest("", {}, note)
        key, epoch = self.winner.key, epoch_of(self.winner)
        intended = [entry.event for entry in self.journal.entries if isinstance(entry.event, TestIntended)]
        of_others = {(event.key, event.epoch) for event in intended if event.fingerprint == fingerprint}
        earlier = [f"{other} at epoch {at}" for other, at in sorted(of_others - {(key, epoch)})]
        note = "Read once for this model, after it had been chosen."
        if earlier:
            note += f" It was also read for {', '.join(earlier)}, so it is no longer untouched."
        for read in self.journal.record.test_reads:
            if (read.key, read.epoch, read.fingerprint) == (key, epoch, fingerprint):
                return FinalTest(fingerprint, read.metrics, note)
        if earlier and not self.options.again:
            note = (
                f"Not read for this model: it was read for an earlier champion ({', '.join(earlier)}), and"
                " read for every new one it becomes a second validation split. `--again` reads it anyway."
            )
            return FinalTest(fingerprint, {}, note)
        self.journal.append(TestIntended(key, epoch, fingerprint))
        metrics = self._evaluate(folder, "test").metrics
        self.journal.append(TestRead(key, epoch, fingerprint, metrics))
        return FinalTest(fingerprint, metrics, note)

    def _evidence(self, prepared: Prepared, found: Found, test: FinalTest) -> Evidence:
        return Evidence(
            plan=self.plan,
            record=self.journal.record,
            trial=self.trial,
            fingerprints=prepared.fingerprints,
            validation=self.winner.metrics,
            test=test,
            hardware=found.hardware,
            command=self.options.command,
        )


def verify(recorded: TrialRecord, found: Found) -> None:
    """Compares metrics with the recorded ones: to the last digit on the host and kind of device that trained.

    Elsewhere sums may be taken in another order: there, `CONTINUOUS` metrics may differ by `TOLERANCE`.

    Raises:
        VerificationError: One of them differs; names all of these.
    """
    worker = recorded.worker
    is_same = worker is not None and (worker.host, worker.device) == (found.host, found.device)
    differing = []
    for name, expected in recorded.metrics.items():
        value = found.metrics.get(name, float("nan"))
        allowed = abs(expected) * TOLERANCE if name in CONTINUOUS and not is_same else 0.0
        if not abs(value - expected) <= allowed:
            differing.append(f"{name} was recorded as {expected!r}, found {value!r}")
    if differing:
        raise VerificationError(
            f"trial {recorded.key} is not promoted: its checkpoint, loaded afresh, gives other validation"
            f" metrics: {'; '.join(differing)}. Other versions of libraries can be the cause."
        )
