"""`python -m benchmarks`: runs the passes that are missing, and prints what they say."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from benchmarks.passes import PassFailed, Result, Store, source_of
from benchmarks.suite import BENCH, FULL, GPU, ROOT, Entry, Pass, in_turns
from benchmarks.table import Results, Target, render
from benchmarks.targets import FULL_TARGETS, GPU_TARGETS, TARGETS
from finetune_sweep.train import hardware

PASS_HEADER = (
    "pass",
    "started",
    "wall s",
    "search s",
    "after it s",
    "CPU s",
    "peak PSS MB",
    "written MB",
    "checkpoints MB",
    "others, cores",
    "trials",
)
ROW_HEADER = ("workload", "what", "ours / theirs: median (range)", "CPU", "target", "floor", "verdict")
SUITES: Final[Mapping[str, tuple[Sequence[Entry], Sequence[Target]]]] = {
    "bench": (BENCH, TARGETS),
    "full": (FULL, (*TARGETS, *FULL_TARGETS)),
    "gpu": (GPU, GPU_TARGETS),
}


def main(arguments: Sequence[str]) -> int:
    """Runs, and prints the tables.

    Returns:
        0, or 1 if a pass failed; a missed target is no failure of the benchmark.
    """
    options = _parser().parse_args(arguments)
    if options.any_source and not options.table:
        _parser().error("--any-source is for --table alone")
    signal.signal(signal.SIGTERM, _interrupt)
    entries, targets = SUITES["gpu" if options.gpu else "full" if options.full else "bench"]
    store = Store(options.work, options.results, options.set, options.attempts, any_source=options.any_source)
    passes = [p for p in in_turns(entries) if not options.only or _is_wanted(p, options.only)]
    failed = 0
    for number, which in enumerate(passes if not options.table else [], 1):
        while not store.is_done(which):
            try:
                _tell(f"{time.strftime('%H:%M:%S')} {number}/{len(passes)} {which.name} ...")
                _tell(_summary(store.run(which)))
            except PassFailed as error:
                _tell(str(error))
                failed += 1
                break
    _tell("\n" + report(store, entries, targets))
    return 1 if failed else 0


def report(store: Store, entries: Sequence[Entry], targets: Sequence[Target]) -> str:
    """The table of all passes, and that of the targets, of what is stored."""
    found = [
        _cells(result, is_current=result.source == source_of(which))
        for which in in_turns(entries)
        if (result := store.result(which)) is not None
    ]
    machine = ", ".join(f"{name} {value}" for name, value in hardware.describe().items())
    lines = [f"Measured on: {machine}", "", render(PASS_HEADER, found), ""]
    rows = [target.row(collect(store, entries)) for target in targets]
    cells = [(r.workload, r.what, r.value, r.cpu, r.target, r.floor, r.verdict) for r in rows]
    return "\n".join([*lines, render(ROW_HEADER, cells)])


def collect(store: Store, entries: Sequence[Entry]) -> Results:
    """The attempt that counts of each stored pass, by workload and variant."""
    results: dict[tuple[str, str], list[Result]] = {}
    for which in in_turns(entries):
        result = store.result(which)
        if result is not None:
            results.setdefault((which.workload, which.variant), []).append(result)
    return results


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends as Ctrl-C does: with the processes of the pass."""
    raise KeyboardInterrupt


def _is_wanted(which: Pass, only: Sequence[str]) -> bool:
    return any(which.name == name or which.name.startswith(f"{name}.") for name in only)


def _cells(result: Result, *, is_current: bool) -> tuple[str, ...]:
    f = result.figures
    sizes = (f.peak_bytes, f.written_bytes, f.checkpoint_bytes)
    busy = f"{f.others_cores:.2f}{'' if result.is_quiet else ' noisy'}"
    trials = str(len(result.trials) or len(result.ended))
    return (
        f"{result.name}{'' if is_current else ' *'}",
        result.started,
        f"{f.wall_s:.1f}",
        *_phases(result),
        f"{f.cpu_s:.1f}",
        *(f"{size / 1e6:.0f}" for size in sizes),
        busy,
        trials,
    )


def _phases(result: Result) -> tuple[str, str]:
    """Of our own side: from the first unit to the last result, and on to the session's end."""
    if result.phases is None:
        return "", ""
    last = max(result.phases.ended)
    return f"{last - result.phases.started:.1f}", f"{result.phases.delivered - last:.1f}"


def _summary(result: Result) -> str:
    f = result.figures
    word = "" if result.is_quiet else "; noisy: no ratio is made of it"
    return f"  {f.wall_s:.1f} s, {f.cpu_s:.1f} s of CPU; others used {f.others_cores:.2f} cores{word}"


def _tell(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--gpu", action="store_true", help="W54 on a machine with one GPU, some ten minutes")
    which.add_argument(
        "--full", action="store_true", help="all workloads, hours on two cores; goes on where it was"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a workload, w12, or a side of it, w12.n0"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, print what is stored")
    parser.add_argument(
        "--any-source", action="store_true", help="with --table: also what an earlier source gave, marked *"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "work", help="where passes work")
    parser.add_argument(
        "--results",
        type=Path,
        help="where their results are kept, by default below --work; those of the documents: benchmarks/results",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change every workload, to try"
    )
    parser.add_argument("--attempts", type=int, default=2, help="at a pass, until the machine is quiet")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
