"""The finished trials of a search by their scores, kept in order as the scores come."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Literal


class Ranking:
    """Keys of trials, best first; ties go to the fewest epochs, then to the plan's order.

    A sweep of thousands asks for the best after every trial, and must not sort all of them each time.
    """

    def __init__(self, keys: Iterable[str], mode: Literal["max", "min"]) -> None:
        """Ranks nothing yet.

        Args:
            keys: Of the trials that take part, in the plan's order.
            mode: The better direction of a score.
        """
        self._places = {key: place for place, key in enumerate(keys)}
        self._sign = -1 if mode == "max" else 1
        self._ranked: list[tuple[float, int, int, str]] = []

    def add(self, key: str, score: float, epochs: int) -> None:
        """Takes the score of a trial, once; of one that does not take part it takes no notice."""
        if key in self._places:
            bisect.insort(self._ranked, (self._sign * score, epochs, self._places[key], key))

    def best(self, count: int | None = None) -> list[str]:
        """The keys of the best, or of all."""
        return [key for *_, key in self._ranked[:count]]
