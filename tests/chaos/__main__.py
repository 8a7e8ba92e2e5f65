"""`make chaos` and `make chaos-all`: kills a sweep in all ways that are known, and prints what came of it.

    python -m tests.chaos [--all] [--work DIR] [--seed N] [--only FAULT ...] [--part K/N] [--fresh]

What was done is kept in DIR, so that a run that was interrupted goes on; --fresh forgets it. Machines that share the
list of operations each take a part, into a folder of their own; their `rows.jsonl` in one file are the whole. Exit
code 1: a violation, a fault that never came in mid-work or for which no time was left, or a control that holds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.chaos import chains, control, fuzz, points, table
from tests.chaos.alone import ALONE
from tests.chaos.chains import Drawn, Ground, Journal, Row
from tests.chaos.faults import AFTER, ENDING, SURVIVED
from tests.chaos.points import Course, Undisturbed
from tests.chaos.scene import MOMENT, POINT, Length, Scene, build_base

FUZZED: Final = "fuzzed YAML"
HOSTILE: Final = "hostile YAML"
AFTERWARDS: Final = ": after"
"""What stands behind a course's name in the rows of what was found wrong."""


@dataclass(frozen=True)
class Size:
    """How much is tried.

    Args:
        courses: In which sweeps are killed at an operation; of a later one only those that none before it has.
        points: Of each list; None for all of them.
        runs: Of each random fault.
        alone: Of each fault that needs a sweep of its own.
        lock_s: How long a database is locked.
        fuzzed: Sweep files that are made up.
        minutes: After which nothing new is begun; what was not reached is not in the sample.
    """

    courses: Sequence[Course]
    points: int | None
    runs: int
    alone: int
    lock_s: float
    fuzzed: int
    minutes: float = math.inf


QUICK: Final = Size((points.FINALISTS,), points=3, runs=1, alone=1, lock_s=8.0, fuzzed=2000, minutes=18.0)
ALL: Final = Size((points.SEARCH, points.FINALISTS), points=None, runs=60, alone=60, lock_s=60.0, fuzzed=2000)


