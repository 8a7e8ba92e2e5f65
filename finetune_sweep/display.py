"""The terminal: a live table where there is one, a line for each thing that happened elsewhere.

`open_display` chooses once how a run is shown. Nothing here fails because of the terminal: output that nobody
reads is dropped.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.render import STYLES, format_failure, format_outcome, format_seconds, render_progress
from finetune_sweep.report import SweepReport, TrialReport, status

_WIDTH_OF_FILES: Final = 160
_SPARING: Final = 20  # so many times as long as a look at a record took, nobody looks again
_MANY: Final = 200  # trials; a look at fewer takes no time


class Display(ABC):
    """Shows a run while it goes on. Its methods may be called from any thread, and never fail."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def update(self, record: SweepRecord) -> None:
        """Shows what changed in the record, which the caller does not change meanwhile."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Says something once."""

    @abstractmethod
    def close(self) -> None:
        """Ends the display; what is called afterwards has no effect."""


def open_display(
    sweep: str, slots: int | None = None, stream: TextIO | None = None, *, nodes: bool = False
) -> Display:
    """A live table if the stream is a terminal that can move its cursor, else plain lines.

    Args:
        sweep: The sweep's name.
        slots: Work units that are trained at once, for the time left.
        stream: Where to; standard output by default. With `--json` that is for the JSON: give standard error.
        nodes: Whether the plain lines also say on which node each training began.
    """
    output = _Output(stream if stream is not None else sys.stdout)
    if output.isatty() and os.environ.get("TERM", "") not in {"", "dumb", "unknown"}:
        return LiveDisplay(sweep, slots, output)
    return PlainDisplay(sweep, slots, output, nodes=nodes)


