"""Faults in a row on one sweep: each in a session of its own, then a session that has to survive one and to end.

So a fault costs a session and not a whole sweep. What is found wrong after a fault is put down to it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from threading import Lock
from typing import Final

from finetune_sweep.record import replay
from tests.chaos import invariants
from tests.chaos.faults import AFTER, ENDING, SURVIVED, Case, Place
from tests.chaos.points import Undisturbed
from tests.chaos.proxy import Proxy, served
from tests.chaos.scene import MOMENT, Scene

LONGEST: Final = 4
"""Sessions that are ended, of one sweep."""
TMPFS: Final = "size=24m"
COMPLETED: Final = "run on to the end"
"""The row of a session in which nothing happens to a sweep that much has happened to."""


@dataclass(frozen=True)
class Row:
    """One fault that was tried: whether it came in mid-work, and what was wrong after it."""

    fault: str
    seed: int
    fired: bool
    violations: tuple[str, ...] = ()


@dataclass
class Journal:
    """What was tried so far, a line each in a file, so that a run goes on where it was interrupted."""

    file: Path
    rows: list[Row] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if self.file.exists():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            known = [json.loads(line) for line in lines]
            self.rows = [Row(r["fault"], r["seed"], r["fired"], tuple(r["violations"])) for r in known]

    def add(self, row: Row) -> None:
        """Notes what was tried."""
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            self.rows.append(row)
            file.write(json.dumps(asdict(row)) + "\n")

    def fired(self, fault: str) -> int:
        """How often a fault came in mid-work."""
        return sum(row.fired for row in self.rows if row.fault == fault)

    def tried(self, fault: str) -> int:
        """How often it was tried."""
        return sum(row.fault == fault for row in self.rows)


@dataclass
class Ground:
    """Where chains are run.

    Args:
        work: For the sweeps; one whose last fault was followed by violations stays there.
        base: What they share.
        known: The undisturbed run.
        lock_s: How long a database is locked.
        proxy: In front of MLflow's server; started when it is first needed.
    """

    work: Path
    base: Path
    known: Undisturbed
    lock_s: float
    proxy: Proxy | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def server(self) -> Proxy:
        """MLflow's server, behind its proxy; one for all sweeps."""
        if self.proxy is None:
            self.proxy = self.stack.enter_context(served(self.work / "mlflow-server"))
        return self.proxy


@contextmanager
def case_for(ground: Ground, place: Place, seed: int) -> Iterator[Case]:
    """A fresh sweep at its place, deleted afterwards unless something was wrong."""
    folder = ground.work / f"sweep-{seed}-{time.time_ns() // 10**6 % 10**8}"  # new also if a seed comes again
    proxy = ground.server() if place == "server" else None
    with ExitStack() as stack:
        storage = stack.enter_context(_small_disk(folder)) if place == "tmpfs" else None
        uri = proxy.uri if proxy is not None else ""
        scene = Scene(folder, ground.base, MOMENT, uri=uri, storage=storage)
        case = Case(scene, Random(seed), ground.known.seconds, ground.lock_s, proxy)
        yield case
        if case.wrong and storage is not None:
            shutil.copytree(storage, folder / "disk")
        scene.close(keep=bool(case.wrong))


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    disk = folder.with_name(folder.name + "-disk")
    disk.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", TMPFS, "none", str(disk)], check=True)  # noqa: S607
    try:
        yield disk / "runs"  # MLflow keeps artifacts beside it
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607
        disk.rmdir()


