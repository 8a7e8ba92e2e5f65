"""The commands `run` and `promote`: one driver's session over a sweep, step by step."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from finetune_sweep import disk, display, finalists, promote, registry, report, resolved, siblings
from finetune_sweep.assembly import evaluate_folder
from finetune_sweep.durable import recover_folder, remove_leftovers
from finetune_sweep.errors import Interrupted, SweepError, TrackingError, UserError
from finetune_sweep.events import SessionEnded, TrialEnded
from finetune_sweep.journal import Journal, read
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.lock import SweepLock
from finetune_sweep.mlflow_uri import printable_uri, tracking_uri
from finetune_sweep.plan import Plan, make_plan, remaining
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.render import render_result, render_table
from finetune_sweep.spec import Sweep
from finetune_sweep.tracking import Mirror

if TYPE_CHECKING:
    from finetune_sweep.tune.driver import Driver
    from finetune_sweep.tune.engine import Engine

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED: Final = 130
"""The exit code of a session that a signal ended."""
_MIRROR_TIMEOUT_S: Final = 60.0
_MIRROR_TIMEOUT_INTERRUPTED_S: Final = 5.0
_MIRROR_SLICE_S: Final = 2.5


@dataclass
class Session:
    """A driver's hold of a sweep: what the steps of a run share."""

    plan: Plan
    layout: Layout
    journal: Journal
    engine: Engine
    mirror: Mirror
    display: display.Display
    signals: Signals

    def on_change(self) -> None:
        """Journals what MLflow answered, and shows what changed."""
        self.journal.append(*self.mirror.collect())
        self.display.update(self.journal.record)

    def driver(self, plan: Plan | None = None, *, finals: bool = False) -> Driver:
        """What trains the plan as it is now, or another one: that of the finalists' runs."""
        from finetune_sweep.tune.driver import Driver

        stop = self.signals.is_stopping
        return Driver(
            plan or self.plan, self.layout, self.journal, self.engine, self.on_change, stop, finals=finals
        )


