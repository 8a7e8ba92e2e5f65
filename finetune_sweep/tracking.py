"""The mirror of the journal in MLflow: one parent run a sweep, one child run a trial.

The mirror follows the journal in a thread of its own, so that training never waits for a server. It keeps no
state that matters: what a run has to look like follows from the journal alone, timestamps included, and what
is there already is looked up. Mirroring a journal twice, also after a crash in between, adds nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from finetune_sweep.events import Entry, Tracked
from finetune_sweep.layout import Layout
from finetune_sweep.mlflow_store import Store, configure
from finetune_sweep.mlflow_uri import artifact_location, printable_uri, tracking_uri
from finetune_sweep.snapshot import View
from finetune_sweep.spec import Sweep

_POLL_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_REASON_CHARACTERS: Final = 300


class Mirror:
    """Follows a journal in a thread and keeps its runs in MLflow up to date.

    What cannot be delivered is tried again, at growing intervals, until the mirror is closed. Events that
    pile up meanwhile are written together.

    Attributes:
        reason: Why the last delivery failed; empty if none did.
    """

    def __init__(self, sweep: Sweep, layout: Layout, entries: Sequence[Entry]) -> None:
        """Names what is mirrored where; nothing is read or opened yet.

        Args:
            sweep: The sweep; `sweep.tracking.uri` may be relative to the storage.
            layout: Where it lies.
            entries: `Journal.entries`, which may only grow.
        """
        uri = tracking_uri(sweep.tracking.uri, layout.storage)
        self.reason = ""
        self._entries = entries
        self._view = View(sweep, layout)
        self._store = Store(uri, sweep.experiment, artifact_location(uri, layout.storage))
        self._state = threading.Condition()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)
        self._read = 0
        self._pending: dict[str, None] = {}
        self._in_hand: str | None = None
        self._told: dict[str, str] = {}
        self._news: list[Tracked] = []
        self._wait_s = 0.0
        self._is_closing = False

    def start(self) -> None:
        """Begins to follow."""
        configure()
        self._thread.start()

    def collect(self) -> list[Tracked]:
        """Run ids that have become known since the last call, and that the journal does not have yet."""
        with self._state:
            news, self._news = self._news, []
        return news

    def flush(self, timeout_s: float) -> tuple[str, ...]:
        """Waits until everything that has been journalled is in MLflow.

        Returns:
            The names of the runs that are not complete after this time; empty when all is well.
        """
        with self._state:
            self._wait_s = 0.0
            self._wake.set()
            self._state.wait_for(self._is_up_to_date, timeout_s if self._thread.is_alive() else 0.0)
            self._advance()
            late = {*self._pending, self._in_hand}
            keys = [key for key in ("", *self._view.record.trials) if key in late]
            return tuple(self._view.name(key) for key in keys if self._view.snapshot(key) is not None)

    def close(self, timeout_s: float) -> tuple[str, ...]:
        """The same as `flush`, then ends the thread; whatever the server does, a second after the timeout."""
        undelivered = self.flush(timeout_s)
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        return undelivered

    def _is_up_to_date(self) -> bool:
        return self._read == len(self._entries) and not self._pending and self._in_hand is None

    def _follow(self) -> None:
        while not self._is_closing:
            with self._state:
                self._advance()
            self._deliver_pending()
            with self._state:
                self._state.notify_all()
            self._wake.wait(self._wait_s or _POLL_S)
            self._wake.clear()

    def _advance(self) -> None:
        """Reads what the journal has got since; called with the lock held."""
        while self._read < len(self._entries):
            entry = self._entries[self._read]
            self._read += 1
            self._pending |= dict.fromkeys(self._view.apply(entry))

    def _deliver_pending(self) -> None:
        """Delivers one run after the other, until all are or one fails; that one comes last the next time."""
        is_first = True
        while not self._is_closing:
            with self._state:
                key = self._next_key()
            if key is None:
                return
            error = self._delivered(key)
            with self._state:
                self._in_hand = None
                if error is not None:
                    self._pending[key] = None
                    self.reason = error
                    self._wait_s = (
                        min(2 * self._wait_s, _LONGEST_WAIT_S) if is_first and self._wait_s else 1.0
                    )
                    return
                self._wait_s, is_first = 0.0, False
                self._note_run_id(key)

    def _next_key(self) -> str | None:
        """Takes the next run in hand; the parent comes first, since children name it."""
        if not self._pending:
            return None
        key = next(iter(self._pending))
        if self._store.run_id("") is None and self._view.snapshot("") is not None:
            key = ""
        self._pending.pop(key, None)
        self._in_hand = key
        return key

    def _delivered(self, key: str) -> str | None:
        """Delivers a run; returns the reason if that fails."""
        with self._state:
            snapshot, journal_id = self._view.snapshot(key), self._view.journal_id()
        if snapshot is None:
            return None
        try:
            if not self._store.is_open:
                self._store.open(journal_id)
            self._store.deliver(key, snapshot)
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on and the journal has it
            self._store.forget()
            lines = f"{type(error).__name__}: {error}".splitlines()
            return printable_uri(lines[0])[:_REASON_CHARACTERS]
        return None

    def _note_run_id(self, key: str) -> None:
        record = self._view.record
        run_id = self._store.run_id(key)
        known = record.trials[key].mlflow_run_id if key else record.mlflow_run_id
        if run_id is not None and run_id not in {known, self._told.get(key)}:
            self._told[key] = run_id
            self._news.append(Tracked(key, run_id))
