"""The arithmetic of the last table, and its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.passes import Result
from benchmarks.peers.recipe import Outcome, Point

Verdict = Literal["ok", "missed", "not run", "no ratio: busy machine", ""]
Results = Mapping[tuple[str, str], Sequence[Result]]
"""By workload and variant: the attempt that counts of each pass."""
Cell = tuple[tuple[str, str], ...]
"""A configuration, name by name, in an order that both sides share."""


@dataclass(frozen=True)
class Ratio:
    """Ours divided by theirs: of the medians, and the range over all pairs of passes."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ours divided by theirs."""
    return Ratio(
        statistics.median(ours) / statistics.median(theirs),
        min(ours) / max(theirs),
        max(ours) / min(theirs),
    )


@dataclass(frozen=True)
class Paired:
    """The mean of the differences of pairs, and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f}, standard error {self.error:.4f}"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """The mean of ours minus theirs, pair by pair; of one pair the error is not known, and NaN."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    deviation = statistics.stdev(differences) if len(differences) > 1 else math.nan
    return Paired(statistics.fmean(differences), deviation / math.sqrt(len(differences)))


@dataclass(frozen=True)
class Row:
    """A line of the table: what was compared, what came of it, what was asked for."""

    workload: str
    what: str
    value: str = ""
    cpu: str = ""
    target: str = ""
    floor: str = ""
    verdict: Verdict = ""


@dataclass(frozen=True)
class Target:
    """A bound on a value.

    Args:
        needs: Workload and variant of all passes that the value follows from.
        value: What is bounded, how it is shown, and, for ratios of wall, the same of CPU seconds.
        bound: The least or the most that is asked for; None where nothing is.
        floor: What arithmetic allows.
    """

    workload: str
    what: str
    needs: Sequence[tuple[str, str]]
    value: Callable[[Results], tuple[float, str, str]]
    bound: float | None = None
    at_least: bool = False
    floor: str = ""

    def row(self, results: Results) -> Row:
        """The line of the table. Passes beside a busy machine give none."""
        shown = (
            f"{'at least' if self.at_least else 'at most'} {self.bound:.3g}" if self.bound is not None else ""
        )
        row = Row(self.workload, self.what, target=shown, floor=self.floor)
        passes = [results.get(need, ()) for need in self.needs]
        if not all(passes):
            return Row(row.workload, row.what, "", "", row.target, row.floor, "not run")
        quiet = {
            need: [r for r in found if r.is_quiet] for need, found in zip(self.needs, passes, strict=True)
        }
        if not all(quiet.values()):
            return Row(row.workload, row.what, "", "", row.target, row.floor, "no ratio: busy machine")
        value, text, cpu = self.value(quiet)
        return Row(row.workload, row.what, text, cpu, row.target, row.floor, self._verdict(value))

    def _verdict(self, value: float) -> Verdict:
        if self.bound is None or math.isnan(value):
            return ""
        return "ok" if (value >= self.bound if self.at_least else value <= self.bound) else "missed"


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, its columns aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    cells = [
        " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines
    ]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [cells[0], rule, *cells[1:]])


# ------------------------------------------------------------------------------------------------ what trials gave


def cell(outcome: Outcome) -> Cell:
    """The configuration of a trial as a name that both sides share."""
    return tuple(sorted((name, _canonical(value)) for name, value in outcome.config.items()))


def _canonical(value: float | str) -> str:
    return value if isinstance(value, str) else repr(float(value))


def last_accuracies(trials: Sequence[Outcome]) -> dict[Cell, float]:
    """The accuracy of each trial after its last epoch."""
    return {cell(trial): trial.history[-1].accuracy for trial in trials}


def accuracy_difference(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Paired:
    """Ours minus theirs, over the grid; trials that differ in `epochs` alone, one training, are one pair.

    Raises:
        ValueError: If they are not the same trials.
    """
    left, right = last_accuracies(ours), last_accuracies(theirs)
    if left.keys() != right.keys():
        raise ValueError(
            f"not the same trials: {sorted(left.keys() ^ right.keys())[:4]} are of one side alone"
        )
    trainings: dict[Cell, list[Cell]] = {}
    for name in left:
        trainings.setdefault(tuple(part for part in name if part[0] != "epochs"), []).append(name)
    means = [
        [statistics.fmean(side[name] for name in names) for names in trainings.values()]
        for side in (left, right)
    ]
    return paired(*means)


def winner(trials: Sequence[Outcome]) -> Cell:
    """The best trial by its last epoch; ties go to the fewest epochs, then to the order of the names."""
    accuracies = last_accuracies(trials)
    epochs = {cell(trial): len(trial.history) for trial in trials}
    return min(accuracies, key=lambda name: (-accuracies[name], epochs[name], name))


def largest_loss_difference(ours: Sequence[Outcome], plain: Sequence[Outcome]) -> float:
    """Between the validation losses of the same trial and epoch.

    Raises:
        ValueError: If they are not the same trials and epochs.
    """
    return max(abs(mine.loss - other.loss) for mine, other in _same_evaluations(ours, plain))


def unequal_accuracies(ours: Sequence[Outcome], plain: Sequence[Outcome]) -> int:
    """How many evaluations have another accuracy.

    Raises:
        ValueError: If they are not the same trials and epochs.
    """
    return sum(mine.accuracy != other.accuracy for mine, other in _same_evaluations(ours, plain))


def _same_evaluations(ours: Sequence[Outcome], plain: Sequence[Outcome]) -> list[tuple[Point, Point]]:
    left, right = (
        {(cell(trial), point.epoch): point for trial in side for point in trial.history}
        for side in (ours, plain)
    )
    if left.keys() != right.keys():
        raise ValueError("not the same trials and epochs on both sides")
    return [(left[name], right[name]) for name in left]
