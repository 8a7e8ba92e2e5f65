"""Statistics with known truth: replays in which it is known what is better, and by how much."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pytest

from finetune_sweep.selection import (
    Runs,
    expected_best,
    intervals,
    places_on_a_curve,
    runs_of_rows,
    runs_of_score,
    smallest_gain,
)
from finetune_sweep.verdict import Candidate, decide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

REPLAYS = 200
EXAMPLES = 719


def replay(
    number: int, accuracies: list[float], seeds: int, examples: int = EXAMPLES
) -> list[NDArray[np.float64]]:
    """Right and wrong answers, shape `(seeds, examples)` for each configuration, of known accuracy.

    An answer is right where the sum of the configuration's level, the example's ease, how well the two suit each other,
    the seed's luck and what is left is positive. Two runs differ in about one example of nine; a seed moves the
    difference of two configurations by a point.
    """
    generator, normal = np.random.default_rng(number), NormalDist()
    ease, answers = generator.standard_normal(examples), []
    for accuracy in accuracies:
        fixed = 1 + 0.25**2 + 0.45**2
        density = math.exp(-(normal.inv_cdf(accuracy) ** 2) / 2) / math.sqrt(2 * math.pi)
        of_seeds = 0.01 / math.sqrt(2) / density * math.sqrt(fixed)
        level = normal.inv_cdf(accuracy) * math.sqrt(fixed + of_seeds**2)
        latent = (
            level
            + ease
            + 0.25 * generator.standard_normal(examples)
            + of_seeds * generator.standard_normal((seeds, 1))
            + 0.45 * generator.standard_normal((seeds, examples))
        )
        answers.append((latent > 0).astype(np.float64))
    return answers


def candidates(answers: list[NDArray[np.float64]]) -> list[Candidate]:
    return [
        Candidate(str(place), f"configuration {place}", runs_of_rows(rows), 1.0)
        for place, rows in enumerate(answers)
    ]


def upper_limit(rate: float) -> float:
    """What a rate stays below in 97.5 % of all sets of replays."""
    return REPLAYS * rate + 1.96 * math.sqrt(REPLAYS * rate * (1 - rate))


# --------------------------------------------------------------------------------------- what is promised


def test_shuffled_labels_let_nothing_beat_the_baseline() -> None:
    """Balanced labels that say nothing: each answer is right by the toss of a coin, the same ones in part."""
    alarms = 0
    for number in range(REPLAYS):
        generator = np.random.default_rng(number)
        labels = generator.permutation(np.arange(EXAMPLES) % 2)
        habit = generator.standard_normal((4, 1, EXAMPLES))
        guesses = habit + generator.standard_normal((4, 3, EXAMPLES)) > 0
        *finalists, baseline = candidates(list((guesses == labels).astype(np.float64)))
        alarms += decide(finalists, baseline, "accuracy", higher_is_better=True).beats_baseline
    assert alarms <= upper_limit(0.05)


def test_a_gain_of_three_points_is_found_with_five_seeds() -> None:
    found = 0
    for number in range(REPLAYS):
        *finalists, baseline = candidates(replay(number, [0.88, 0.85, 0.85, 0.85], seeds=5))
        verdict = decide(finalists, baseline, "accuracy", higher_is_better=True)
        found += verdict.beats_baseline and verdict.winner == "0"
    assert found >= 0.65 * REPLAYS


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_holds_the_truth(seeds: int) -> None:
    held = 0
    for number in range(REPLAYS):
        first, second = (runs_of_rows(rows) for rows in replay(number, [0.88, 0.85], seeds))
        (interval,) = intervals([first - second])
        held += interval.low <= 0.03 <= interval.high
    assert held >= 0.93 * REPLAYS


def test_the_announced_score_has_an_interval_that_holds_it() -> None:
    held = 0
    for number in range(REPLAYS):
        (announced,) = intervals([runs_of_rows(rows) for rows in replay(number, [0.85], seeds=3)])
        held += announced.low <= 0.85 <= announced.high
    assert held >= 0.93 * REPLAYS


def test_a_family_pays_for_its_size_and_less_where_its_members_hang_together() -> None:
    first, *others, base = (runs_of_rows(rows) for rows in replay(1, [0.85] * 5, seeds=5))
    (alone,) = intervals([first - base])
    together, *_ = intervals([first - base, *(other - base for other in others)])
    repeated, *_ = intervals([first - base] * 4)
    assert alone.high - alone.low < together.high - together.low
    assert repeated.high - repeated.low < together.high - together.low


# ------------------------------------------------------------------------------------------------- by hand


def test_one_run_has_the_interval_of_its_examples() -> None:
    """The standard error of 90 right answers of 100 is sqrt(0.9 * 0.1 / 100) = 0.03."""
    rows = np.array([[1.0] * 90 + [0.0] * 10])
    (interval,) = intervals([runs_of_rows(rows)])
    assert interval.value == pytest.approx(0.9)
    assert interval.high - interval.value == pytest.approx(1.96 * 0.03, rel=0.08)
    assert interval.value - interval.low == pytest.approx(1.96 * 0.03, rel=0.08)


def test_seeds_alone_give_the_interval_of_student() -> None:
    """All examples alike, scores 0.1, 0.2, 0.3: the mean's error is 0.1 / sqrt(3), t with 2 degrees is 4.303."""
    scores = np.array([0.1, 0.2, 0.3])
    (interval,) = intervals([Runs(scores, np.tile(scores, (50, 1)))])
    assert interval.high - interval.value == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=0.06)


