"""One driver's session over a sweep, from the lock to the last line in MLflow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep import display, report, resolved, signals
from finetune_sweep.durable import recover_folder, remove_leftovers
from finetune_sweep.errors import Interrupted, SweepError, TrackingError, UserError
from finetune_sweep.events import SessionEnded
from finetune_sweep.journal import Journal, read
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.lock import SweepLock
from finetune_sweep.mlflow_uri import printable_uri, tracking_uri
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.render import render_result, render_table
from finetune_sweep.signals import INTERRUPTED, Signals
from finetune_sweep.spec import Sweep
from finetune_sweep.tracking import Mirror

if TYPE_CHECKING:
    from finetune_sweep.tune.driver import Driver
    from finetune_sweep.tune.engine import Engine

_MIRROR_TIMEOUT_S: Final = 60.0
"""How long MLflow may take for no run until it counts as away."""
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

    def deliver(self) -> None:
        """Waits until MLflow has everything, as long as runs get there; not for long after a signal to stop."""
        least, waited, interrupted = 0, 0.0, 0.0
        while late := len(self.mirror.flush(_MIRROR_SLICE_S)):
            if not least:
                self.display.note(f"waiting for MLflow to take what it has not got yet, runs: {late}")
            waited = 0.0 if late < least else waited + _MIRROR_SLICE_S
            interrupted += _MIRROR_SLICE_S if self.signals.is_stopping() else 0.0
            least = min(late, least or late)
            if waited >= _MIRROR_TIMEOUT_S or interrupted >= _MIRROR_TIMEOUT_INTERRUPTED_S:
                return

    def driver(self, plan: Plan | None = None, *, finals: bool = False) -> Driver:
        """What trains the plan as it is now, or another one: that of the finalists' runs."""
        self.engine.settle()  # two threads that import at once can wait for each other
        from finetune_sweep.tune.driver import Driver

        stop = self.signals.is_stopping
        return Driver(
            plan or self.plan, self.layout, self.journal, self.engine, self.on_change, stop, finals=finals
        )


def layout_of(sweep: Sweep) -> Layout:
    """Where the files of a sweep lie."""
    return Layout(parse_storage(sweep.storage or "runs"), sweep.name)


def drive(sweep: Sweep, address: str | None, steps: Callable[[Session], int]) -> int:
    """Holds the sweep from the lock to the last line in MLflow."""
    from finetune_sweep.tune.engine import Engine

    layout = layout_of(sweep)
    with signals.collected() as asked, SweepLock(layout) as lock, Engine(sweep, address) as engine:
        try:
            with asked.raised():
                record = replay(read(layout))
            if record.exit_code != 0:  # else there is probably nothing to train
                engine.start()
            with asked.raised():
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
                asked,
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
        session.deliver()
        undelivered = session.mirror.close(0.0)
        session.journal.append(*session.mirror.collect())
        session.display.close()
        if undelivered:
            away = f"{session.mirror.reason}; missing there: {', '.join(undelivered[:3])}"
        incomplete = f"MLflow is incomplete, the next run tries again: {away}"
        if away and code not in {0, TrackingError.exit_code}:
            display.say(incomplete)
    if code == INTERRUPTED:
        return _interrupted()
    _show_result(session)
    if away and code in {0, TrackingError.exit_code}:
        session.journal.append(SessionEnded(TrackingError.exit_code))
        raise TrackingError(incomplete)
    return code


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
