"""N3: N1 by an expert who sees that only the largest number of epochs need be run, as evaluations come every epoch.

That holds with a constant learning rate; the shorter trials are read off the longest one.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from benchmarks.peers import n1
from benchmarks.peers.recipe import Outcome, Recipe, write_outcomes


def longest_only(recipe: Recipe) -> Recipe:
    """The same grid with the largest of its numbers of epochs alone."""
    longest = max(recipe.space["epochs"], key=int)
    return dataclasses.replace(recipe, space={**recipe.space, "epochs": [longest]})


def shorter_too(outcomes: Sequence[Outcome], recipe: Recipe) -> list[Outcome]:
    """Every trial of the grid, each with the beginning of the longest one's history."""
    return [
        Outcome({**outcome.config, "epochs": epochs}, list(outcome.history)[: int(epochs)])
        for outcome in outcomes
        for epochs in recipe.space["epochs"]
    ]


if __name__ == "__main__":
    given = Recipe.read(sys.argv[1])
    write_outcomes(shorter_too(n1.run(longest_only(given)), given), given.folder)
