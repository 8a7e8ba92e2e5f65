"""One of several trajectories that a worker trains as a unit, as its recorder looks to what trains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from finetune_sweep.events import Event, Failure
from finetune_sweep.train.state import Evaluation
from finetune_sweep.trial import WorkUnit
from finetune_sweep.tune.resume import Best

if TYPE_CHECKING:
    from finetune_sweep.layout import Layout
    from finetune_sweep.train.heads import Trained
    from finetune_sweep.tune.watch import StopSign


class Member(Protocol):
    """A trajectory while it is trained.

    Attributes:
        layout: Of the sweep.
        bar: The score that a trial must reach for its checkpoint to be worth keeping; None for any.
        scores: Those of its trials that have ended.
        best: The evaluation that counts so far, with its tensors and predictions.
        stop_sign: Whether the driver asks to stop.
    """

    layout: Layout
    bar: float | None
    scores: list[float]
    best: Best | None
    stop_sign: StopSign

    @property
    def unit(self) -> WorkUnit:
        """Its trials."""

    @property
    def competes(self) -> bool:
        """Whether its checkpoint competes with those of other trials for being kept."""

    @property
    def begins_anew(self) -> bool:
        """Whether it must begin anew: a checkpoint from after the epoch that counts lacks what was said then."""

    def note(self, evaluation: Evaluation, trained: Trained) -> Best:
        """Keeps the tensors if the evaluation is the one that counts so far."""

    def tell(self, evaluation: Evaluation) -> tuple[Event, ...]:
        """The evaluation as an event, and the ends of trials that it brings."""

    def end_open(self, failure: Failure) -> tuple[Event, ...]:
        """The ends of all trials that have none yet."""