@dataclass
class Signals:
    """SIGINT, SIGTERM and SIGHUP since the session began; a second one ends the process at once.

    Training looks whether one came, and stores where it is. Everything else stands a kill at any moment, so there the
    first signal raises.
    """

    _received: list[int] = field(default_factory=list)
    _is_raising: bool = False

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The handler.

        Raises:
            Interrupted: Inside of `raised`.
        """
        if self._received:
            os._exit(INTERRUPTED)
        self._received.append(number)
        if self._is_raising:
            raise Interrupted

    def is_stopping(self) -> bool:
        """Whether a signal came."""
        return bool(self._received)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """A block that a signal ends at once, also one that came before it.

        Raises:
            Interrupted: If a signal came.
        """
        if self._received:
            raise Interrupted
        self._is_raising = True
        try:
            yield
        finally:
            self._is_raising = False


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
        _promote(session, promote.Options(command=command, keep=True))
        return 1 if _failed(session) else 0

    return _drive(sweep, address, steps)


def promote_only(sweep: Sweep, address: str | None, options: promote.Options) -> int:
    """Promotes from what the journal has, and trains nothing but a checkpoint that is gone.

    Returns:
        The exit code.

    Raises:
        SweepError: If nothing can be promoted; then nothing was changed.
    """

    def steps(session: Session) -> int:
        _promote(session, options)
        return 0

    return _drive(sweep, address, steps)


def rollback(sweep: Sweep) -> int:
    """Moves the alias of the registered model back by one version.

    Returns:
        The exit code.

    Raises:
        SweepError: If there is no version to go back to, or MLflow is away.
    """
    layout = layout_of(sweep)
    with SweepLock(layout):
        registered = registry.rollback(make_plan(sweep), layout)
    display.say(f"{registered.model} version {registered.version} is champion again (trial {registered.key})")
    return 0


def layout_of(sweep: Sweep) -> Layout:
    """Where the files of a sweep lie."""
    return Layout(parse_storage(sweep.storage or "runs"), sweep.name)


# ------------------------------------------------------------------------------------------------ the session


def _drive(sweep: Sweep, address: str | None, steps: Callable[[Session], int]) -> int:
    """Holds the sweep from the lock to the last line in MLflow."""
    from finetune_sweep.tune.engine import Engine

    layout = layout_of(sweep)
    with _signals() as signals, SweepLock(layout) as lock, Engine(sweep, address) as engine:
        try:
            with signals.raised():
                record = replay(read(layout))
                plan = make_plan(sweep, record, engine.hardware() if address else None)
        except Interrupted:
            return _interrupted()
        _refuse_another(plan, record, layout)
        journal = Journal(layout, lock.owner)
        with contextlib.closing(journal):
            mirror = Mirror(sweep, layout, journal.entries)
            session = Session(
                plan,
                layout,
                journal,
                engine,
                mirror,
                display.open_display(sweep.name, nodes=address is not None),
                signals,
            )
            for line in journal.repaired:
                session.display.note(line)
            return _in_session(session, steps)


def _interrupted() -> int:
    display.say("interrupted; the same command goes on from here")
    return INTERRUPTED


def _in_session(session: Session, steps: Callable[[Session], int]) -> int:
    """Opens the session and takes its steps; whatever ends them, the journal and MLflow learn of it."""
    code, away = 1, ""
    try:
        _open(session)
        code = steps(session)
    except Interrupted:
        code = INTERRUPTED
    except TrackingError as error:
        code, away = error.exit_code, str(error)
    except SweepError as error:
        code = error.exit_code
        raise
    finally:
        session.journal.append(SessionEnded(code))
        undelivered = _deliver(session)
        session.journal.append(*session.mirror.collect())
        session.display.close()
    if code == INTERRUPTED:
        return _interrupted()
    _show_result(session)
    if undelivered:
        away = f"{session.mirror.reason}; missing there: {', '.join(undelivered[:3])}"
    if away and code in {0, TrackingError.exit_code}:
        raise TrackingError(f"MLflow is incomplete, the next run tries again: {away}")
    return code


def _deliver(session: Session) -> tuple[str, ...]:
    """Waits until MLflow has everything, not for ever, and not for long once a signal asked to stop.

    Returns:
        The names of the runs that are not complete there.
    """
    waited = 0.0
    while session.mirror.flush(_MIRROR_SLICE_S):
        waited += _MIRROR_SLICE_S
        limit = _MIRROR_TIMEOUT_INTERRUPTED_S if session.signals.is_stopping() else _MIRROR_TIMEOUT_S
        if waited >= limit:
            break
    return session.mirror.close(0.0)


def _open(session: Session) -> None:
    recover_folder(session.layout.best)
    for folder in (session.layout.root, *session.layout.root.glob("predictions/*")):
        remove_leftovers(folder)
    session.journal.append(*session.plan.events())
    resolved.write(session.plan, session.layout)
    session.mirror.start()


def _refuse_another(plan: Plan, record: SweepRecord, layout: Layout) -> None:
    """Two sweeps of one name cannot share a folder: their trials would be mixed.

    Raises:
        UserError: If the journal is of another task or other data.
    """
    known = record.plan
    if known is None:
        return
    for what, before, now in (
        ("task", known.task, plan.sweep.task),
        ("data", known.fingerprint, plan.fingerprint),
    ):
        if before != now:
            raise UserError(
                f"{layout.root} holds a sweep of the name {plan.sweep.name!r} with other {what}:"
                f" {before} there, {now} here; give this one another name or --storage"
            )


@contextlib.contextmanager
def _signals() -> Iterator[Signals]:
    """Collects the signals that ask to stop."""
    signals = Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signals.note) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# -------------------------------------------------------------------------------------------------- the steps


def _train(session: Session) -> None:
    plan, engine, driver = session.plan, session.engine, session.driver()
    _take_over(session, plan)
    missing = sum(len(unit.trials) for unit in remaining(plan, session.journal.record, {})) + driver.unasked()
    if not missing:
        session.display.note(f"all {len(plan.trials)} trials are done, nothing is left to train")
        return
    if warning := disk.check_before(plan, session.layout.root, engine.slots):
        session.display.note(warning)
    total = len(plan.trials) + driver.unasked()
    session.display.note(f"{missing} of {total} trials to train, {engine.slots} at once on {plan.device}")
    driver.train()
    session.plan = driver.plan


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
        session.display.note(
            f"{missing} runs on fresh seeds: {len(event.candidates) - 1} finalists and the baseline"
        )
        driver.train()
    for key in finalists.without_predictions(journal.record, layout):
        copied = siblings.copied(journal.record.trials[key], layout)
        journal.append(*([copied] if copied is not None else []))
    for key in finalists.without_predictions(journal.record, layout):
        driver.train_again(key)
    with session.signals.raised():
        decided = finalists.conclude(plan, journal.record, layout)
    if decided is not None and decided != journal.record.decided:
        journal.append(decided)
    driver.retain()


def _promote(session: Session, options: promote.Options) -> None:
    """Puts the winner into `best/` and into the registry, unless it is there."""
    session.on_change()
    session.driver().remove_orphans()
    if not session.journal.record.ranking():
        raise SweepError(_nothing_finished(session))
    winner = promote.pending(session.plan, session.journal, session.layout, options)
    if winner is not None:
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
        session.mirror.flush(_MIRROR_TIMEOUT_S)
        session.on_change()
        registry.register(session.plan, session.journal, session.layout)


def _processes(engine: Engine) -> promote.Fresh:
    """A fresh process for each step of a promotion; both evaluations may share one that did nothing else."""

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


def _show_result(session: Session) -> None:
    layout, sweep = session.layout, session.plan.sweep
    view = report.status(session.journal.record, sweep.name, locked=False)
    display.show(render_table(view))
    places: dict[str, Path | str] = {
        "model": layout.best,
        "journal": layout.journal,
        "MLflow": printable_uri(tracking_uri(sweep.tracking.uri, layout.storage)),
    }
    display.show(render_result(view, places))
