"""How good a configuration is, and whether it is better than another: statistics over runs and examples.

A configuration is known by a few runs, each on a seed of its own, all evaluated on the same examples. Both are samples:
another seed and other examples would have given other numbers. Nothing here reads a file or knows a trial.

Examples are resampled with replacement, the same ones for every configuration, so that comparisons are paired. A
handful of seeds is too few to resample (a bootstrap of three values gives intervals that are far too short:
Hesterberg 2015): their part of the variance is that of the runs' scores, with the degrees of freedom of so few
(Satterthwaite 1946). What examples and seeds have in common, and a two-way bootstrap would count three times
(Owen 2007), is counted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL: Final = 0.95
"""The probability with which all intervals of a family hold their truths together."""
DRAWS: Final = 1000
"""Resamplings of the examples where a score is a mean over them."""
FEW_DRAWS: Final = 200
"""The same where each costs a call of the task's `score`; a standard error needs no more (Efron & Tibshirani 1993)."""
_TAIL_DRAWS: Final = 10_000
_Z_OF_POWER: Final = 0.8416
_TOO_FEW_SEEDS: Final = 1e6


@dataclass(frozen=True)
class Runs:
    """The runs of one configuration, or the differences of two configurations run by run.

    Args:
        scores: Shape `(runs,)`: the metric of each run on the examples there are.
        resampled: Shape `(draws, runs)`: the same on resampled examples; draw i has the same examples everywhere.
    """

    scores: NDArray[np.float64]
    resampled: NDArray[np.float64]

    def __sub__(self, other: Runs) -> Runs:
        """The differences, paired by seed and by example."""
        return Runs(self.scores - other.scores, self.resampled - other.resampled)

    def as_one(self) -> Runs:
        """Their mean, as a single run: what is known of the examples, without what is known of the seeds."""
        return Runs(self.scores.mean(keepdims=True), self.resampled.mean(axis=1, keepdims=True))

    def __neg__(self) -> Runs:
        return Runs(-self.scores, -self.resampled)

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return float(self.scores.mean())

    @property
    def spread(self) -> float:
        """The standard deviation from run to run; 0 of a single one."""
        return float(self.scores.std(ddof=1)) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Interval:
    """An estimate, and between which values the truth lies."""

    value: float
    low: float
    high: float


def runs_of_rows(rows: NDArray[np.float64], seed: int = 0) -> Runs:
    """Runs whose score is the mean of a number that each example has, such as 1 for a right answer.

    Args:
        rows: Shape `(runs, examples)`.
        seed: Of the resampling.
    """
    counts = _resampled_counts(rows.shape[1], DRAWS, seed)
    return Runs(rows.mean(axis=1), counts @ rows.T / rows.shape[1])


def runs_of_score(
    runs: int, examples: int, score: Callable[[int, NDArray[np.int64]], float], seed: int = 0
) -> Runs:
    """Runs whose score is that of the whole set, such as F1.

    Args:
        runs: How many there are.
        examples: How many rows the set has.
        score: The metric of a run (its number) on rows (their numbers, some of them repeatedly).
        seed: Of the resampling.
    """
    generator = np.random.default_rng([seed, examples])
    drawn = [np.arange(examples), *generator.integers(0, examples, size=(FEW_DRAWS, examples))]
    table = np.array([[score(run, rows) for run in range(runs)] for rows in drawn])
    return Runs(table[0], table[1:])


@lru_cache(maxsize=4)
def _resampled_counts(examples: int, draws: int, seed: int) -> NDArray[np.float64]:
    """How often each example is drawn in each resampling, shape `(draws, examples)`."""
    generator = np.random.default_rng([seed, examples])
    return generator.multinomial(examples, np.full(examples, 1 / examples), size=draws).astype(np.float64)


# ------------------------------------------------------------------------------------------------ intervals


def intervals(family: Sequence[Runs], level: float = LEVEL) -> list[Interval]:
    """Intervals that hold all their truths together with a probability.

    The quantile that all share is that of the smallest of the family's p-values (Westfall & Young 1993), drawn from t
    distributions with the correlations found: comparisons with one baseline hang together, so less is given away than
    by dividing the error by their number.

    Args:
        family: Differences of configurations, or the configurations' own scores.
        level: The probability.
    """
    if not family:
        return []
    spreads = [_variance(runs) for runs in family]
    tails = _tails(_correlation(family), [degrees for _, degrees in spreads])
    quantiles = _quantiles(tails, level)
    return [
        Interval(runs.mean, runs.mean - quantile * root, runs.mean + quantile * root)
        for runs, (variance, _), quantile in zip(family, spreads, quantiles, strict=True)
        for root in [math.sqrt(variance)]
    ]


