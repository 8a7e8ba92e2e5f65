"""What is frozen in which epoch: in a linear probe all blocks, then what gradual unfreezing has not opened yet.

All of it is a function of the settings and the epoch, so that a training that goes on finds itself in the right phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_sweep.settings import Training

Depth = int | Literal["embeddings"]


@dataclass(frozen=True)
class Phase:
    """Epochs with one freeze depth.

    Args:
        first_epoch: Counted from 1.
        depth: 0, `embeddings`, or the number of frozen blocks.
    """

    first_epoch: int
    depth: Depth


def probe_epochs(training: Training) -> int:
    """The epochs of the linear probe, which come before all others; perhaps none."""
    return training.linear_probe.epochs if training.linear_probe else 0


def opened(training: Training, depth: Depth) -> Depth:
    """What stays frozen throughout, however long the training is.

    Args:
        training: Its `unfreeze.to_depth` is resolved.
        depth: The resolved freeze depth.
    """
    return depth if training.unfreeze is None else resolved(training.unfreeze.to_depth)


def phases(training: Training, depth: Depth, blocks: int) -> tuple[Phase, ...]:
    """The phases of a training as long as it needs to go through all of them; a single one where nothing is opened.

    Unfreezing (Howard & Ruder 2018) opens blocks from the last one down; the embeddings count as one more, below the
    first. The linear probe (Kumar et al. 2022) trains what follows the blocks.

    Args:
        training: Its `unfreeze.to_depth` is resolved.
        depth: The resolved freeze depth.
        blocks: Of the model.
    """
    first = 1 + probe_epochs(training)
    found = [Phase(1, blocks)] if first > 1 else []
    found.append(Phase(first, depth))
    opening = training.unfreeze
    if opening is not None:
        level, last = level_of(depth), level_of(resolved(opening.to_depth))
        while level > last:
            level, first = max(last, level - opening.blocks), first + opening.every_epochs
            found.append(Phase(first, _depth(level)))
    return tuple(found)


def level_of(depth: Depth) -> int:
    """How many parts are frozen, where the embeddings are the first one."""
    if depth == "embeddings":
        return 1
    return depth + 1 if depth else 0


def _depth(level: int) -> Depth:
    return "embeddings" if level == 1 else max(0, level - 1)


def resolved(depth: int | str) -> Depth:
    """A depth that is a number of blocks already, or `embeddings`.

    Raises:
        ValueError: It is not.
    """
    if isinstance(depth, int):
        return depth
    if depth == "embeddings":
        return "embeddings"
    raise ValueError(f"the depth {depth!r} was not resolved for a model")
