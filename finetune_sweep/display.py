"""The terminal: a live table where there is one, a line for each thing that happened elsewhere.

`render_*` are pure: numbers in, something that rich can print out. `open_display` chooses once how a run is
shown. Nothing here fails because of the terminal: output that nobody reads is dropped.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TextIO, cast

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.report import SweepReport, TrialReport, status
from finetune_sweep.space import canonical
from finetune_sweep.yamlio import Value

_STYLES: Final = {
    "planned": "dim",
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "red",
}
_WIDTH_OF_FILES: Final = 160
_ROWS_WHILE_RUNNING: Final = 8
_BEST: Final = "*"


# ------------------------------------------------------------------------------------------------ rendering


@dataclass(frozen=True)
class _Fitting:
    """A table where the terminal is wide enough for it, else a narrower form of the same."""

    wide: Table
    narrow: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = Measurement.get(console, options.update(width=10_000), self.wide).maximum <= options.max_width
        yield self.wide if fits else self.narrow


def render_table(report: SweepReport) -> RenderableType:
    """The trials that can win, the finished ones best first; `*` marks the best."""
    trials = _ranked(report)
    parts: list[RenderableType] = [_headline(report, report.seconds_left)]
    if trials:
        parts.append(_Fitting(_wide_table(report, trials), _narrow_table(report, trials)))
    if report.best is not None:
        parts.append(Text(f"{_BEST} the best so far" if report.state == "running" else f"{_BEST} the best"))
    if dropped := len(report.trials) - len(trials):
        parts.append(
            Text(f"{_count(dropped, 'trial')} no longer in the sweep file; --json lists them", "dim")
        )
    return Group(*parts, *_failures(report))


def render_progress(report: SweepReport, waited_s: float = 0.0) -> RenderableType:
    """The table that stays at the bottom of the terminal during a run.

    Args:
        report: The sweep, as of the last event.
        waited_s: Seconds since then, by which the time left has shrunk.
    """
    left = report.seconds_left
    parts: list[RenderableType] = [_headline(report, max(left - waited_s, 0) if left is not None else None)]
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(len(report.current), 1), completed=report.ended, width=40))
    parts.append(bar)
    if report.best is not None:
        parts.append(Text(f"best so far: {_outcome(report, report.best)}  {report.best.label}", "green"))
    running = _one_a_trajectory(report)
    table = Table.grid(padding=(0, 2))
    for trial in running[:_ROWS_WHILE_RUNNING]:
        value = trial.metrics.get(report.metric)
        table.add_row(
            Text(f"epoch {trial.epochs_done} of {trial.epochs}", "cyan", no_wrap=True),
            Text("" if value is None else f"{report.metric} {value:.4f}", no_wrap=True),
            Text(trial.label),
        )
    if running:
        parts.append(table)
    if len(running) > _ROWS_WHILE_RUNNING:
        parts.append(Text(f"and {len(running) - _ROWS_WHILE_RUNNING} more", "dim"))
    return Group(*parts)


def render_plan(lines: Sequence[tuple[str, str]]) -> RenderableType:
    """Names and what belongs to them, in two columns; an empty name continues the one above."""
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(Text(name, "bold", no_wrap=True), Text(value, overflow="fold"))
    return table


def render_result(report: SweepReport, places: Mapping[str, Path | str]) -> RenderableType:
    """What a run came to: the winner with its validation and test metrics, where it lies, and what failed.

    Args:
        report: The sweep; the winner is what was promoted, else the best trial.
        places: Name to path or URI, such as checkpoint, MLflow, journal; paths are printed absolute.
    """
    promoted = report.promoted
    winner = report.trial(promoted.key) if promoted is not None else report.best
    lines: list[tuple[str, str]] = []
    if winner is None:
        lines.append(("winner", "none: no trial finished"))
    else:
        epoch = f" (epoch {winner.best_epoch})" if winner.best_epoch is not None else ""
        lines += [
            ("winner" if promoted is not None else "best", f"{winner.label}{epoch}"),
            ("trial", winner.key),
        ]
        lines.append(("validation", _metrics(promoted.metrics if promoted is not None else winner.metrics)))
    if promoted is not None:
        lines.append(("test", _metrics(promoted.test_metrics) or "there is no test split"))
        if promoted.version:
            lines.append(("registered", f"{promoted.registered_model} version {promoted.version}"))
    lines += [
        (name, str(place.absolute() if isinstance(place, Path) else place)) for name, place in places.items()
    ]
    return Group(_headline(report, None), render_plan(lines), *_failures(report))


def format_seconds(seconds: float) -> str:
    """A duration as people say it: `21 s`, `3 min`, `2 h 05 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _ranked(report: SweepReport) -> list[TrialReport]:
    ranks = {key: rank for rank, key in enumerate(report.ranking)}
    return sorted(report.current, key=lambda trial: ranks.get(trial.key, len(ranks)))


def _headline(report: SweepReport, seconds_left: float | None) -> Text:
    text = Text.assemble((report.sweep, "bold"), f"  {report.state}")
    if report.current:
        text.append(f", {report.ended} of {_count(len(report.current), 'trial')} ended")
    for state in ("running", "diverged", "failed"):
        if number := report.counts.get(state, 0):
            text.append(f", {number} {state}", _STYLES[state])
    if seconds_left is not None:
        text.append(f", about {format_seconds(seconds_left)} left")
    return text


def _wide_table(report: SweepReport, trials: Sequence[TrialReport]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", *report.dimensions, "state", "done", report.metric, "time", "trial"):
        right = name in {"done", report.metric, "time"}
        table.add_column(Text(name), no_wrap=True, justify="right" if right else "left")
    for trial in trials:
        values = [_setting(trial.config[name]) if name in trial.config else "-" for name in report.dimensions]
        table.add_row(
            _mark(report, trial),
            *(Text(value) for value in values),
            Text(trial.state, _STYLES[trial.state]),
            Text(f"{trial.epochs_done}/{trial.epochs}"),
            Text(_value(report, trial)),
            Text(format_seconds(trial.seconds) if trial.seconds else ""),
            Text(trial.key, "dim"),
            style="bold" if report.best is not None and trial.key == report.best.key else None,
        )
    return table


def _narrow_table(report: SweepReport, trials: Sequence[TrialReport]) -> Group:
    """Two lines a trial: what it came to, and what it is."""
    lines: list[RenderableType] = []
    for trial in trials:
        first = Text(f"{_mark(report, trial):<2}").append(trial.state, _STYLES[trial.state])
        first.append(f"  {_outcome(report, trial)}" if trial.metrics else "")
        lines += [first, Padding(Text(trial.label), (0, 0, 0, 2))]
    return Group(*lines)


def _mark(report: SweepReport, trial: TrialReport) -> str:
    return _BEST if report.ranking[:1] == (trial.key,) else ""


def _setting(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else canonical(value).strip('"')


def _value(report: SweepReport, trial: TrialReport) -> str:
    value = trial.score if trial.score is not None else trial.metrics.get(report.metric)
    return "" if value is None else f"{value:.4f}"


def _outcome(report: SweepReport, trial: TrialReport) -> str:
    epoch = trial.best_epoch if trial.best_epoch is not None else trial.epochs_done
    return f"{report.metric} {_value(report, trial)} at epoch {epoch}"


def _metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _failures(report: SweepReport) -> list[RenderableType]:
    """One line for each trial without a result: its class, what it was, and why."""
    return [
        Text(_failure(trial), _STYLES[trial.state])
        for trial in report.current
        if trial.state in {"failed", "diverged"}
    ]


def _failure(trial: TrialReport) -> str:
    if trial.failure is None:
        return f"{trial.state} {trial.label}"
    first, *_ = trial.failure.message.strip().splitlines() or [""]
    kind = "" if trial.failure.kind == trial.state else f" ({trial.failure.kind.replace('_', ' ')})"
    return f"{trial.state}{kind} {trial.label}: {first}"


def _one_a_trajectory(report: SweepReport) -> list[TrialReport]:
    """The running trials, those that share their training as the longest of them."""
    running = sorted((t for t in report.current if t.state == "running"), key=lambda trial: trial.epochs)
    return list({trial.trajectory: trial for trial in running}.values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ------------------------------------------------------------------------------------------- while it runs


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
    """Prints something that `render_*` returned; into a file or a pipe up to 160 columns wide."""
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

    def update(self, record: SweepRecord) -> None:
        """Prints what is new."""
        with self._lock:
            for line in self._news.lines(record):
                self._output.line(line.text)

    def note(self, text: str) -> None:
        """Prints a line."""
        with self._lock:
            self._output.line(text)

    def close(self) -> None:
        """Prints nothing further."""
        with self._lock:
            self._output.close()


class LiveDisplay(Display):
    """A table that stays at the bottom of the terminal; above it the trials that failed, and notes."""

    def __init__(self, sweep: str, slots: int | None, output: _Output) -> None:
        self._sweep, self._slots = sweep, slots
        self._news = _News(sweep, slots)
        self._output = output
        self._lock = threading.RLock()
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
            for line in self._news.lines(record):
                if line.failed:
                    self._console.print(Text(line.text, _STYLES["failed"]))
            begin = time.monotonic()
            if begin < self._next:
                return
            self._report = status(record, self._sweep, locked=True, slots=self._slots)
            self._live.refresh()
            self._updated = time.monotonic()
            self._next = self._updated + 20 * (self._updated - begin)

    def note(self, text: str) -> None:
        """Prints a line above the table."""
        with self._lock:
            self._console.print(Text(text))

    def close(self) -> None:
        """Removes the table and gives the cursor back."""
        with self._lock:
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
        trials = record.current()
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
        running = [trial for trial in record.current() if trial.state == "running"]
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
        for trial in sorted(record.current(), key=_ended_then_longest):
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
    return trial.state == "running", -int(str(trial.planned.params["epochs"]))


def _of(number: int, total: int) -> str:
    return f"[{number:>{len(str(total))}}/{total}]"


def _ended_line(report: SweepReport, trial: TrialReport, number: str) -> _Line:
    left = ""
    if report.seconds_left:
        left = f", about {format_seconds(report.seconds_left)} left"
    if trial.state in {"failed", "diverged"}:
        return _Line(f"{number} {_failure(trial)} ({format_seconds(trial.seconds)}{left})", failed=True)
    outcome = f"{trial.state} {trial.label}  {_outcome(report, trial)}"
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
