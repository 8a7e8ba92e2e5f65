"""What Ray Tune runs in an actor: one work unit after another.

The driver imports this module and the actor runs it; so what a training needs is imported in the actor alone, and a
driver starts some seconds earlier.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from ray import tune

from finetune_sweep.errors import StorageError
from finetune_sweep.tune.watch import Growth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_sweep.events import Event
    from finetune_sweep.layout import Layout
    from finetune_sweep.plan import Plan
    from finetune_sweep.tune.assignment import Assignment

STORAGE_ERROR: Final = "storage_error"
"""The name of what a worker reports when the storage refuses: that ends the sweep, and no trial."""
_LOGS: Final = ("ray.tune.execution.tune_controller", "ray.tune.tune")


class OutgrownError(Exception):
    """Ends a worker that keeps too much memory, when all that its unit told is recorded: its slot gets a new one.

    Ray Tune reuses a worker whose unit is done; it has no other way to replace one.
    """


def quieten() -> None:
    """Keeps from Ray Tune's log that a worker was replaced, and the list of the trials that it calls incomplete."""
    for name in _LOGS:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    is_replaced = record.exc_info is not None and isinstance(record.exc_info[1], OutgrownError)
    return not is_replaced and not record.getMessage().startswith("Trials did not complete")


class UnitTrainable(tune.Trainable):
    """Ray Tune's view of a worker: a step is an evaluation. Actors are reused for one unit after another."""

    def setup(self, config: dict[str, Any], plan: Plan, layout: Layout) -> None:  # type: ignore[override]
        """Takes the first unit; `plan` and `layout` stay the same for the actor's life."""
        import torch

        from finetune_sweep.tune.loaded import Loaded

        self._loaded, self._plan, self._layout, self._growth = Loaded(plan), plan, layout, Growth()
        torch.set_num_threads(plan.sweep.resources_per_trial.threads)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next unit; nothing of the last one is left but what is loaded."""
        assignment: Assignment = new_config["assignment"]
        self._model = assignment.unit.trials[-1].model
        self._events = self.events_of(assignment)
        return True

    def events_of(self, assignment: Assignment) -> Iterator[tuple[Event, ...]]:
        """What a unit tells while it is trained."""
        from finetune_sweep.tune.worker import run_unit

        return run_unit(assignment, self._plan, self._layout, self._loaded)

    def step(self) -> dict[str, Any]:
        """Goes on to the next moment worth recording.

        Raises:
            OutgrownError: After the last one, if the worker is to be replaced.
        """
        try:
            events = next(self._events, None)
        except StorageError as error:
            return {"events": (), "done": True, STORAGE_ERROR: str(error)}
        if events is None:
            if self._growth.is_too_much(self._model):
                raise OutgrownError
            return {"events": (), "done": True}
        return {"events": events, "done": False}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the sweep's own, never Ray Tune's."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing: a unit continues from the sweep's own checkpoints."""
