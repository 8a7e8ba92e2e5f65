"""What the benchmark has to show, target by target, as functions of the stored passes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks import table
from benchmarks.ours import LEVERS
from benchmarks.passes import Result
from benchmarks.peers.recipe import Outcome
from benchmarks.suite import QUICK_SWEEP
from benchmarks.table import Results, Target

Value = Callable[[Results], tuple[float, str, str]]
EXACT: Final = 1e-5
HEADS: Final = 1e-4
"""How far a loss in fp32 may be from that of a path that draws the same random numbers; `HEADS` is for heads that are
trained together."""
SIZES: Final = {
    "checkpoint_bytes": "bytes of checkpoints",
    "peak_bytes": "peak memory",
    "written_bytes": "bytes written",
}
"""The figures of a pass that are bytes."""
_EDGE: Final = 200
"""Trials at the beginning and at the end of W-noop with 2,000 that are compared."""


def _walls(results: Sequence[Result]) -> list[float]:
    return [result.figures.wall_s for result in results]


def _cpus(results: Sequence[Result]) -> list[float]:
    return [result.figures.cpu_s for result in results]


def wall(
    workload: str, what: str, ours: str, peer: str, bound: float | None = None, floor: str = ""
) -> Target:
    """Our wall time divided by a peer's."""
    left, right = (workload, ours), (workload, peer)

    def value(results: Results) -> tuple[float, str, str]:
        found = table.ratio(_walls(results[left]), _walls(results[right]))
        cpu = table.ratio(_cpus(results[left]), _cpus(results[right]))
        return found.median, str(found), str(cpu)

    return Target(workload, what, (left, right), value, bound, floor=floor)


def size(
    figure: str, workload: str, ours: str, peer: str, bound: float | None = None, floor: str = ""
) -> Target:
    """Bytes of ours divided by those of a peer.

    Args:
        figure: One of `SIZES`.
        workload: By its name, as the sides are.
        ours: The side of ours.
        peer: The other.
        bound: The most that is asked for.
        floor: What arithmetic allows.
    """
    left, right = (workload, ours), (workload, peer)

    def value(results: Results) -> tuple[float, str, str]:
        sides = [[float(getattr(r.figures, figure)) for r in results[side]] for side in (left, right)]
        found = table.ratio(*sides)
        return found.median, str(found), ""

    what = f"{SIZES[figure]}, {ours} against {peer}"
    return Target(workload, what, (left, right), value, bound, floor=floor)


def accuracy(workload: str, ours: str, peer: str, bound: float | None = None) -> Target:
    """Mean accuracy over the grid minus a peer's, in paired standard errors, and the least that is asked for."""
    left, right = (workload, ours), (workload, peer)

    def value(results: Results) -> tuple[float, str, str]:
        mine, theirs = results[left][0].trials, results[right][0].trials
        found = table.accuracy_difference(mine, theirs)
        errors = found.mean / found.error if found.error else math.inf * (found.mean or 1)
        return errors, f"{errors:+.2f} ({found}; {_accuracies(mine, theirs)})", ""

    what = f"mean accuracy of {ours} minus {peer}, in paired standard errors"
    return Target(workload, what, (left, right), value, bound, at_least=True)


def same_winner(workload: str, ours: str, peer: str) -> Target:
    """The same winner as a peer's (shown as 0), or mean accuracy within one paired standard error."""
    left, right = (workload, ours), (workload, peer)

    def value(results: Results) -> tuple[float, str, str]:
        mine, theirs = results[left][0].trials, results[right][0].trials
        if table.winner(mine) == table.winner(theirs):
            return 0.0, "same winner", ""
        found = table.accuracy_difference(mine, theirs)
        errors = _standard_errors(found)
        text = f"another winner; {errors:.2f} paired standard errors apart"
        return errors, f"{text} ({found}; {_accuracies(mine, theirs)})", ""

    return Target(workload, f"winner of {ours} against {peer}", (left, right), value, 1.0)


