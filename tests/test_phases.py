"""What is frozen in which epoch, by hand."""

from __future__ import annotations

import pytest

from finetune_sweep.phases import Depth, Phase, level_of, opened, phases, probe_epochs, resolved
from finetune_sweep.settings import Training

BLOCKS = 6


def made(depth: Depth, **settings: object) -> list[tuple[int, Depth]]:
    training = Training.model_validate(settings)
    return [(phase.first_epoch, phase.depth) for phase in phases(training, depth, BLOCKS)]


def test_without_either_there_is_one_phase() -> None:
    assert phases(Training(), 3, BLOCKS) == (Phase(1, 3),)
    assert opened(Training(), 3) == 3
    assert probe_epochs(Training()) == 0


@pytest.mark.parametrize(
    ("depth", "unfreeze", "expected"),
    [
        (2, {}, [(1, 2), (2, 1), (3, "embeddings"), (4, 0)]),
        (6, {"blocks": 2, "every_epochs": 3}, [(1, 6), (4, 4), (7, 2), (10, "embeddings"), (13, 0)]),
        (6, {"blocks": 4, "to_depth": "embeddings"}, [(1, 6), (2, 2), (3, "embeddings")]),
        (6, {"blocks": 9, "to_depth": 1}, [(1, 6), (2, 1)]),
        ("embeddings", {}, [(1, "embeddings"), (2, 0)]),
        (0, {}, [(1, 0)]),
    ],
)
def test_blocks_are_opened_from_the_last_one_down(
    depth: Depth, unfreeze: dict[str, object], expected: list[tuple[int, Depth]]
) -> None:
    assert made(depth, unfreeze=unfreeze) == expected
    assert opened(Training.model_validate({"unfreeze": unfreeze}), depth) == expected[-1][1]


def test_the_probe_comes_first_and_unfreezing_begins_after_it() -> None:
    assert made(0, linear_probe={"epochs": 2}) == [(1, 6), (3, 0)]
    assert made(1, linear_probe={}, unfreeze={"blocks": 2}) == [(1, 6), (2, 1), (3, 0)]


def test_the_embeddings_are_the_first_part_that_is_frozen() -> None:
    assert [level_of(depth) for depth in (0, "embeddings", 1, 6)] == [0, 1, 2, 7]


def test_a_depth_that_was_not_resolved_is_refused() -> None:
    assert (resolved(3), resolved("embeddings")) == (3, "embeddings")
    with pytest.raises(ValueError, match="'50%' was not resolved"):
        resolved("50%")
