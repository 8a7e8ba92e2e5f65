"""Every durable operation of a small sweep as a point to kill at, each met once.

An undisturbed run and a promotion of another trial list the points. Then sweeps are killed at the first point of the
list that they come to and that was not met before, and run again, until no point is left or none is met any more.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from finetune_sweep.record import replay
from tests.chaos import invariants
from tests.chaos.scene import POINT, Scene

ONE_SLOT: Final = "max_concurrent: 1\n"
"""So that the order of the operations is the same in each run."""
_ALONE: Final = 0.2
"""How often a worker that comes to its point dies without the driver, whose session then goes on for a minute."""
MOST_KILLS: Final = 40
"""Of one sweep, which then goes on to its end and is looked at whole."""


@dataclass(frozen=True)
class Course:
    """What a sweep goes through that is killed on the way; in the end its second trial is promoted.

    Args:
        fault: The row of the table.
        name: Of the file in which its points are kept.
        extra: More lines of the sweep file.
    """

    fault: str
    name: str
    extra: str


SEARCH: Final = Course("killed at a durable operation", "points", ONE_SLOT)
FINALISTS: Final = Course(
    "killed at an operation with finalists",
    "points-with-finalists",
    ONE_SLOT + "selection: {finalists: 1, seeds: 2}\n",
)


@dataclass(frozen=True)
class Met:
    """A session that was killed at points, or the end of a sweep; with what was found wrong after it."""

    points: tuple[str, ...]
    violations: tuple[str, ...]


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to.

    Args:
        points: Its durable operations, in order, each once.
        results: What each trial came to.
        seconds: Its length, from the first event in the journal to the last.
    """

    points: tuple[str, ...]
    results: invariants.Results
    seconds: float


def second(scene: Scene) -> str:
    """The key of the trial that is promoted after the winner, so that `best/` is replaced."""
    return replay(scene.entries()).ranking()[1].key


def undisturbed(scene: Scene, *, with_second: bool) -> Undisturbed:
    """Runs a sweep, and promotes its second trial if that is asked for.

    Raises:
        RuntimeError: If even that does not end well.
    """
    code = scene.run()
    entries = scene.entries()
    results = invariants.results(replay(entries))
    found = invariants.of_a_complete_sweep(*scene.place, entries, results) if not code else []
    if code or found:
        raise RuntimeError(f"an undisturbed run ended with {code}: {found} {scene.last_words()}")
    if with_second and scene.run("--trial", second(scene), command="promote"):
        raise RuntimeError(f"an undisturbed promotion failed: {scene.last_words()}")
    labels = dict.fromkeys(str(line["label"]) for line in scene.operations())
    return Undisturbed(tuple(labels), results, entries[-1].time - entries[0].time)


def sample(points: Sequence[str], count: int, rng: Random) -> list[str]:
    """Points of as many kinds as there is room for; the kind is who does what."""
    kinds: dict[str, list[str]] = {}
    for point in rng.sample(list(points), len(points)):
        kinds.setdefault(" ".join(point.split()[:2]), []).append(point)
    chosen = rng.sample(list(kinds), min(count, len(kinds)))
    return [kinds[kind][0] for kind in chosen]


def cover(
    ground: tuple[Path, Path], course: Course, points: Sequence[str], known: Undisturbed, rng: Random
) -> Iterator[Met]:
    """Kills at points until each was met, or a whole sweep has met none of the rest.

    Args:
        ground: Where to work, and what all sweeps share.
        course: What each sweep goes through.
        points: Those that are left.
        known: The run that nothing happened to.
        rng: Draws which worker dies alone.
    """
    work, base = ground
    left = dict.fromkeys(points)
    number = 0
    while left:
        number += 1
        count = len(left)
        scene = Scene(
            work / f"{course.name}-{number}-{rng.randrange(10**6)}", base, POINT, extra=course.extra
        )
        is_wrong = False
        for met in _one_sweep(scene, left, known, rng):
            for point in met.points:
                left.pop(point, None)
            is_wrong = is_wrong or bool(met.violations)
            yield met
        scene.close(keep=is_wrong)
        if len(left) == count:
            return


def _one_sweep(scene: Scene, left: dict[str, None], known: Undisturbed, rng: Random) -> Iterator[Met]:
    """Sessions over one sweep: killed, killed again, complete; then the promotion of its second trial, likewise."""
    steps: list[str] = ["run", "promote"]
    before, reigning = invariants.Before(), invariants.Champion()
    killed: list[str] = []
    while steps:
        scene.points = list(left) if len(killed) < MOST_KILLS else []
        scene.kill_workers_alone = rng.random() < _ALONE
        seen = len(killed)
        arguments = ("--trial", second(scene)) if steps[0] == "promote" else ()
        code = scene.run(*arguments, command=steps[0])
        killed = scene.killed_at()
        entries = scene.entries()
        found = invariants.after_a_session(code, entries, before, known.results)
        before = invariants.Before(invariants.results(replay(entries)), len(entries))
        now, wrong = invariants.champion(*scene.place)
        found += wrong + invariants.keeps_a_champion(reigning, now)
        reigning = now
        if code not in {0, -signal.SIGKILL}:
            found.append(f"a session ended with {code}: {scene.last_words()}")
        if code == 0:
            found += invariants.of_a_complete_sweep(*scene.place, entries, known.results)
            steps.pop(0)
        if not steps:
            found += invariants.no_process(scene.end_processes())
            found += [] if scene.is_watched() else ["the seam was not there"]
        yield Met(tuple(killed[seen:]), tuple(f"{scene.folder.name}: {text}" for text in found))
        if code not in {0, -signal.SIGKILL}:
            return