def near_plain(workload: str) -> Target:
    """Mean accuracy against our own path without levers, whose dropout masks are others, in paired standard errors."""
    left, right = (workload, "ours-fp32"), (workload, "plain-fp32")

    def value(results: Results) -> tuple[float, str, str]:
        mine, plain = results[left][0].trials, results[right][0].trials
        found = table.accuracy_difference(mine, plain)
        difference = table.largest_loss_difference(mine, plain)
        unequal = table.unequal_accuracies(mine, plain)
        evaluations = sum(len(trial.history) for trial in mine)
        chosen = "the same winner" if table.winner(mine) == table.winner(plain) else "another winner"
        text = f"{found}; {unequal} of {evaluations} accuracies differ, losses by up to {difference:.2g}; {chosen}"
        return _standard_errors(found), f"{_standard_errors(found):.2f} ({text})", ""

    what = "accuracy apart from the plain path's, in paired standard errors"
    return Target(workload, what, (left, right), value, 1.0)


def equals_packed(workload: str) -> Target:
    """The largest difference of a loss to our path with `unpadding` alone, as a part of what rule 3 allows.

    No accuracy may differ at all.
    """
    left, right = (workload, "ours-fp32"), (workload, "packed-fp32")

    def value(results: Results) -> tuple[float, str, str]:
        mine, packed = results[left][0].trials, results[right][0].trials
        parts, shown = [], []
        for name, allowed, alike in (("heads alone", HEADS, True), ("others", EXACT, False)):
            chosen = [[t for t in side if is_head_alone(t) == alike] for side in (mine, packed)]
            if not any(chosen):
                continue
            difference = table.largest_loss_difference(*chosen)
            parts.append(difference / allowed)
            shown.append(f"{name} {difference:.2g} of {allowed:.0e}")
        unequal = table.unequal_accuracies(mine, packed)
        shown.append(f"{unequal} accuracies differ")
        return max(*parts, math.inf if unequal else 0.0), ", ".join(shown), ""

    return Target(workload, "every metric as without sharing, cache and stacks", (left, right), value, 1.0)


