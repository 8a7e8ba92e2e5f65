"""The commands `run` and `promote`, step by step: what is trained, who is chosen, what becomes of the winner.

What promotes is imported when it comes to that: so Ray's processes begin to start before torch is loaded here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from finetune_sweep import disk, display, finalists, siblings
from finetune_sweep.beginnings import beginnings
from finetune_sweep.errors import SweepError, TrackingError
from finetune_sweep.events import TrialEnded
from finetune_sweep.lock import SweepLock
from finetune_sweep.plan import Plan, make_plan, remaining, unasked
from finetune_sweep.session import Session, drive, layout_of
from finetune_sweep.spec import Sweep

if TYPE_CHECKING:
    from finetune_sweep.promote import Fresh, Options
    from finetune_sweep.tune.engine import Engine

P = ParamSpec("P")
R = TypeVar("R")

_PROCESSES_OF_A_PROMOTION: Final = 2


def run(sweep: Sweep, address: str | None = None, command: str = "") -> int:
    """Trains what is missing of a sweep and promotes the best trial.

    Args:
        sweep: The checked file.
        address: Of a running Ray; None starts one on this machine.
        command: What the user typed, for the model card.

    Returns:
        The exit code.

    Raises:
        SweepError: If it cannot go on; everything that was finished is journalled.
    """

    def steps(session: Session) -> int:
        _train(session)
        _choose(session)
        from finetune_sweep.promote import Options

        try:
            _promote(session, Options(command=command, keep=True))
        except TrackingError as error:
            if not _failed(session):
                raise
            session.display.note(str(error))
        return 1 if _failed(session) else 0

    return drive(sweep, address, steps)


def promote_only(sweep: Sweep, address: str | None, options: Options) -> int:
    """Promotes from what the journal has, and trains nothing but a checkpoint that is gone.

    Returns:
        The exit code.

    Raises:
        SweepError: If nothing can be promoted; then `best/` and the registry were not changed.
    """

    def steps(session: Session) -> int:
        if session.journal.record.decided is not None:
            _conclude_again(session, options)
        _promote(session, options)
        return 0

    return drive(sweep, address, steps)


def rollback(sweep: Sweep) -> int:
    """Moves the alias of the registered model back to the champion before.

    Returns:
        The exit code.

    Raises:
        SweepError: If there is no champion to go back to, or MLflow is away.
    """
    from finetune_sweep import registry

    layout = layout_of(sweep)
    with SweepLock(layout):
        registered = registry.rollback(make_plan(sweep), layout)
    display.say(f"{registered.model} version {registered.version} is champion again (trial {registered.key})")
    return 0


# ------------------------------------------------------------------------------------------------- the steps


def _train(session: Session) -> None:
    plan, engine, record = session.plan, session.engine, session.journal.record
    _take_over(session, plan)
    _take_beginnings(session)
    units, asked_for = remaining(plan, record, {}), unasked(plan.sweep, record)
    missing = sum(len(unit.trials) for unit in units) + asked_for
    if not missing:
        session.display.note(f"all {len(plan.trials)} trials are done, nothing is left to train")
        return
    if warning := disk.check_before(plan, session.layout.root, engine.slots):
        session.display.note(warning)
    total = len(plan.trials) + asked_for
    session.display.note(f"{missing} of {total} trials to train, {engine.slots} at once on {plan.device}")
    driver = session.driver()
    driver.train()
    session.plan = driver.plan
    left = sum(len(unit.trials) for unit in remaining(session.plan, record, {})) + driver.unasked()
    if driver.is_late() and left:
        session.display.note(
            f"{left} trials were not started: max_hours ({plan.sweep.search.max_hours:g} h) are over"
        )


def _take_over(session: Session, plan: Plan) -> None:
    """Takes the results of trials that another sweep of the storage has trained."""
    record = session.journal.record
    missing = [trial.key for unit in remaining(plan, record, {}) for trial in unit.trials]
    events = siblings.taken_over(missing, record, session.layout)
    origins = {event.key: event.reused_from for event in events if isinstance(event, TrialEnded)}
    if origins:
        session.journal.append(*events)
        names = ", ".join(sorted(set(origins.values())))
        session.display.note(f"{len(origins)} trials were trained before, by the sweep {names}")


def _take_beginnings(session: Session) -> None:
    """Takes the results of trials that a longer one of this sweep has gone through."""
    events = beginnings(session.plan, session.plan.trials, session.journal.record)
    session.journal.append(*events)
    if taken := sum(isinstance(event, TrialEnded) for event in events):
        session.display.note(
            f"{taken} trials are the beginning of a longer one that was trained: nothing to train"
        )


def _choose(session: Session) -> None:
    """Runs the best configurations and the baseline on fresh seeds, and notes who won; nothing if that is done."""
    plan, journal, layout = session.plan, session.journal, session.layout
    event, planned = finalists.plan_finalists(plan, journal.record)
    if event != (journal.record.finalists or finalists.NONE):
        journal.append(*planned, event)
    if not event.candidates:
        return
    final = dataclasses.replace(plan, trials=finalists.final_runs(plan, journal.record))
    _take_over(session, final)
    driver = session.driver(final, finals=True)
    missing = sum(len(unit.trials) for unit in remaining(final, journal.record, {}))
    if missing:
        disk.check_before(final, layout.root, session.engine.slots)
        session.display.note(
            f"{missing} runs on fresh seeds: {len(event.candidates) - 1} finalists and the baseline"
        )
        driver.train()
    for key in finalists.without_predictions(journal.record, layout):
        copied = siblings.copied(journal.record.trials[key], layout)
        journal.append(*([copied] if copied is not None else []))
    for key in finalists.without_predictions(journal.record, layout):
        driver.train_again(key)
    _conclude(session)
    driver.retain()


def _conclude_again(session: Session, options: Options) -> None:
    """Notes who has won where `selection.prefer` was edited; a dry run only says it."""
    record, layout = session.journal.record, session.layout
    missing = finalists.without_predictions(record, layout)
    if missing:
        session.display.note(
            f"what {', '.join(missing)} said of the validation rows is gone, so the verdict stays as it was; `run`"
            " makes it again"
        )
    elif not options.dry_run:
        _conclude(session)
    elif (decided := finalists.conclude(session.plan, record, layout)) != record.decided and decided:
        session.display.note(f"without --dry-run the verdict is given anew: {decided.sentence}")


def _conclude(session: Session) -> None:
    """Notes who won, unless it is known."""
    with session.signals.raised():
        decided = finalists.conclude(session.plan, session.journal.record, session.layout)
    if decided is not None and decided != session.journal.record.decided:
        session.journal.append(decided)


def _promote(session: Session, options: Options) -> None:
    """Puts the winner into `best/` and into the registry, unless it is there."""
    from finetune_sweep import promote, registry

    session.on_change()
    session.driver().remove_orphans()
    if not session.journal.record.best():
        raise SweepError(_nothing_finished(session))
    winner = promote.pending(session.plan, session.journal, session.layout, options)
    if winner is not None:
        session.engine.warm_up(_PROCESSES_OF_A_PROMOTION)
        session.display.note(f"promoting {winner.planned.label}")
        final = finalists.final_runs(session.plan, session.journal.record)
        plan = dataclasses.replace(session.plan, trials=(*session.plan.trials, *final))
        session.driver(plan).ensure_checkpoint(winner.key)
    with session.signals.raised():
        promote.promote(session.plan, session.journal, session.layout, _processes(session.engine), options)
        if options.dry_run:
            session.display.note(
                "the winner gives its recorded metrics again; nothing was changed (--dry-run)"
            )
            return
        session.deliver()
        session.on_change()
        registry.register(session.plan, session.journal, session.layout)


def _processes(engine: Engine) -> Fresh:
    """A fresh process for each step of a promotion; both evaluations may share one that did nothing else."""
    from finetune_sweep.assembly import evaluate_folder

    def fresh(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        run_in = engine.fresh_once if function is evaluate_folder else engine.fresh
        return run_in(function, *args, **kwargs)

    return fresh


def _nothing_finished(session: Session) -> str:
    ends = [trial.end for trial in session.journal.record.current() if trial.end is not None]
    reasons = dict.fromkeys(end.failure.message for end in ends if end.failure is not None)
    return f"no trial finished, so none can be promoted: {'; '.join(list(reasons)[:3]) or 'none was trained'}"


def _failed(session: Session) -> bool:
    return any(trial.state == "failed" for trial in session.journal.record.all_current())
