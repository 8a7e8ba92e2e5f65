"""What a sweep looks like on a terminal: pure functions, from numbers to something that rich prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_sweep.report import SweepReport, TrialReport
from finetune_sweep.space import canonical
from finetune_sweep.yamlio import Value

STYLES: Final = {
    "planned": "dim",
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "red",
}
_ROWS_WHILE_RUNNING: Final = 8
_BEST: Final = "*"


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
    parts += _finalists(report)
    if dropped := len(report.trials) - len(report.current):
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
        parts.append(
            Text(f"best so far: {format_outcome(report, report.best)}  {report.best.label}", "green")
        )
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
        lines.append(("test", _metrics(promoted.test_metrics) or "not read; the model card says why"))
        if promoted.version:
            lines.append(("registered", f"{promoted.registered_model} version {promoted.version}"))
        if promoted.note:
            lines.append((promoted.alias, promoted.note))
        if promoted.instead_of:
            chosen = f"--trial chose it over {promoted.instead_of}; `promote` without it goes back"
            lines.append(("preferred", chosen))
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
    return sorted(report.searched, key=lambda trial: ranks.get(trial.key, len(ranks)))


def _headline(report: SweepReport, seconds_left: float | None) -> Text:
    text = Text.assemble((report.sweep, "bold"), f"  {report.state}")
    if report.current:
        text.append(f", {report.ended} of {_count(len(report.current), 'trial')} ended")
    for state in ("running", "diverged", "failed"):
        if number := report.counts.get(state, 0):
            text.append(f", {number} {state}", STYLES[state])
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
            Text(trial.state, STYLES[trial.state]),
            Text(f"{trial.epochs_done}/{trial.epochs}"),
            Text(_value(report, trial)),
            Text(format_seconds(trial.seconds) if trial.seconds else ""),
            Text(trial.key, "dim"),
            style="bold" if report.best is not None and trial.key == report.best.key else None,
        )
    return table


def _finalists(report: SweepReport) -> list[RenderableType]:
    """The configurations that were run on fresh seeds, and what came of it."""
    if not report.finalists:
        return []
    decided = report.decided
    scores = decided.scores if decided is not None else {}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "on fresh seeds", "runs", f"mean {report.metric}", "spread", "interval"):
        table.add_column(Text(name), justify="left" if name in {"", "on fresh seeds"} else "right")
    for name, keys in report.finalists.items():
        runs = [report.trial(key) for key in keys]
        is_taken = decided is not None and decided.winner in keys
        values = scores.get(name)
        numbers = (
            ("", "", "")
            if values is None
            else (
                f"{values['mean']:.4f}",
                f"{values['spread']:.4f}",
                f"{values['low']:.4f} to {values['high']:.4f}",
            )
        )
        label = runs[0].label.rpartition(" seed=")[0]
        ended = f"{sum(run.ended for run in runs)}/{len(runs)}"
        table.add_row(Text(_BEST if is_taken else ""), Text(label), ended, *numbers)
    return [table, *([Text(decided.sentence, "bold")] if decided is not None else [])]


def _narrow_table(report: SweepReport, trials: Sequence[TrialReport]) -> Group:
    """Two lines a trial: what it came to, and what it is."""
    lines: list[RenderableType] = []
    for trial in trials:
        first = Text(f"{_mark(report, trial):<2}").append(trial.state, STYLES[trial.state])
        first.append(f"  {format_outcome(report, trial)}" if trial.metrics else "")
        lines += [first, Padding(Text(trial.label), (0, 0, 0, 2))]
    return Group(*lines)


def _mark(report: SweepReport, trial: TrialReport) -> str:
    return _BEST if report.ranking[:1] == (trial.key,) else ""


def _setting(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else canonical(value).strip('"')


def _value(report: SweepReport, trial: TrialReport) -> str:
    value = trial.score if trial.score is not None else trial.metrics.get(report.metric)
    return "" if value is None else f"{value:.4f}"


def format_outcome(report: SweepReport, trial: TrialReport) -> str:
    """What a trial came to, or stands at: the metric, and the epoch that it is of."""
    epoch = trial.best_epoch if trial.best_epoch is not None else trial.epochs_done
    return f"{report.metric} {_value(report, trial)} at epoch {epoch}"


def _metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _failures(report: SweepReport) -> list[RenderableType]:
    """One line for each trial without a result: its class, what it was, and why."""
    return [
        Text(format_failure(trial), STYLES[trial.state])
        for trial in report.current
        if trial.state in {"failed", "diverged"}
    ]


def format_failure(trial: TrialReport) -> str:
    """Why a trial has no result, on one line: its class, what it was, and the first line of the message."""
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