def test_a_score_of_the_whole_set_agrees_with_the_mean_where_both_exist() -> None:
    rows = replay(0, [0.85], seeds=3, examples=200)[0]
    by_score = runs_of_score(3, 200, lambda run, drawn: float(rows[run, drawn].mean()))
    (first,), (second,) = intervals([runs_of_rows(rows)]), intervals([by_score])
    assert first.value == pytest.approx(second.value)
    assert first.high - first.low == pytest.approx(second.high - second.low, rel=0.15)


def test_the_expected_best_is_the_mean_over_all_subsets() -> None:
    scores = [0.7, 0.9, 0.6, 0.8, 0.75]
    for size, expected in enumerate(expected_best(scores), 1):
        best = [max(subset) for subset in itertools.combinations(scores, size)]
        assert expected == pytest.approx(sum(best) / len(best))
    lowest = expected_best(scores, higher_is_better=False)
    assert lowest[-1] == pytest.approx(0.6)
    assert lowest[0] == pytest.approx(0.75)


def test_the_expected_best_of_thousands_is_looked_at_in_a_hundred_places() -> None:
    places = places_on_a_curve(5000)
    assert (places[0], places[-1], len(places) <= 100) == (1, 5000, True)
    curve = expected_best([number / 5000 for number in range(5000)], places)
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(4999 / 5000)
    assert places_on_a_curve(3) == [1, 2, 3]


def test_more_seeds_and_more_examples_show_smaller_gains() -> None:
    gains = [
        smallest_gain(seeds, examples, 3) for seeds, examples in ((2, 256), (3, 256), (3, 719), (5, 719))
    ]
    assert gains == sorted(gains, reverse=True)
    assert 0.02 < gains[-1] < 0.04
    assert smallest_gain(3, 719, 1) < smallest_gain(3, 719, 3)


def test_the_smallest_gain_is_found_about_as_often_as_said() -> None:
    gain = smallest_gain(5, EXAMPLES, 3)
    found = 0
    for number in range(REPLAYS):
        *finalists, baseline = candidates(replay(number, [0.85 + gain, 0.85, 0.85, 0.85], seeds=5))
        found += decide(finalists, baseline, "accuracy", higher_is_better=True).beats_baseline
    assert 0.65 * REPLAYS <= found <= 0.95 * REPLAYS


# ------------------------------------------------------------------------------------------------- verdicts


def test_what_has_no_effect_cannot_be_told_apart_and_the_cheaper_is_taken() -> None:
    same, base = replay(3, [0.9, 0.8], seeds=3)
    dear, cheap = (
        Candidate("dear", "d", runs_of_rows(same), 3.0),
        Candidate("cheap", "c", runs_of_rows(same), 2.0),
    )
    verdict = decide(
        [dear, cheap], Candidate("base", "b", runs_of_rows(base), 3.0), "accuracy", higher_is_better=True
    )
    assert (verdict.winner, verdict.told_apart, verdict.beats_baseline) == ("cheap", False, True)
    assert "The first two cannot be told apart; the cheapest of them was taken." in verdict.sentence


def test_of_those_not_told_apart_the_highest_mean_is_taken_or_the_cheapest_if_asked_for() -> None:
    right = {
        "dear": (90, 80, 70),
        "cheap": (88, 74, 60),
        "between": (93, 77, 69),
    }  # of 100 rows, on three seeds
    costs = {"dear": 4.0, "cheap": 1.0, "between": 2.0}
    named = of_counts(right, costs)
    verdict = decide(named, None, "accuracy", higher_is_better=True)
    assert verdict.winner == "dear"
    assert "three cannot be told apart; the one with the highest mean was taken; cheap costs 25% of it." in (
        verdict.sentence
    )
    verdict = decide(named, None, "accuracy", higher_is_better=True, prefer="cheapest")
    assert verdict.winner == "cheap"
    assert verdict.sentence.endswith("The first three cannot be told apart; the cheapest of them was taken.")


def of_counts(counts: Mapping[str, tuple[int, ...]], costs: Mapping[str, float]) -> list[Candidate]:
    """Configurations that have so many of 100 rows right, the first ones, on each seed."""
    return [
        Candidate(
            name,
            name,
            runs_of_rows(np.stack([np.arange(100) < n for n in of]).astype(np.float64)),
            costs[name],
        )
        for name, of in counts.items()
    ]