def _accuracies(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> str:
    """How much there is to tell apart: where most trials learned nothing, a mean over the grid says little."""
    sides = [sorted(table.last_accuracies(side).values()) for side in (ours, theirs)]
    shown = [f"{side[0]:.2f} to {side[-1]:.2f}, median {statistics.median(side):.2f}" for side in sides]
    return f"accuracies {shown[0]}, and {shown[1]}"


def is_head_alone(trial: Outcome) -> bool:
    """Whether all blocks of minilm-l6 are frozen in a trial."""
    return trial.config.get("freeze_depth") in {6, "all"}


def _standard_errors(found: table.Paired) -> float:
    """How many standard errors a mean is from 0."""
    if not found.error:
        return 0.0 if not found.mean else math.inf
    return abs(found.mean) / found.error


def overhead_of_a_trial(results: Results) -> tuple[float, str, str]:
    """Wall time of W-noop divided by its trials, with the start and the end of the sweep."""
    each = [r.figures.wall_s / len(r.trials) for r in results["noop", "noop"]]
    return (
        statistics.median(each),
        f"{statistics.median(each):.3f} s ({min(each):.3f} to {max(each):.3f})",
        "",
    )


def overhead_with_the_start(results: Results) -> tuple[float, str, str]:
    """The same divided by N0's, were its trials as many: their pace, and their part of its start and end."""
    count = len(results["noop", "noop"][0].trials)
    mine = statistics.median(_walls(results["noop", "noop"])) / count
    theirs = statistics.median(
        pace(r.ended) + (r.figures.wall_s - pace(r.ended) * len(r.ended)) / count
        for r in results["noop", "n0-noop"]
    )
    return mine / theirs, f"{mine / theirs:.4f} ({mine:.3f} s against {theirs:.2f} s)", ""


def pace(ended: Sequence[float]) -> float:
    """Seconds from one end of a trial to the next, without the start of the sweep."""
    moments = sorted(ended)
    return (moments[-1] - moments[0]) / (len(moments) - 1)


def overhead_against_n0(results: Results) -> tuple[float, str, str]:
    """Our pace of trials that do nothing, until MLflow has all of them, divided by N0's, which waits for MLflow."""
    mine = statistics.median(pace([*_ended(r), _delivered(r)]) for r in results["noop", "noop"])
    theirs = statistics.median(pace(r.ended) for r in results["noop", "n0-noop"])
    return mine / theirs, f"{mine / theirs:.4f} ({mine:.3f} s against {theirs:.2f} s)", ""


def last_against_first(results: Results) -> tuple[float, str, str]:
    """The last 200 trials divided by the first 200, by the journal's times."""
    ended = sorted(_ended(results["noop_2000", "noop"][0]))
    edge = min(_EDGE, len(ended) // 2)
    first, last = pace(ended[:edge]), pace(ended[-edge:])
    return last / first, f"{last / first:.3f} ({first * edge:.1f} s, {last * edge:.1f} s)", ""


def delivery(results: Results) -> tuple[float, str, str]:
    """Seconds from the end of the last trial until MLflow had everything; a pass where it had not is not stored."""
    found = results["noop_2000", "noop"][0]
    after = _delivered(found) - max(_ended(found))
    return after, f"{after:.1f} s after the last trial", ""


def two_slots(results: Results) -> tuple[float, str, str]:
    """Time from the first unit to the last result with one slot, divided by that with two."""
    one, two = ([_training_s(r) for r in results["w12", variant]] for variant in ("ours-one-slot", "ours"))
    found = table.ratio(one, two)
    return found.median, str(found), ""


def beside_a_hog(results: Results) -> tuple[float, str, str]:
    """Speed of a slot of two threads beside a busy process on its two cores, as a part of half the speed alone."""
    alone, beside = (_training_s(results["w12", v][0]) for v in ("ours-two-threads", "ours-hog"))
    kept = alone / beside / 0.5
    return kept, f"{kept:.2f} ({alone:.0f} s alone, {beside:.0f} s)", ""


def durable_writes(workload: str) -> Target:
    """Time spent on the journal and on checkpoints, as a part of the training time."""
    need = (workload, "ours")

    def value(results: Results) -> tuple[float, str, str]:
        phases = results[need][0].phases
        if phases is None:
            raise ValueError("a pass of ours has no phases")
        part = sum(phases.durable_s.values()) / phases.train_s
        spent = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in sorted(phases.durable_s.items()))
        return part, f"{part:.2%} ({spent}; training {phases.train_s:.0f} s)", ""

    return Target(workload, "journal and checkpoints, of the training time", (need,), value, 0.03)


def _ended(result: Result) -> list[float]:
    if result.phases is None:
        raise ValueError(f"{result.name} has no phases")
    return result.phases.ended


def _delivered(result: Result) -> float:
    if result.phases is None:
        raise ValueError(f"{result.name} has no phases")
    return result.phases.delivered


def _training_s(result: Result) -> float:
    if result.phases is None:
        raise ValueError(f"{result.name} has no phases")
    return max(result.phases.ended) - result.phases.started


def gpu_share(variant: str) -> Target:
    """How busy a side kept the GPU."""
    need = ("w54", variant)

    def value(results: Results) -> tuple[float, str, str]:
        uses = [r.figures.gpu for r in results[need] if r.figures.gpu is not None]
        if not uses:
            return 0.0, "not used", ""
        shown = ", ".join(
            f"{u.utilisation:.0%} of {u.busy_s:.0f} s, {u.peak_bytes / 1e9:.1f} GB" for u in uses
        )
        return uses[0].utilisation, shown, ""

    return Target("w54", f"utilisation of the GPU, {variant}", (need,), value)


def at_once(results: Results) -> tuple[float, str, str]:
    """Time from the first unit to the last result with eight work units on one GPU, divided by that with one."""
    eight, one = ([_training_s(r) for r in results["w54", f"ours-gpu-{n}"]] for n in (8, 1))
    found = table.ratio(eight, one)
    return found.median, str(found), ""


NOOP: Final = ("noop", "noop")
NOOP_2000: Final = ("noop_2000", "noop")
TARGETS: Final = (
    wall("w12", "wall, bf16, against N0, fp32", "ours", "n0"),
    wall("w12", "wall, bf16, against N3, bf16", "ours", "n3"),
    durable_writes("w12"),
    Target("noop", "overhead a trial, s", (NOOP,), overhead_of_a_trial, 0.15, floor="0.016"),
    Target("noop", "one trial more, against N0", (NOOP, ("noop", "n0-noop")), overhead_against_n0, 1 / 30),
    Target(
        "noop",
        "overhead a trial against N0, start and end included",
        (NOOP, ("noop", "n0-noop")),
        overhead_with_the_start,
    ),
    size("peak_bytes", "w12", "ours", "n0"),
    size("peak_bytes", "w12", "ours", "n3"),
)
FULL_TARGETS: Final = (
    wall("w12", "wall, bf16, against N1, bf16", "ours", "n1"),
    wall("w12", "wall, bf16, against N2, bf16", "ours", "n2"),
    wall("w12", "wall, bf16, against H, fp32", "ours", "h"),
    wall("w54", "wall, fp32, against N0, fp32", "ours-fp32", "n0", 0.25, "0.18"),
    wall("w54", "wall, bf16, against N0, fp32", "ours-bf16", "n0", 0.15, "0.09"),
    wall("w54", "wall, `epoch: best`, bf16, against N3, bf16", "ours-best", "n3", 0.6, "0.45"),
    wall("w_linear", "wall, bf16, against N0, fp32", "ours-bf16", "n0", 0.40, "0.20"),
    wall("w64", "wall, bf16, against N0, fp32", "ours", "n0", 0.01, "one forward pass"),
    equals_packed("w54"),
    near_plain("w54"),
    accuracy("w54", "ours-fp32", "n2-fp32", -1.0),
    same_winner("w54", "ours-bf16", "n0"),
    accuracy("w12", "ours", "n0"),
    accuracy("w12", "ours", "n2"),
    accuracy("w_linear", "ours-bf16", "n0"),
    accuracy("w64", "ours", "n0"),
    wall("w54", "wall, bf16, against our own fp32", "ours-bf16", "ours-fp32"),
    size("checkpoint_bytes", "w54", "ours-fp32", "n0", 0.02, "0.002"),
    size("written_bytes", "w54", "ours-fp32", "n0"),
    size("peak_bytes", "w54", "ours-fp32", "n0"),
    size("peak_bytes", "w54", "ours-best", "n3"),
    Target("noop_2000", "last 200 against first 200", (NOOP_2000,), last_against_first, 1.2, floor="1.0"),
    Target("noop_2000", "MLflow has all of it", (NOOP_2000,), delivery),
    Target(
        "w12",
        "two slots against one",
        (("w12", "ours-one-slot"), ("w12", "ours")),
        two_slots,
        1.7,
        at_least=True,
        floor="2",
    ),
    Target(
        "w12",
        "fair half kept beside a hog",
        (("w12", "ours-two-threads"), ("w12", "ours-hog")),
        beside_a_hog,
        0.8,
        at_least=True,
        floor="1",
    ),
    durable_writes(QUICK_SWEEP),
    wall("w54", "all switches on, fp32, against all off", "ours-fp32", "plain-fp32"),
    *(wall(lever.workload, f"with {lever.name}, against without", *lever.variants) for lever in LEVERS),
)
GPU_TARGETS: Final = (
    wall("w54", "wall, bf16, 8 at once, against N0, fp32, 8 at once", "ours-gpu-8", "n0-gpu-8"),
    wall("w54", "wall, bf16, 8 at once, against N3, bf16, 8 at once", "ours-gpu-8", "n3-gpu-8"),
    wall("w54", "wall, 8 at once against one at a time", "ours-gpu-8", "ours-gpu-1"),
    Target(
        "w54", "search alone, 8 at once against one", (("w54", "ours-gpu-8"), ("w54", "ours-gpu-1")), at_once
    ),
    same_winner("w54", "ours-gpu-8", "n0-gpu-8"),
    *(gpu_share(variant) for variant in ("ours-gpu-8", "ours-gpu-1", "n3-gpu-8", "n0-gpu-8")),
)
