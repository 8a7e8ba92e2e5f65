"""The journal of a small sweep at several moments, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_sweep.events import (
    Entry,
    Evaluated,
    Event,
    Failure,
    Promoted,
    SessionStarted,
    SweepPlanned,
    TrialEnded,
    TrialPlanned,
    UnitStarted,
    WorkerInfo,
)
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.report import SweepReport, status
from finetune_sweep.yamlio import Value

WORKER = WorkerInfo("here", 1, "cpu", 1, "", "node")


def planned(key: str, rate: float, epochs: int) -> TrialPlanned:
    config: dict[str, Value] = {"learning_rate": rate, "epochs": epochs}
    label = f"learning_rate={rate:g} epochs={epochs}"
    return TrialPlanned(key, label, config, {**config, "lr_schedule.type": "constant"}, 0)


def evaluated(keys: Sequence[str], epoch: int, accuracy: float) -> Evaluated:
    return Evaluated(
        keys[-1],
        tuple(keys),
        epoch,
        10 * epoch,
        0.5,
        1e-4,
        {"accuracy": accuracy},
        {"accuracy": 0.9},
        9.0,
        1.0,
        16,
    )


def ended(key: str, score: float, epoch: int) -> TrialEnded:
    return TrialEnded(key, "finished", epoch, epoch, score)


BEGIN: tuple[Event, ...] = (
    SessionStarted(1, "here", 1, "0", {}),
    planned("a2", 1e-4, 2),
    planned("a4", 1e-4, 4),
    planned("b4", 2e-4, 4),
    SweepPlanned("text-classification", "d", "accuracy", "max", "best", "fp32", "cpu", ("a2", "a4", "b4")),
    UnitStarted("a4", ("a2", "a4"), WORKER),
    UnitStarted("b4", ("b4",), WORKER),
)
HALF: tuple[Event, ...] = (
    *BEGIN,
    evaluated(["a2", "a4"], 1, 0.6),
    evaluated(["a2", "a4"], 2, 0.8),
    ended("a2", 0.8, 2),
    evaluated(["b4"], 1, 0.5),
)
FAILED = TrialEnded("b4", "failed", failure=Failure("out_of_memory", "21 GiB were asked for\nand more"))
DONE: tuple[Event, ...] = (*HALF, ended("a4", 0.8, 2), FAILED)
PROMOTED = Promoted("a2", 2, {"accuracy": 0.8}, {"accuracy": 0.7}, "s", "3")


def record_of(*events: Event) -> SweepRecord:
    return replay(Entry(float(second), event) for second, event in enumerate(events, 1))


def report_of(*events: Event, locked: bool = True) -> SweepReport:
    return status(record_of(*events), "s", locked=locked)
