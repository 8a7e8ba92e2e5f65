"""Which of the finalists wins, and what can be said for it: pure, from their runs on fresh seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal, TypeAlias

from finetune_sweep.selection import Interval, Runs, intervals

Preference: TypeAlias = Literal["best", "cheapest"]
_NUMBERS: Final = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Candidate:
    """A configuration that can win.

    Args:
        name: What tells it from the others.
        label: What people call it.
        runs: Of the sweep's metric, on fresh seeds; the same seeds in the same order for all candidates.
        cost: Of one training, in any unit.
        scale: Costs are compared only between candidates of one scale, such as those of one pretrained model.
    """

    name: str
    label: str
    runs: Runs
    cost: float
    scale: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the finalists came to.

    Args:
        winner: The name of a candidate; of the baseline if its mean is the highest.
        difference: The winner's mean minus the baseline's, positive where it is better, and its interval; None
            without a baseline.
        beats_baseline: Whether the whole interval is above 0.
        told_apart: Whether the winner is better than the runner-up beyond doubt.
        sentence: The same for people.
        scores: For each candidate, in the order given, its mean and the interval of it.
    """

    winner: str
    difference: Interval | None
    beats_baseline: bool
    told_apart: bool
    sentence: str
    scores: tuple[Interval, ...]


def decide(
    finalists: Sequence[Candidate],
    baseline: Candidate | None,
    metric: str,
    *,
    higher_is_better: bool,
    prefer: Preference = "best",
) -> Verdict:
    """Chooses the winner.

    The highest mean wins, of equal ones the cheapest; the baseline only if its mean is above all others. Where the
    cheapest is preferred, it is that of the finalists which are not told apart from the one with the highest mean; if
    one of them beats the baseline, the cheapest must do so too. All intervals of a question hold together with a
    probability of 0.95: all pairs of finalists, all finalists against the baseline, the means of all.

    Args:
        finalists: At least one.
        baseline: None if it has no runs.
        metric: For the sentence.
        higher_is_better: Of the metric.
        prefer: Whether the highest mean wins, or the cheapest of those that cannot be told apart from it.
    """
    contest = _Contest(finalists, baseline, higher_is_better=higher_is_better)
    winner, alike = contest.winner(prefer)
    difference = contest.gains[winner.name] if baseline is not None else None
    beats = difference is not None and difference.low > 0
    told_apart = contest.is_told_apart(winner)
    everyone = [*finalists, *([baseline] if baseline is not None else [])]
    sentences = [
        _about_baseline(winner, difference, metric, contest),
        _about_others(winner, alike, contest) if len(finalists) > 1 else "",
    ]
    return Verdict(
        winner=winner.name,
        difference=difference,
        beats_baseline=beats,
        told_apart=told_apart,
        sentence=" ".join(filter(None, sentences)),
        scores=tuple(intervals([candidate.runs for candidate in everyone])),
    )