def _variance(runs: Runs) -> tuple[float, float]:
    """The variance of the mean over seeds and examples, and its degrees of freedom.

    Of one run, nothing is known of the seeds: then it is that of the examples alone.
    """
    count = len(runs.scores)
    of_examples = float(runs.resampled.mean(axis=1).var(ddof=1))
    if count == 1:
        return of_examples, _TOO_FEW_SEEDS
    of_seeds = float(runs.scores.var(ddof=1)) / count
    # The variance over examples of a single run holds their common part and the whole of what is left,
    # that of the mean over runs only a share of the latter: the difference of the two is known.
    single = float(runs.resampled.var(axis=0, ddof=1).mean())
    in_both = max(single - of_examples, 0.0) / (count - 1)
    variance = of_examples + max(of_seeds - in_both, 0.0)
    return variance, (count - 1) * (variance / of_seeds) ** 2 if of_seeds else _TOO_FEW_SEEDS


def _correlation(family: Sequence[Runs]) -> NDArray[np.float64]:
    """How the estimates hang together, shape `(family, family)`; those without variance are on their own."""
    covariance: NDArray[np.float64] = np.atleast_2d(np.cov([runs.resampled.mean(axis=1) for runs in family]))
    seeds = len(family[0].scores)
    if seeds > 1:
        covariance = covariance + np.atleast_2d(np.cov([runs.scores for runs in family])) / seeds
    roots = np.sqrt(np.diag(covariance))
    roots[roots == 0] = 1.0
    correlation: NDArray[np.float64] = covariance / np.outer(roots, roots)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _tails(correlation: NDArray[np.float64], degrees: Sequence[float]) -> NDArray[np.float64]:
    """Draws of the sizes of correlated t values, shape `(draws, family)`."""
    generator = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    normal = generator.standard_normal((_TAIL_DRAWS, len(degrees))) @ root.T
    freedom = np.asarray(degrees)
    tails: NDArray[np.float64] = np.abs(normal) / np.sqrt(
        generator.chisquare(freedom, size=normal.shape) / freedom
    )
    return tails


def _quantiles(tails: NDArray[np.float64], level: float) -> list[float]:
    """For each estimate, the size that all stay below together with the probability `level`."""
    draws, family = tails.shape
    order = tails.argsort(axis=0)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(draws)[:, None].repeat(family, axis=1), axis=0)
    shared = level if family == 1 else float(np.quantile(ranks.max(axis=1) / (draws - 1), level))
    return [float(value) for value in np.quantile(tails, shared, axis=0)]


# ------------------------------------------------------------------------------------- before and beside a sweep


@dataclass(frozen=True)
class Noise:
    """What differs between runs, as parts of 1, where nothing was measured yet.

    The default is that of small encoders on some hundred examples of a classification: of two runs on one seed,
    every eighth example is answered rightly by one and wrongly by the other, a third of that whatever the seed; from
    seed to seed a difference moves by a point.
    """

    disagreement: float = 0.125
    lasting: float = 1 / 3
    of_seeds: float = 0.01


def smallest_gain(seeds: int, examples: int, finalists: int, noise: Noise | None = None) -> float:
    """The gain over the baseline that is found with a probability of 0.8, as a part of 1.

    Args:
        seeds: Runs of each configuration.
        examples: On which they are compared.
        finalists: Configurations that are compared with the baseline.
        noise: What is known of the runs.
    """
    noise = noise or Noise()
    lasting = noise.disagreement * noise.lasting
    of_examples = (lasting + (noise.disagreement - lasting) / seeds) / examples
    of_seeds = noise.of_seeds**2 / seeds
    variance = of_examples + of_seeds
    apparent = of_seeds + (noise.disagreement - lasting) / seeds / examples
    degrees = (seeds - 1) * (variance / apparent) ** 2 if seeds > 1 else _TOO_FEW_SEEDS
    correlation = np.full((finalists, finalists), 0.5) + 0.5 * np.eye(finalists)
    quantile = max(_quantiles(_tails(correlation, [degrees] * finalists), LEVEL))
    return (quantile + _Z_OF_POWER) * math.sqrt(variance)


def expected_best(
    scores: Sequence[float], sizes: Sequence[int] | None = None, *, higher_is_better: bool = True
) -> list[float]:
    """The expected best of so many of these trials, were they drawn anew.

    The unbiased estimate of Tang et al. 2020 ("Showing Your Work Doesn't Always Work"), a mean over all subsets; it
    means something only for trials that were drawn independently, by a random search.

    Args:
        scores: Of all trials.
        sizes: Numbers of trials, from 1 to that of the scores; None for all of these.
        higher_is_better: Of the scores.
    """
    sign = 1.0 if higher_is_better else -1.0
    ordered = np.sort(sign * np.asarray(scores, dtype=np.float64))[::-1]
    count = len(ordered)
    curve = []
    for size in sizes if sizes is not None else range(1, count + 1):
        # The best is in size / count of the subsets; the next one leads those of the rest without it, and so on.
        below = np.arange(count - 1, 0, -1)
        steps = np.maximum(below - size + 1, 0) / below
        weights = size / count * np.concatenate([[1.0], np.cumprod(steps)])
        curve.append(sign * float(weights @ ordered))
    return curve


def places_on_a_curve(count: int, most: int = 100) -> list[int]:
    """Numbers of trials from 1 to `count`, all of them or, closer at the beginning, so many."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({round(count ** (place / (most - 1))) for place in range(most)})
