"""The searcher that hands work units to Ray Tune, whatever the type of the search.

Grid and random searches know all their units beforehand. A search that learns from results decides its next unit
here, when Ray Tune has a free slot for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from finetune_sweep.plan import WorkUnit
from finetune_sweep.tune.worker import Assignment


class UnitSearcher(Searcher):
    """Hands out work units, the longest first, so that slots end at about the same time."""

    def __init__(
        self, units: Sequence[WorkUnit], bar: Callable[[], float | None], deadline: float | None
    ) -> None:
        """Takes the units of one round.

        Args:
            units: What is to be trained.
            bar: The score that a checkpoint is worth keeping for, as of now.
            deadline: No unit is handed out after this moment, in seconds of `time.monotonic`; None for never.
        """
        super().__init__()
        self._waiting = sorted(units, key=lambda unit: -unit.cost)
        self._bar = bar
        self._deadline = deadline

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401, ARG002 - Ray Tune's signature
        """The next unit, or the word for no more."""
        if not self._waiting or (self._deadline is not None and time.monotonic() > self._deadline):
            return str(Searcher.FINISHED)
        return {"assignment": Assignment(self._waiting.pop(0), self._bar())}

    def on_trial_complete(self, trial_id: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Ray Tune's
        """Nothing: what came of a unit stands in the journal."""

    def __getstate__(self) -> dict[str, object]:
        return {}  # Ray Tune pickles what it runs for a restore that is never asked for

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new driver plans the rest from the journal."""
