"""The searcher that hands work units to Ray Tune, whatever the type of the search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ray.tune.search import Searcher

from finetune_sweep.tune.assignment import Assignment


class UnitSearcher(Searcher):
    """Hands out assignments, one whenever Ray Tune has a free slot.

    A search that knows its units beforehand gives them in a fixed order; one that learns from results decides on the
    next one when it is asked for it.
    """

    def __init__(
        self, assignments: Iterator[Assignment], is_over: Callable[[], bool] = lambda: False
    ) -> None:
        """Takes the assignments of one round.

        Args:
            assignments: Taken one by one, as late as possible.
            is_over: Whether no more are to be handed out in this round.
        """
        super().__init__()
        self._assignments = assignments
        self._is_over = is_over

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401, ARG002 - Ray Tune's signature
        """The next assignment, or the word for no more."""
        assignment = None if self._is_over() else next(self._assignments, None)
        return Searcher.FINISHED if assignment is None else {"assignment": assignment}

    def on_trial_complete(self, trial_id: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Ray Tune's
        """Nothing: what came of a unit stands in the journal."""

    def __getstate__(self) -> dict[str, object]:
        return {}  # Ray Tune pickles what it runs for a restore that is never asked for

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new driver plans the rest from the journal."""