@dataclass
class Run:
    """One run of the harness."""

    work: Path
    size: Size
    seed: int
    only: Sequence[str]
    part: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.work / "rows.jsonl")
        self.began = time.monotonic()
        self.notes: dict[str, str] = {}
        self.missed: list[str] = []

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text[:400]}", flush=True)  # noqa: T201

    def is_late(self) -> bool:
        """Whether nothing new is begun."""
        return time.monotonic() - self.began > 60.0 * self.size.minutes

    def is_wanted(self, fault: str) -> bool:
        """Whether a fault was asked for."""
        return any(text in fault for text in self.only)

    def carry_out(self) -> None:
        """Everything that was asked for and is not done yet, in two lanes: a session waits more than it computes."""
        base = self.work / "base"
        build_base(base)
        faults = [*ENDING, *SURVIVED, *AFTER]
        goals = Counter({name: self.size.runs for name in faults if self.is_wanted(name)})
        if "disk full" in goals and not chains.can_mount():
            del goals["disk full"]
            self.notes["disk full"] = "skipped: a disk of its own needs root"
        alone = [name for name in ALONE if self.is_wanted(name)]
        known = self.reference("moments", MOMENT) if goals or alone else None
        with ThreadPoolExecutor(2) as lanes:
            both = [lanes.submit(self.sweeps_of_their_own, base, alone, known)]
            both.append(lanes.submit(self.many_to_a_sweep, base, goals, known))
        for lane in both:
            lane.result()
        for name in (*goals, *alone):
            if self.is_late() and not self.journal.tried(name):
                self.missed.append(name)

    def sweeps_of_their_own(self, base: Path, alone: Sequence[str], known: Undisturbed | None) -> None:
        """The first lane: each operation, what is tried without protection, and faults that need a sweep each."""
        self.points(base)
        self.controls()
        if known is not None:
            ground = Ground(self.work, base, known, self.size.lock_s)
            for name in Random(self.seed).sample(alone, len(alone)):
                self.alone(name, ground)

    def many_to_a_sweep(self, base: Path, goals: Counter[str], known: Undisturbed | None) -> None:
        """The second lane: sweep files, and faults at random moments, several to each sweep."""
        self.yaml()
        if goals and known is not None:
            ground = Ground(self.work, base, known, self.size.lock_s)
            with ground.stack:
                chains.run(ground, self.journal, goals, Drawn(self.seed, self.is_late), self.say)

    def points(self, base: Path) -> None:
        """Every point of each course once, or a sample of them."""
        listed: set[str] = set()
        for course in self.size.courses:
            if self.is_wanted(course.fault):
                known = self.reference(course.name, POINT, course)
                self.kill_at(course, [point for point in known.points if point not in listed], known, base)
                listed |= set(known.points)

    def reference(self, name: str, length: Length, course: Course | None = None) -> Undisturbed:
        """The undisturbed run, made once a work folder."""
        file = self.work / f"{name}.json"
        if not file.exists():
            self.say(f"an undisturbed run ({name})")
            extra = course.extra if course is not None else ""
            scene = Scene(self.work / name, self.work / "base", length, extra=extra)
            found = points.undisturbed(scene, with_second=course is not None)
            scene.close(keep=False)
            file.write_text(
                json.dumps({"points": found.points, "results": found.results, "seconds": found.seconds})
            )
        content = json.loads(file.read_text(encoding="utf-8"))
        results = {key: _tuples(value) for key, value in content["results"].items()}
        return Undisturbed(tuple(content["points"]), results, content["seconds"])

    def yaml(self) -> None:
        """Sweep files that nobody meant."""
        if self.is_wanted(FUZZED) and not self.journal.tried(FUZZED):
            self.say(f"{self.size.fuzzed} fuzzed files")
            wrong = fuzz.fuzz(self.work / "fuzz", self.size.fuzzed, self.seed)
            for _ in range(self.size.fuzzed - max(1, len(wrong))):
                self.journal.add(Row(FUZZED, self.seed, fired=True))
            for text in wrong or [""]:
                self.journal.add(Row(FUZZED, self.seed, fired=True, violations=(text,) if text else ()))
        if self.is_wanted(HOSTILE) and not self.journal.tried(HOSTILE):
            folder = self.work / "hostile" / "corpus"
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
            count, wrong = fuzz.attack(folder)
            for at in range(count):
                self.journal.add(Row(HOSTILE, self.seed, fired=True, violations=() if at else tuple(wrong)))

    def controls(self) -> None:
        """The same without protection."""
        for name, violate in control.CONTROLS.items():
            if self.is_wanted(name) and not self.journal.tried(name):
                wrong = violate(self.work)
                self.journal.add(Row(name, self.seed, fired=True, violations=tuple(wrong)))
                self.say(f"{name}: {len(wrong)} violations, as it must")

    def alone(self, name: str, ground: Ground) -> None:
        """A fault with sweeps of its own."""
        goal = self.size.alone
        while (
            self.journal.fired(name) < goal and self.journal.tried(name) < 2 * goal + 1 and not self.is_late()
        ):
            seed = self.seed * 1_000_000 + self.journal.tried(name)
            try:
                row = ALONE[name](ground, seed)
            except Exception as error:  # noqa: BLE001 - the other faults are tried all the same, and this one is told
                wrong = f"the harness failed: {type(error).__name__}: {error}"
                row = Row(name, seed, fired=False, violations=(wrong,))
            if row is None:
                self.notes[name] = "skipped: not possible here"
                return
            self.journal.add(row)
            self.say(f"{name}: {'fired' if row.fired else 'not fired'} {'; '.join(row.violations)}")

    def kill_at(self, course: Course, listed: Sequence[str], known: Undisturbed, base: Path) -> None:
        """Every point of the list once, or a sample of them."""
        rng = Random(self.seed)
        number, parts = self.part
        chosen = listed if self.size.points is None else points.sample(listed, self.size.points, rng)
        chosen = chosen[number - 1 :: parts]
        names = {f"{course.fault}: {point}": point for point in chosen}
        left = [point for name, point in names.items() if not self.journal.fired(name)]
        self.say(f"{course.fault}: {len(left)} of {len(listed)} are left")
        rng = Random(self.seed + len(left))
        for met in points.cover((self.work, base), course, left, known, rng):
            for point in met.points:
                self.journal.add(Row(f"{course.fault}: {point}", self.seed, fired=True))
                self.say(f"killed at {point}")
            if met.violations:
                self.say("; ".join(met.violations))
                self.journal.add(
                    Row(f"{course.fault}{AFTERWARDS}", self.seed, fired=False, violations=met.violations)
                )
        for name in names:
            if not self.journal.fired(name):
                self.journal.add(Row(name, self.seed, fired=False))

    def outcome(self) -> list[table.Line]:
        """What there is to print: the points of a course as one line."""
        wanted = [
            row for row in self.journal.rows if self.is_wanted(row.fault) or row.fault == chains.COMPLETED
        ]
        courses = tuple(course.fault for course in self.size.courses)
        found = [self._line(fault) for fault in courses]
        others = table.lines(row for row in wanted if not row.fault.startswith(courses))
        notes = [table.Line(name, note=note) for name, note in self.notes.items()]
        late = [table.Line(name, note="no time was left", missed=[name]) for name in self.missed]
        return [*(line for line in found if line.runs), *others, *notes, *late]

    def _line(self, fault: str) -> table.Line:
        """The points of a course."""
        rows = [row for row in self.journal.rows if row.fault.startswith(fault)]
        tried = {row.fault for row in rows} - {fault + AFTERWARDS}
        fired = {row.fault for row in rows if row.fired}
        wrong = [text for row in rows for text in row.violations]
        # What MLflow is called with depends on what there is to tell at that moment.
        missed = [name for name in sorted(tried - fired) if "mlflow." not in name]
        return table.Line(fault, len(tried), len(fired), wrong, table.EACH_ONCE, missed)


def _tuples(value: object) -> object:
    """Results as they were before they became JSON."""
    told, epochs, best_epoch, score = value  # type: ignore[misc]
    return ([tuple(each) for each in told], epochs, best_epoch, score)  # type: ignore[has-type]


def main() -> int:
    """Runs what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every point, and 60 runs of each random fault")
    parser.add_argument("--work", type=Path, help="where it works and keeps what was done (runs/chaos)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="only faults whose name holds one of these texts"
    )
    parser.add_argument(
        "--part",
        default="1/1",
        help="K/N: every Nth operation from the Kth on, for machines that share the list",
    )
    parser.add_argument("--fresh", action="store_true", help="forgets what was done in the folder")
    options = parser.parse_args()
    work: Path = (options.work or Path("runs") / ("chaos-all" if options.all else "chaos")).absolute()
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    number, _, parts = options.part.partition("/")
    size = ALL if options.all else QUICK
    run = Run(work, size, options.seed, options.only, (int(number), int(parts)))
    run.carry_out()
    lines = run.outcome()
    print(table.render(lines))  # noqa: T201
    reasons = table.failed(lines)
    for reason in reasons:
        print(f"FAILED {reason}", file=sys.stderr)  # noqa: T201
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