class _Contest:
    """The comparisons between candidates; more is better here, whatever the metric."""

    def __init__(
        self, finalists: Sequence[Candidate], baseline: Candidate | None, *, higher_is_better: bool
    ) -> None:
        self.finalists, self.baseline = finalists, baseline
        self._runs = {c.name: c.runs if higher_is_better else -c.runs for c in finalists}
        pairs = list(combinations(self._runs, 2))
        found = intervals([self._runs[first] - self._runs[second] for first, second in pairs])
        self._pairs = dict(zip(pairs, found, strict=True))
        self.gains: dict[str, Interval] = {}
        if baseline is not None:
            self._runs[baseline.name] = baseline.runs if higher_is_better else -baseline.runs
            names = [candidate.name for candidate in finalists]
            against = intervals([self._runs[name] - self._runs[baseline.name] for name in names])
            self.gains = dict(zip(names, against, strict=True)) | {baseline.name: Interval(0.0, 0.0, 0.0)}

    def _mean(self, candidate: Candidate) -> float:
        return self._runs[candidate.name].mean

    def beats(self, candidate: Candidate) -> bool:
        """Whether a finalist is better than the baseline beyond doubt."""
        return self.baseline is not None and self.gains[candidate.name].low > 0

    def is_above(self, first: Candidate, second: Candidate) -> bool:
        """Whether a candidate is better than another beyond doubt."""
        if self.baseline is not None and second.name == self.baseline.name:
            return self.beats(first)
        if self.baseline is not None and first.name == self.baseline.name:
            return self.gains[second.name].high < 0
        if (first.name, second.name) in self._pairs:
            return self._pairs[first.name, second.name].low > 0
        return self._pairs[second.name, first.name].high < 0

    def winner(self, prefer: Preference) -> tuple[Candidate, list[Candidate]]:
        """The winner, and the finalists that cannot be told apart from the one with the highest mean, best first.

        None of them where the baseline wins.
        """
        ranking = self.by_mean()
        leader = ranking[0]
        if self.baseline is not None and self._mean(self.baseline) > self._mean(leader):
            return self.baseline, []
        alike = [c for c in ranking if c is leader or not self.is_above(leader, c)]
        if prefer == "best":
            return leader, alike
        beating = any(self.beats(c) for c in alike)
        eligible = [c for c in alike if c.scale == leader.scale and (self.beats(c) or not beating)]
        return min(eligible or [leader], key=lambda c: c.cost), alike

    def by_mean(self) -> list[Candidate]:
        """The finalists, best first, and of equal ones the cheapest."""
        return sorted(self.finalists, key=lambda c: (-self._mean(c), c.cost))

    def is_told_apart(self, winner: Candidate) -> bool:
        """Whether the winner is better, beyond doubt, than the best of the others."""
        others = [c for c in (*self.finalists, self.baseline) if c is not None and c.name != winner.name]
        return bool(others) and self.is_above(winner, max(others, key=self._mean))


def _about_baseline(winner: Candidate, gain: Interval | None, metric: str, contest: _Contest) -> str:
    if contest.baseline is None or gain is None:
        return "There is no baseline to compare with."
    if winner.name == contest.baseline.name:
        return f"No configuration beats the baseline: it has the best mean {metric}, and was taken."
    between = f"{_points(gain.value)} (interval from {_points(gain.low)} to {_points(gain.high)})"
    if gain.low > 0:
        return f"{winner.label} beats the baseline by {between} in {metric}."
    beating = [c.label for c in contest.by_mean() if contest.beats(c)]
    if beating:
        return (
            f"{winner.label} does not beat the baseline beyond doubt, it differs by {between} in {metric};"
            f" {' and '.join(beating)} {'does' if len(beating) == 1 else 'do'}."
        )
    return f"No configuration beats the baseline: the one taken differs by {between} in {metric}."


def _about_others(winner: Candidate, alike: Sequence[Candidate], contest: _Contest) -> str:
    """Whether other finalists are as good as far as can be said, and which of these is cheaper."""
    if len(alike) < 2:
        return "It is told apart from all other finalists." if alike else ""
    count = _NUMBERS[len(alike)] if len(alike) < len(_NUMBERS) else str(len(alike))
    are_first = {c.name for c in contest.by_mean()[: len(alike)]} == {c.name for c in alike}
    which = f"The first {count}" if are_first else f"{count.capitalize()} of the finalists"
    return f"{which} cannot be told apart; {_taken(winner, alike, contest)}."


def _taken(winner: Candidate, alike: Sequence[Candidate], contest: _Contest) -> str:
    """Which of those that are not told apart was taken; costs are compared only within the winner's scale."""
    comparable = [c for c in alike if c.scale == winner.scale]
    cheapest, dearest = (choose(comparable, key=lambda c: c.cost) for choose in (min, max))
    whole = "them" if len(comparable) == len(alike) else "those with its model and length"
    if winner.cost == cheapest.cost < dearest.cost:
        return f"the cheapest of {whole} was taken"
    if winner is not alike[0]:
        return f"the cheapest of {whole} that beats the baseline was taken"
    taken = "the one with the highest mean was taken"
    if cheapest.cost < winner.cost:
        taken += f"; {cheapest.label} costs {cheapest.cost / winner.cost:.0%} of it"
        taken += " but does not beat the baseline" if contest.beats(winner) > contest.beats(cheapest) else ""
    return taken


def _points(value: float) -> str:
    return f"{value:+.4f}"
