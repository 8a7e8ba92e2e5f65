"""Our own side of a comparison: the command `run` on a workload, with its levers or without."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.peers.recipe import Outcome, Point, write_outcomes
from finetune_sweep.events import Entry, Evaluated, TrialEnded, UnitStarted
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.record import replay
from finetune_sweep.yamlio import Value

FP32: Final = "training.precision=fp32"
BF16: Final = "training.precision=bf16"
TWO_THREADS: Final = ("resources_per_trial.cpu=2",)
"""One slot, of two threads, which have to wait for each other."""
SWITCHES: Final = ("share_trajectories", "unpadding", "prefix_cache", "fuse_heads")
"""Of the section `speed` of a sweep file."""


def off(*switches: str) -> tuple[str, ...]:
    """What switches these off, as for `--set`."""
    return tuple(f"speed.{name}=false" for name in switches)


LEVERS_OFF: Final = off(*SWITCHES)
"""What the plain path switches off."""


@dataclass(frozen=True)
class Lever:
    """How the gain of a switch is measured: a workload with it, and without.

    Args:
        name: Of the switch.
        workload: By its name.
        alike: Set both times, as for `--set`: what would be switched off with it, since it needs it.
    """

    name: str
    workload: str
    alike: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[str, str]:
        """The name of the variant that has it, and of the one without."""
        return f"with-{self.name}" if self.alike else "ours", f"without-{self.name}"


LEVERS: Final = (
    Lever("share_trajectories", "w12"),
    Lever("unpadding", "w12", off("prefix_cache", "fuse_heads")),
    Lever("prefix_cache", "w54", (BF16, *off("fuse_heads"))),
    Lever("fuse_heads", "w64"),
)


@dataclass(frozen=True)
class Ours:
    """How our side of a workload is run.

    Args:
        overrides: As for `--set`.
        hogs: Busy processes beside it, on the same cores.
    """

    overrides: tuple[str, ...] = ()
    hogs: int = 0


VARIANTS: Final[Mapping[str, Ours]] = {
    "ours": Ours(),  # the file as it is
    "ours-fp32": Ours((FP32,)),
    "ours-bf16": Ours((BF16,)),
    "ours-best": Ours((BF16, "metric.epoch=best")),
    "plain-fp32": Ours((FP32, *LEVERS_OFF)),
    # Draws the dropout masks that ours draws.
    "packed-fp32": Ours((FP32, *off("share_trajectories", "prefix_cache", "fuse_heads"))),
    "ours-one-slot": Ours(("max_concurrent=1",)),
    "ours-two-threads": Ours(TWO_THREADS),
    "ours-hog": Ours(TWO_THREADS, hogs=1),
    "ours-gpu-1": Ours((BF16, "resources_per_trial.gpu=1")),
    "ours-gpu-8": Ours((BF16, "resources_per_trial.gpu=0.125")),  # eight at a time on one GPU
    **{lever.variants[0]: Ours(lever.alike) for lever in LEVERS if lever.alike},
    **{lever.variants[1]: Ours((*lever.alike, *off(lever.name))) for lever in LEVERS},
}


@dataclass(frozen=True)
class Phases:
    """What a journal says about where the time went.

    Args:
        train_s: Sum over all trainings, in seconds.
        eval_s: Sum over all evaluations.
        started: When the first unit began, in seconds since 1970.
        ended: When each trial ended, in order.
        delivered: When the session ended, with all that MLflow lacked delivered.
        exit_code: Of the session.
        durable_s: Seconds spent on writing durably, by what.
    """

    train_s: float
    eval_s: float
    started: float
    ended: list[float]
    delivered: float
    exit_code: int
    durable_s: Mapping[str, float]


def phases(entries: list[Entry], durable_s: Mapping[str, float]) -> Phases:
    """Reads them off a journal."""
    evaluated = [entry.event for entry in entries if isinstance(entry.event, Evaluated)]
    record = replay(entries)
    return Phases(
        train_s=sum(event.train_seconds for event in evaluated),
        eval_s=sum(event.eval_seconds for event in evaluated),
        started=min(entry.time for entry in entries if isinstance(entry.event, UnitStarted)),
        ended=[entry.time for entry in entries if isinstance(entry.event, TrialEnded)],
        delivered=entries[-1].time,
        exit_code=record.exit_code if record.exit_code is not None else 1,
        durable_s=durable_s,
    )


def outcomes(entries: list[Entry]) -> list[Outcome]:
    """The trials of a journal, each with the evaluations up to its own last epoch."""
    return [
        Outcome(
            {name: _setting(value) for name, value in trial.planned.config.items()},
            [Point(e.epoch, e.metrics["accuracy"], e.metrics["loss"]) for e in trial.evaluations],
        )
        for trial in replay(entries).current()
        if trial.done
    ]


def _setting(value: Value) -> int | float | str:
    return value if isinstance(value, int | float | str) else json.dumps(value)


def main(workload: str, variant: str, model: str, folder: Path, more: Sequence[str] = ()) -> int:
    """Runs a workload as `finetune-sweep run` does, and stores what its journal says.

    Args:
        workload: The sweep file.
        variant: One of `VARIANTS`, or `noop`.
        model: The folder of the pretrained model; the cache is empty.
        folder: Where everything is put.
        more: Further overrides, as for `--set`.

    Returns:
        The exit code of the sweep.
    """
    from benchmarks import instruments
    from finetune_sweep.run import run
    from finetune_sweep.sweepfile import load_sweep

    ours = VARIANTS.get(variant, Ours())
    options = {"storage": str(folder / "runs"), "cache": str(folder / "cache"), "model": model}
    options["tracking.uri"] = f"sqlite:///{folder}/mlflow.db"
    sweep = load_sweep(Path(workload), (*ours.overrides, *more), options=options)
    layout = Layout(folder / "runs", sweep.name)
    layout.root.mkdir(parents=True)
    instruments.time_durable_writes(layout.root)
    if variant == "noop":
        instruments.use_workers("NoopTrainable")
        instruments.promote_nothing()
    else:
        instruments.use_workers("TimedTrainable")
    code = run(sweep)
    entries = read(layout)
    write_outcomes(outcomes(entries), folder)
    found = phases(entries, instruments.Stopwatch(layout.root).totals())
    (folder / "phases.json").write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5:]))