def can_mount() -> bool:
    """Whether this process may mount a disk of its own."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@dataclass
class Chain:
    """One sweep and what happens to it, in order."""

    ground: Ground
    case: Case
    seed: int
    before: invariants.Before = field(default_factory=invariants.Before)

    def rows(self, endings: Sequence[str], survived: str | None, afterwards: Sequence[str]) -> Iterator[Row]:
        """Each fault as it was tried. A sweep that is complete too early leaves the rest untried."""
        scene = self.case.scene
        done = False
        for name in endings:
            yield self._tried(name, lambda name=name: ENDING[name].inject(self.case))  # type: ignore[misc]
            done = scene.code == 0
            if done:
                break
        if done:
            yield Row(COMPLETED, self.seed, fired=True, violations=tuple(self._completed()))
            return
        yield self._to_the_end(survived)
        for name in afterwards if scene.code == 0 else ():
            row = self._tried(name, lambda name=name: AFTER[name].inject(self.case))  # type: ignore[misc]
            found = [*row.violations, *self._completed()]
            yield Row(row.fault, row.seed, row.fired, tuple(found))

    def _to_the_end(self, survived: str | None) -> Row:
        """The last session, and more of them where it may end with another code than 0."""
        scene, name = self.case.scene, survived or COMPLETED
        codes = SURVIVED[survived].codes if survived is not None else frozenset({0})

        def last() -> bool:
            session = scene.start()
            fired = SURVIVED[survived].inject(self.case, session) if survived is not None else True
            code = session.wait()
            if code not in codes:
                self.case.wrong.append(f"the session ended with {code}: {scene.last_words()}")
            if code != 0 and (code := scene.run()) != 0:
                self.case.wrong.append(f"the run after it ended with {code}: {scene.last_words()}")
            return fired

        row = self._tried(name, last)
        return Row(row.fault, row.seed, row.fired, (*row.violations, *self._completed()))

    def _tried(self, name: str, action: Callable[[], bool]) -> Row:
        self.case.wrong.clear()
        self.case.most_again = 1
        scene = self.case.scene
        try:
            fired = action()
        except TimeoutError as error:
            fired = True
            self.case.wrong.append(str(error))
        except Exception as error:  # noqa: BLE001 - the other faults are tried all the same, and this one is told
            fired = False
            self.case.wrong.append(f"the harness failed: {type(error).__name__}: {error}")
            scene.end_processes(0.0)
        entries = scene.entries()
        before = replace(self.before, has_room=name != "disk full")
        found = invariants.after_a_session(scene.code, entries, before, self.ground.known.results)
        is_whole = self.before.most_again == 1
        self.before = invariants.Before(
            invariants.results(replay(entries)),
            len(entries),
            self.case.most_again,
            self.before.whole_since if is_whole else self.before.entries,
        )
        return Row(name, self.seed, fired, (*self.case.wrong, *found))

    def _completed(self) -> list[str]:
        scene = self.case.scene
        if scene.code != 0:
            return []
        found = invariants.of_a_complete_sweep(*scene.place, scene.entries(), self.ground.known.results)
        found += invariants.no_process(scene.end_processes())
        found += [] if scene.is_watched() else ["the seam was not there"]
        self.case.wrong += found
        return found


def compose(needed: Counter[str], rng: Random) -> tuple[Place, list[str], str | None, list[str]]:
    """The next chain: a place, and the faults that it can have of those that are still needed, most needed first."""

    def most(names: Sequence[str]) -> list[str]:
        wanted = [name for name in names if needed[name] > 0]
        return sorted(wanted, key=lambda name: (-needed[name], rng.random()))

    survived = most(list(SURVIVED))
    last = survived[0] if survived else None
    place: Place = SURVIVED[last].place if last is not None else "any"
    if place == "any" and any(ENDING[name].place == "tmpfs" for name in most(list(ENDING))):
        place = "tmpfs"
    here = [name for name in most(list(ENDING)) if ENDING[name].place in {"any", place}]
    return place, rng.sample(here[:LONGEST], len(here[:LONGEST])), last, most(list(AFTER))[:1]


@dataclass(frozen=True)
class Drawn:
    """By what chains are drawn, and how long.

    Args:
        seed: Of all that is random.
        is_late: Whether no new one is begun.
    """

    seed: int
    is_late: Callable[[], bool]


def run(
    ground: Ground, journal: Journal, goals: Counter[str], drawn: Drawn, say: Callable[[str], None]
) -> None:
    """Chains until every fault came so often in mid-work, or was tried three times as often, or it is late."""
    number = 0
    while True:
        needed = Counter(
            {
                name: goal - journal.fired(name)
                for name, goal in goals.items()
                if journal.fired(name) < goal and journal.tried(name) < 3 * goal + 2
            }
        )
        if not needed or drawn.is_late():
            return
        number += 1
        own_seed = drawn.seed * 1_000_000 + len(journal.rows) * 100 + number
        place, endings, survived, afterwards = compose(needed, Random(own_seed))
        with case_for(ground, place, own_seed) as case:
            for row in Chain(ground, case, own_seed).rows(endings, survived, afterwards):
                journal.add(row)
                say(
                    f"{row.fault}: {'fired' if row.fired else 'not fired'} {'; '.join(row.violations)}".strip()
                )
                if row.violations:
                    case.wrong += row.violations
