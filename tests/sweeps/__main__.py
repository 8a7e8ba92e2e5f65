"""`python -m tests.sweeps`: runs the sweeps that ship, uses what they promoted, and prints what they reached.

What is done is kept, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from finetune_sweep.durable import write_atomic
from finetune_sweep.markdown import table
from tests.sweeps.aims import AIMS, Done
from tests.sweeps.use import use

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SWEEPS: Final = ROOT / "sweeps"
HEAD: Final = (
    "sweep",
    "seconds",
    "metric",
    "value",
    "aimed at",
    "met",
    "the promoted model, loaded again, said",
)


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing, and prints the table.

    Returns:
        0, or 1 if a sweep failed or missed its aim.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.sweeps", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(AIMS), help="sweeps; all of them by default")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sweeps", help="where all of it is kept")
    options = parser.parse_args(arguments)
    rows = [row(name, options.work.absolute()) for name in options.names]
    left_out = sorted(
        f.stem for f in SWEEPS.glob("*.yaml") if f.stem not in AIMS and not f.stem.endswith("_hub")
    )
    sys.stdout.write(f"{table(HEAD, rows)}\n\nNot run, as they take longer: {', '.join(left_out)}.\n")
    return int(any(row[5] != "yes" for row in rows))


def row(name: str, work: Path) -> tuple[str, ...]:
    """One line of the table: as it was kept, or from a run."""
    kept = work / f"{name}.json"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        found = _run(name, work)
        if found[5] == "failed":
            return found
        write_atomic(kept, json.dumps(found).encode())
    return tuple(json.loads(kept.read_bytes()))


def _run(name: str, work: Path) -> tuple[str, ...]:
    """Runs a sweep, and looks at what came of it. One that was stopped goes on; its seconds are added up."""
    clock = work / f"{name}.seconds"
    before = float(clock.read_text()) if clock.is_file() else 0.0
    started = time.monotonic()
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name} ...\n")
    command = [sys.executable, "-m", "finetune_sweep", "run", str(SWEEPS / f"{name}.yaml")]
    try:
        with (work / f"{name}.log").open("ab") as log:
            code = subprocess.run(
                [*command, "--storage", str(work)], cwd=ROOT, stdout=log, stderr=log, check=False
            ).returncode
    finally:
        seconds = before + time.monotonic() - started
        clock.write_text(str(seconds))
    if code:
        return name, f"{seconds:.0f}", "", "", "", "failed", f"exit code {code}, see {work / f'{name}.log'}"
    done = Done(SWEEPS / f"{name}.yaml", work)
    found = [aim(done) for aim in AIMS[name]]
    return (
        name,
        f"{seconds:.0f}",
        "; ".join(each.metric for each in found),
        "; ".join(f"{each.value:.4g}" for each in found),
        "; ".join(each.aim for each in found),
        "yes" if all(each.met for each in found) else "no",
        use(done.layout.best, done.plan.sweep.task, done.plan.sweep.data.max_length),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
