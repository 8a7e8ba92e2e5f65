"""Which passes there are: a workload, by whom, how often, in an order where the sides take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.ours import LEVERS

ROOT: Final = Path(__file__).resolve().parent.parent
QUICK_SWEEP: Final = "bert"


@dataclass(frozen=True)
class Entry:
    """So many passes of a workload by one side."""

    workload: str
    variant: str
    passes: int


@dataclass(frozen=True)
class Pass:
    """One run of a workload by one side, in a process of its own."""

    workload: str
    variant: str
    number: int

    @property
    def name(self) -> str:
        """Such as `w12.ours.1`."""
        return f"{self.workload}.{self.variant}.{self.number}"


@dataclass(frozen=True)
class Peer:
    """A side that is not ours.

    Args:
        module: The script.
        bf16: Whether it computes in bfloat16 where ours does by itself.
        gpu: The part of a GPU that each of its trials gets.
    """

    module: str
    bf16: bool = False
    gpu: float = 0.0


PEERS: Final = {
    "n0": Peer("n0"),
    "n1": Peer("n1", bf16=True),
    "n2": Peer("n2", bf16=True),
    "n2-fp32": Peer("n2"),
    "n3": Peer("n3", bf16=True),
    "h": Peer("h"),
    "n0-noop": Peer("noop"),
    "n0-gpu-8": Peer("n0", gpu=0.125),
    "n3-gpu-8": Peer("n3", bf16=True, gpu=0.125),
}
"""A newcomer trains in fp32, as the Trainer does by itself; the experts know of bfloat16."""

BENCH: Final = (
    Entry("w12", "ours", 2),
    Entry("w12", "n0", 2),
    Entry("w12", "n3", 2),
    Entry("noop", "noop", 2),
    Entry("noop", "n0-noop", 2),
)
"""Half an hour; the other peers take a quarter of an hour more."""
FULL: Final = (
    *BENCH,
    Entry("w12", "n1", 1),
    Entry("w12", "n2", 1),
    Entry("w12", "h", 1),
    Entry("w12", "ours-one-slot", 2),
    Entry("w12", "ours-two-threads", 1),
    Entry("w12", "ours-hog", 1),
    Entry("w54", "ours-fp32", 2),
    Entry("w54", "ours-bf16", 2),
    Entry("w54", "ours-best", 2),
    Entry("w54", "n3", 2),
    Entry("w54", "n0", 2),
    Entry("w54", "packed-fp32", 1),
    Entry("w54", "plain-fp32", 1),
    Entry("w54", "n2-fp32", 1),
    Entry("w_linear", "ours-bf16", 2),
    Entry("w_linear", "n0", 2),
    Entry("w64", "ours", 2),
    Entry("w64", "n0", 1),
    Entry("noop_2000", "noop", 1),
    Entry(QUICK_SWEEP, "ours", 1),
    *(
        Entry(lever.workload, variant, 1)
        for lever in LEVERS
        for variant in lever.variants
        if variant != "ours"
    ),
)
GPU: Final = (
    Entry("w54", "ours-gpu-8", 2),
    Entry("w54", "ours-gpu-1", 2),
    Entry("w54", "n3-gpu-8", 1),
    Entry("w54", "n0-gpu-8", 1),
)
"""For a machine with one GPU and eight cores. The peers share the GPU too: one at a time, N0 takes ten minutes."""
N0_NOOP_TRIALS: Final = 12
"""N0 takes seconds for each, so that 200 would take half an hour; what counts is the time for one."""


def workload_file(name: str) -> Path:
    """The sweep file of a workload."""
    if name == QUICK_SWEEP:
        return ROOT / "sweeps" / f"{name}.yaml"
    return ROOT / "benchmarks" / "workloads" / f"{name}.yaml"


def in_turns(entries: Sequence[Entry]) -> list[Pass]:
    """All passes, workload by workload, where each side has its first pass before any has its second: A B A B."""
    passes = []
    for workload in dict.fromkeys(entry.workload for entry in entries):
        own = [entry for entry in entries if entry.workload == workload]
        for number in range(1, max(entry.passes for entry in own) + 1):
            passes += [Pass(workload, entry.variant, number) for entry in own if entry.passes >= number]
    return passes
