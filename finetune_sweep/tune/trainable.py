"""What Ray Tune runs in an actor: one work unit after another.

The driver imports this module and the actor runs it; so what a training needs is imported in the actor alone, and a
driver starts some seconds earlier.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

from ray import tune

from finetune_sweep.errors import StorageError
from finetune_sweep.tune.watch import resident_bytes

if TYPE_CHECKING:
    from finetune_sweep.layout import Layout
    from finetune_sweep.plan import Plan

STORAGE_ERROR: Final = "storage_error"
"""The name of what a worker reports when the storage refuses: that ends the sweep, and no trial."""
HELD: Final = "held"
"""The name of what a worker reports after a unit: its host, its process, and the bytes of memory it holds."""


class UnitTrainable(tune.Trainable):
    """Ray Tune's view of a worker: a step is an evaluation. Actors are reused for one unit after another."""

    def setup(self, config: dict[str, Any], plan: Plan, layout: Layout) -> None:  # type: ignore[override]
        """Takes the first unit; `plan` and `layout` stay the same for the actor's life."""
        import torch

        from finetune_sweep.tune.loaded import Loaded

        self._loaded, self._plan, self._layout = Loaded(plan), plan, layout
        torch.set_num_threads(plan.sweep.resources_per_trial.threads)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next unit; nothing of the last one is left but what is loaded."""
        from finetune_sweep.tune.worker import run_unit

        self._events = run_unit(new_config["assignment"], self._plan, self._layout, self._loaded)
        return True

    def step(self) -> dict[str, Any]:
        """Goes on to the next moment worth recording."""
        try:
            events = next(self._events, None)
        except StorageError as error:
            return {"events": (), "done": True, STORAGE_ERROR: str(error)}
        if events is None:
            return {"events": (), "done": True, HELD: (socket.gethostname(), os.getpid(), resident_bytes())}
        return {"events": events, "done": False}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the sweep's own, never Ray Tune's."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing: a unit continues from the sweep's own checkpoints."""