def show(renderable: RenderableType, stream: TextIO | None = None) -> None:
    """Prints something that `render` made; into a file or a pipe up to 160 columns wide."""
    _console(_Output(stream if stream is not None else sys.stdout)).print(renderable)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line."""
    _Output(stream if stream is not None else sys.stdout).line(text)


class PlainDisplay(Display):
    """One line for the end of each trial, and for an evaluation that is better than all before it."""

    def __init__(self, sweep: str, slots: int | None, output: _Output, *, nodes: bool = False) -> None:
        self._news = _News(sweep, slots, nodes=nodes)
        self._output = output
        self._lock = threading.RLock()  # a signal handler may speak while its own thread draws
        self._record: SweepRecord | None = None
        self._next = time.monotonic()

    def update(self, record: SweepRecord) -> None:
        """Prints what is new; of many trials now and then, as each look goes over all of them."""
        with self._lock:
            self._record, begin = record, time.monotonic()
            if begin < self._next:
                return
            self._print(record)
            if len(record.trials) > _MANY:
                now = time.monotonic()
                self._next = now + _SPARING * (now - begin)

    def _print(self, record: SweepRecord) -> None:
        for line in self._news.lines(record):
            self._output.line(line.text)

    def note(self, text: str) -> None:
        """Prints a line."""
        with self._lock:
            self._output.line(text)

    def close(self) -> None:
        """Prints what was left, and nothing further."""
        with self._lock:
            if self._record is not None:
                self._print(self._record)
            self._output.close()


class LiveDisplay(Display):
    """A table that stays at the bottom of the terminal; above it the trials that failed, and notes."""

    def __init__(self, sweep: str, slots: int | None, output: _Output) -> None:
        self._sweep, self._slots = sweep, slots
        self._news = _News(sweep, slots)
        self._output = output
        self._lock = threading.RLock()
        self._record: SweepRecord | None = None
        self._report: SweepReport | None = None
        self._updated = self._next = time.monotonic()
        self._console = _console(output)
        self._live = Live(
            console=self._console, get_renderable=self._rendered, refresh_per_second=1, transient=True
        )
        self._live.start()

    def _rendered(self) -> RenderableType:
        if self._report is None:
            return Text(f"{self._sweep}: starting", "dim")
        return render_progress(self._report, time.monotonic() - self._updated)

    def update(self, record: SweepRecord) -> None:
        """Draws the table again, unless that was just done and takes long, as with thousands of trials."""
        with self._lock:
            self._record, begin = record, time.monotonic()
            if begin < self._next:
                return
            self._print_failed(record)
            self._report = status(record, self._sweep, locked=True, slots=self._slots)
            self._live.refresh()
            self._updated = time.monotonic()
            self._next = self._updated + _SPARING * (self._updated - begin)

    def note(self, text: str) -> None:
        """Prints a line above the table."""
        with self._lock:
            self._console.print(Text(text))

    def _print_failed(self, record: SweepRecord) -> None:
        for line in self._news.lines(record):
            if line.failed:
                self._console.print(Text(line.text, STYLES["failed"]))

    def close(self) -> None:
        """Says what failed since, removes the table and gives the cursor back."""
        with self._lock:
            if self._record is not None:
                self._print_failed(self._record)
            self._live.stop()
            self._output.close()


@dataclass(frozen=True)
class _Line:
    text: str
    failed: bool = False


class _News:
    """What is worth a line in a record that is looked at again and again."""

    def __init__(self, sweep: str, slots: int | None, *, nodes: bool = False) -> None:
        self._sweep, self._slots, self._nodes = sweep, slots, nodes
        self._begun: set[tuple[str, int, float | None]] = set()
        self._ended: set[str] = set()
        self._evaluated: set[tuple[str, int]] = set()
        self._best: float | None = None

    def lines(self, record: SweepRecord) -> list[_Line]:
        """Lines for what happened since the last call; what an earlier driver did is not news."""
        trials = record.all_current()
        fresh = [t for t in trials if (t.done or t.state == "failed") and t.key not in self._ended]
        news = sorted((t.ended or 0, t.key) for t in fresh if (t.ended or 0) >= (record.started or 0))
        earlier = len(self._ended) + len(fresh) - len(news)
        self._ended |= {trial.key for trial in fresh}
        lines: list[_Line] = []
        if news:
            report = status(record, self._sweep, locked=True, slots=self._slots)
            numbered = enumerate((report.trial(key) for _, key in news), earlier + 1)
            lines = [_ended_line(report, trial, _of(number, len(trials))) for number, trial in numbered]
        progress = " " * len(_of(0, len(trials)))
        passing = [*(self._beginnings(record) if self._nodes else ()), *self._better(record)]
        return lines + [_Line(f"{progress} {text}") for text in passing]

    def _beginnings(self, record: SweepRecord) -> Iterator[str]:
        """Where trainings began; of the trials that share one, the longest is named."""
        running = [trial for trial in record.all_current() if trial.state == "running"]
        for trial in sorted(running, key=_ended_then_longest):
            if (worker := trial.worker) is None or (worker.node, worker.pid, trial.started) in self._begun:
                continue
            self._begun.add((worker.node, worker.pid, trial.started))
            yield f"{trial.planned.label} began on {worker.host} (node {worker.node})"

    def _better(self, record: SweepRecord) -> Iterator[str]:
        """Evaluations better than all before, of running trials: a trial that ends there has its own line."""
        metric, sign = (
            (record.plan.metric, 1 if record.plan.mode == "max" else -1) if record.plan else ("", 1)
        )
        for trial in sorted(record.all_current(), key=_ended_then_longest):
            last = trial.evaluations[-1] if trial.evaluations else None
            if last is None or (last.unit, last.epoch) in self._evaluated:
                continue
            self._evaluated.add((last.unit, last.epoch))
            value = trial.score if trial.score is not None else last.metrics.get(metric, math.nan)
            if not math.isnan(value) and (self._best is None or sign * value > sign * self._best):
                self._best = value
                if trial.state == "running":
                    yield f"epoch {last.epoch}: {metric} {value:.4f}, the best so far  {trial.planned.label}"


def _ended_then_longest(trial: TrialRecord) -> tuple[bool, int]:
    return trial.state == "running", -trial.epochs


def _of(number: int, total: int) -> str:
    return f"[{number:>{len(str(total))}}/{total}]"


def _ended_line(report: SweepReport, trial: TrialReport, number: str) -> _Line:
    left = ""
    if report.seconds_left:
        left = f", about {format_seconds(report.seconds_left)} left"
    if trial.state in {"failed", "diverged"}:
        return _Line(f"{number} {format_failure(trial)} ({format_seconds(trial.seconds)}{left})", failed=True)
    outcome = f"{trial.state} {trial.label}  {format_outcome(report, trial)}"
    return _Line(f"{number} {outcome} ({format_seconds(trial.seconds)}{left})")


# -------------------------------------------------------------------------------------------------- output


class _Output:
    """A stream that takes any text, and drops it once nobody reads it any more."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream` is None where the process was started without standard output."""
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def write(self, text: str) -> int:
        """Writes what the stream's encoding has, `?` for the rest."""
        writable = text.encode(self.encoding, "replace").decode(self.encoding)
        try:
            if self._stream is not None:
                self._stream.write(writable)
        except (OSError, ValueError):
            self._discard()
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def line(self, text: str) -> None:
        """Writes a line at once."""
        self.write(f"{text}\n")
        self.flush()

    def close(self) -> None:
        """Drops what is written from now on; the stream itself stays open."""
        self._stream = None

    def _discard(self) -> None:
        """Drops also what the stream still holds: the interpreter would write it at exit, and complain."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None and self._stream.fileno() in {1, 2}:
                with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
        self.close()


def _console(output: _Output) -> Console:
    known = output.isatty() or "COLUMNS" in os.environ
    return Console(
        file=cast("TextIO", output),
        width=None if known else _WIDTH_OF_FILES,
        highlight=False,
        markup=False,
        emoji=False,
    )