def test_costs_are_not_compared_between_scales() -> None:
    first, second, third = replay(3, [0.9, 0.9, 0.9], seeds=3)
    dear = Candidate("dear", "d", runs_of_rows(first), 3.0, "large")
    less = Candidate("less", "l", runs_of_rows(second), 2.5, "large")
    cheap = Candidate("cheap", "c", runs_of_rows(third), 1.0, "small")
    best = max((dear, less, cheap), key=lambda c: c.runs.mean)
    for prefer in ("best", "cheapest"):
        verdict = decide([dear, less, cheap], None, "accuracy", higher_is_better=True, prefer=prefer)
        assert "The first three cannot be told apart" in verdict.sentence
        assert "cheapest of them" not in verdict.sentence
        expected = best if prefer == "best" or best is cheap else less
        assert verdict.winner == expected.name


def test_the_cheapest_must_beat_the_baseline_if_the_best_does() -> None:
    """On these rows dear is above the baseline beyond doubt, cheap is not, and the two are not told apart."""
    counts = {"dear": (90, 84, 87), "cheap": (87, 72, 84)}
    dear, cheap = of_counts(counts, {"dear": 3.0, "cheap": 1.0})
    (base,) = of_counts({"base": (70, 66, 68)}, {"base": 3.0})
    alone = decide([dear, cheap], None, "accuracy", higher_is_better=True, prefer="cheapest")
    assert alone.winner == "cheap"
    verdict = decide([dear, cheap], base, "accuracy", higher_is_better=True, prefer="cheapest")
    assert (verdict.winner, verdict.beats_baseline) == ("dear", True)
    assert verdict.sentence.endswith("cheap costs 33% of it but does not beat the baseline.")


def test_a_finalist_that_beats_the_baseline_is_named_where_the_best_mean_does_not() -> None:
    """The first varies from seed to seed, the second hardly: only that is above the baseline beyond doubt."""
    loose, steady = of_counts({"loose": (98, 70, 93), "steady": (86, 85, 86)}, {"loose": 1.0, "steady": 2.0})
    (base,) = of_counts({"base": (75, 74, 75)}, {"base": 1.0})
    verdict = decide([loose, steady], base, "accuracy", higher_is_better=True)
    assert (verdict.winner, verdict.beats_baseline) == ("loose", False)
    assert verdict.sentence.startswith("loose does not beat the baseline beyond doubt, it differs by +0.")
    assert "in accuracy; steady does." in verdict.sentence
    verdict = decide([loose, steady], base, "accuracy", higher_is_better=True, prefer="cheapest")
    assert (verdict.winner, verdict.beats_baseline) == ("steady", True)


def test_those_that_are_not_told_apart_need_not_be_the_first_ones() -> None:
    """The second differs from the first by the same rows on each seed, the third by many rows and seeds."""
    steady = of_counts({"a": (90, 90, 90), "b": (80, 80, 80)}, {"a": 1.0, "b": 1.0})
    (loose,) = of_counts({"c": (95, 55, 85)}, {"c": 1.0})
    verdict = decide([*steady, loose], None, "accuracy", higher_is_better=True)
    assert (verdict.winner, verdict.told_apart) == ("a", True)
    assert "Two of the finalists cannot be told apart" in verdict.sentence


@pytest.mark.parametrize("finalists", [1, 2])
def test_a_baseline_that_leads_is_taken(finalists: int) -> None:
    *worse, base = replay(3, [0.8] * finalists + [0.9], seeds=3)
    verdict = decide(
        candidates(worse), Candidate("base", "b", runs_of_rows(base), 3.0), "accuracy", higher_is_better=True
    )
    assert (verdict.winner, verdict.beats_baseline) == ("base", False)
    assert (
        verdict.sentence
        == "No configuration beats the baseline: it has the best mean accuracy, and was taken."
    )


def test_less_of_a_loss_is_better() -> None:
    generator = np.random.default_rng(0)
    low, high = generator.gamma(2, 0.1, (3, 500)), generator.gamma(2, 0.2, (3, 500))
    verdict = decide(
        [Candidate("a", "a", runs_of_rows(low), 1.0)],
        Candidate("base", "b", runs_of_rows(high), 1.0),
        "loss",
        higher_is_better=False,
    )
    assert (verdict.winner, verdict.beats_baseline, verdict.told_apart) == ("a", True, True)
    assert verdict.difference is not None
    assert verdict.difference.value == pytest.approx(0.2, abs=0.02)
    assert verdict.scores[0].value == pytest.approx(0.2, abs=0.02)


def test_without_a_baseline_nothing_is_beaten() -> None:
    answers = replay(1, [0.9, 0.7], seeds=3)
    verdict = decide(candidates(answers), None, "accuracy", higher_is_better=True)
    assert (verdict.winner, verdict.beats_baseline, verdict.difference) == ("0", False, None)
    assert verdict.told_apart
    assert (
        verdict.sentence == "There is no baseline to compare with. It is told apart from all other finalists."
    )
