"""N2: N1 with the frozen part in eval mode, as ours has it: the Trainer leaves dropout on in frozen layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from benchmarks.peers import n1
from benchmarks.peers.hugging_face import parts
from benchmarks.peers.recipe import Recipe, write_outcomes

if TYPE_CHECKING:
    from torch import nn


class FrozenInEvalMode(Trainer):
    """Turns dropout off in every module all of whose parameters are frozen, before each step."""

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the Trainer has it
        """Called after the Trainer has put the whole model into training mode."""
        for module in parts(model):
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return super().compute_loss(model, *args, **kwargs)


class FrozenInEvalModeTrial(n1.ExpertTrial):
    """A worker of N1 with that Trainer."""

    trainer_class = FrozenInEvalMode


if __name__ == "__main__":
    given = Recipe.read(sys.argv[1])
    write_outcomes(n1.run(given, FrozenInEvalModeTrial), given.folder)
