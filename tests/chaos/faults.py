"""What can happen to a sweep, each as a function that makes it happen at a random moment of a real run.

A fault says whether it came in the middle of the work. What it sees that must not be, it notes in the case.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Literal

from finetune_sweep.events import TrialEnded, UnitStarted
from finetune_sweep.lock import read_owner
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.scene import ROOT, Scene, Session

STOP_S: Final = 30.0
"""How long a signal may take to end a session."""
MOST_EVALUATIONS: Final = 15
"""Of a session, before a fault: a sweep has 80, enough for several faults."""
REFUSED_S: Final = 120.0


@dataclass
class Case:
    """One sweep that faults happen to, one after the other.

    Args:
        scene: The sweep.
        rng: Draws moments and places.
        length_s: Of an undisturbed run.
        lock_s: How long a database is locked.
        proxy: In front of MLflow; None where MLflow is a database.
        wrong: What was seen that must not be.
        most_again: Epochs that a unit may have to train again in the next session; None for all.
    """

    scene: Scene
    rng: Random
    length_s: float
    lock_s: float
    proxy: Proxy | None = None
    wrong: list[str] = field(default_factory=list)
    most_again: int | None = 1

    def moment(self, session: Session) -> bool:
        """Waits for a random moment of a session; whether it is at work then.

        Most moments lie in the training, the others anywhere in the length of a run.
        """
        if self.rng.random() < 0.6:
            session.until_training(self.rng.randint(1, MOST_EVALUATIONS))
            time.sleep(self.rng.uniform(0.0, 0.2))
        else:
            session.until_at_work()
            deadline = time.monotonic() + self.rng.uniform(0.0, self.length_s)
            while time.monotonic() < deadline and session.is_running:
                time.sleep(0.05)
        return session.is_at_work()


# ------------------------------------------------------------------------------------- what ends a session


def driver_killed(case: Case) -> bool:
    """SIGKILL of the driver."""
    session = case.scene.start()
    is_hit = case.moment(session)
    session.signal(signal.SIGKILL)
    return session.wait() == -signal.SIGKILL and is_hit


def stopped_by(number: signal.Signals) -> Callable[[Case], bool]:
    """A signal that asks the driver to stop."""

    def fault(case: Case) -> bool:
        session = case.scene.start()
        is_hit = case.moment(session)
        began = time.monotonic()
        session.signal(number)
        code = session.wait()
        took_s = time.monotonic() - began
        if is_hit and code not in {0, 130}:
            case.wrong.append(f"{number.name} ended the session with {code}: {case.scene.last_words()}")
        case.most_again = 0  # where it stood was stored
        if is_hit and took_s > STOP_S:
            case.wrong.append(f"after {number.name} it went on for {took_s:.0f} s")
        return is_hit and code != 0  # with 0 it was done before the signal came

    return fault


def disk_full(case: Case) -> bool:
    """Another program takes all that is free on the sweep's disk."""
    session = case.scene.start()
    is_hit = session.until_training(case.rng.randint(1, MOST_EVALUATIONS))
    filler = case.scene.layout.storage.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    code = session.wait()
    filler.unlink()
    words = case.scene.last_words()
    if code == 0:
        return False
    if code != 1 or "the disk is full" not in words or "Traceback" in words:
        case.wrong.append(f"a full disk ended the session with {code}: {words}")
    return is_hit


def _killed_in_training(case: Case, reached: Callable[[Session], bool] | None = None) -> bool:
    session = case.scene.start()
    count = case.rng.randint(3, MOST_EVALUATIONS)
    is_hit = reached(session) if reached is not None else session.until_training(count)
    is_hit = is_hit and session.is_at_work()
    session.signal(signal.SIGKILL)
    is_hit = session.wait() == -signal.SIGKILL and is_hit
    case.scene.end_processes(5.0)  # a worker that still writes would mend what is damaged next
    return is_hit


def damage(path: Path, how: str, rng: Random) -> None:
    """Does to a file what disks do."""
    content = bytearray(path.read_bytes())
    match how:
        case "cut":
            path.write_bytes(content[: rng.randrange(len(content))])
        case "emptied":
            path.write_bytes(b"")
        case "flipped":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        case _:
            path.unlink()


def resume_damaged(how: str) -> Callable[[Case], bool]:
    """A file of a checkpoint for resuming, while no driver lives; sometimes of both that are kept."""

    def fault(case: Case) -> bool:
        if not _killed_in_training(case):
            return False
        folders = sorted(case.scene.layout.root.glob("trials/*/resume-*"))
        newest = {folder.parent: folder for folder in folders}
        are_all = case.rng.random() < 0.3
        chosen = folders if are_all else list(newest.values())
        case.most_again = None if are_all else 2
        for folder in chosen:
            damage(case.rng.choice(sorted(folder.iterdir())), how, case.rng)
        return bool(chosen)

    return fault


def checkpoint_damaged(case: Case) -> bool:
    """A file of a finished trial's checkpoint, while no driver lives."""

    def has_ended(session: Session) -> bool:
        return session.until(lambda own: any(isinstance(entry.event, TrialEnded) for entry in own))

    is_hit = _killed_in_training(case, has_ended)
    files = [path for path in case.scene.layout.root.glob("trials/*/epoch-*/*") if path.is_file()]
    if not is_hit or not files:
        return False
    damage(
        case.rng.choice(sorted(files)), case.rng.choice(["cut", "emptied", "flipped", "removed"]), case.rng
    )
    return True


def journal_torn(case: Case) -> bool:
    """The beginning of a line, as a power failure leaves it behind the last whole one."""
    if not _killed_in_training(case):
        return False
    segment = case.scene.layout.segments()[-1]
    line = case.rng.choice(segment.read_bytes().splitlines(keepends=True))
    with segment.open("ab") as file:
        file.write(line[: case.rng.randint(1, len(line) - 1)])
    return True


def _refused(case: Case) -> int:
    """The exit code of a session that cannot read the journal, and so cannot tell it: the session before it counts."""
    case.scene.run()
    return case.scene.codes.pop()


def journal_damaged(case: Case) -> bool:
    """A bit flips in the middle of the journal: refused by name, and nothing changed; then it is restored."""
    if not _killed_in_training(case):
        return False
    segments = case.scene.layout.segments()
    segment = case.rng.choice([each for each in segments if each.read_bytes().count(b"\n") > 1])
    whole = segment.read_bytes()
    lines = whole.splitlines(keepends=True)
    number = case.rng.randrange(len(lines) - 1)
    line = bytearray(lines[number])
    line[case.rng.randrange(len(line) - 1)] ^= 1 << case.rng.randrange(8)
    segment.write_bytes(b"".join([*lines[:number], bytes(line), *lines[number + 1 :]]))
    code = _refused(case)
    if code not in {1, 2} or f"{segment}:{number + 1}:" not in case.scene.last_words().replace("\n", ""):
        case.wrong.append(f"damage in {segment}:{number + 1} gave {code}: {case.scene.last_words()}")
    if case.scene.layout.segments() != segments:
        case.wrong.append("a journal that was refused has grown")
    segment.write_bytes(whole)
    return True


def segment_lost(case: Case) -> bool:
    """An older segment of the journal is shorter by whole lines, or gone: refused by name; then it is restored."""
    if not _killed_in_training(case):
        return False
    if len(case.scene.layout.segments()) == 1 and not _killed_in_training(case):
        return False  # nothing later knows how long the newest was
    segments = case.scene.layout.segments()
    segment = case.rng.choice(segments[:-1])
    whole = segment.read_bytes()
    lines = whole.splitlines(keepends=True)
    if case.rng.random() < 0.5:
        segment.unlink()
    else:
        segment.write_bytes(b"".join(lines[: case.rng.randrange(len(lines))]))
    code = _refused(case)
    if code not in {1, 2} or str(segment) not in case.scene.last_words().replace("\n", ""):
        case.wrong.append(f"{segment} was lost, which gave {code}: {case.scene.last_words()}")
    segment.write_bytes(whole)
    if case.scene.layout.segments() != segments:
        case.wrong.append("a journal that was refused has grown")
    return True


def stale_lock(case: Case) -> bool:
    """The lock file of a driver that is gone: of a living process's number, emptied, or cut."""
    if not _killed_in_training(case):
        return False
    path, owner = case.scene.layout.lock, read_owner(case.scene.layout)
    token = owner.token if owner is not None else 0
    foreign = {"host": "elsewhere", "pid": os.getpid(), "since": time.time(), "token": token + 7}
    text = json.dumps(foreign)
    path.write_text(case.rng.choice([text, "", text[: case.rng.randrange(len(text))]]))
    return True


# ------------------------------------------------------------------------------ what a session has to survive


def worker_killed(case: Case, session: Session) -> bool:
    """SIGKILL of a worker that trains."""
    session.until_training(case.rng.randint(1, 2 * MOST_EVALUATIONS))
    started = [entry.event for entry in session.own() if isinstance(entry.event, UnitStarted)]
    ended = {entry.event.key for entry in session.own() if isinstance(entry.event, TrialEnded)}
    working = [event for event in started if not set(event.keys) <= ended]
    if not working:
        return False
    try:
        os.kill(case.rng.choice(working).worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return session.is_at_work()


def second_driver(case: Case, session: Session) -> bool:
    """The same command a second time, while the first one works."""
    if not case.moment(session):
        return False
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "finetune_sweep", "run", str(case.scene.file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=REFUSED_S,
        check=False,
    )
    if not session.is_at_work():
        return False
    if done.returncode != 3 or f"process {session.process.pid} on " not in done.stderr:
        case.wrong.append(f"a second driver ended with {done.returncode}: {done.stderr[-500:]}")
    return True


def database_locked(case: Case, session: Session) -> bool:
    """Another program holds MLflow's database."""
    is_hit = case.moment(session)
    database = case.scene.uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(case.lock_s)
        connection.execute("ROLLBACK")
    return is_hit


def requests_met(mode: Mode) -> Callable[[Case, Session], bool]:
    """MLflow's server is slow, fails, or does what it is asked and its answer is lost."""

    def fault(case: Case, session: Session) -> bool:
        proxy = case.proxy
        if proxy is None:
            return False
        case.moment(session)
        before, proxy.mode = proxy.hit, mode
        _wait(session, case.rng.uniform(2.0, 25.0))
        proxy.mode = "pass"
        return proxy.hit > before

    return fault


def server_stopped(case: Case, session: Session) -> bool:
    """MLflow's server is killed, and started again later."""
    proxy = case.proxy
    if proxy is None:
        return False
    case.moment(session)
    before = proxy.hit
    proxy.server.kill()
    _wait(session, case.rng.uniform(2.0, 25.0))
    proxy.server.start()
    return proxy.hit > before


def _wait(session: Session, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and session.is_running:
        time.sleep(0.05)


# ----------------------------------------------------------------------------------------- after it is complete


def best_damaged(case: Case) -> bool:
    """A file of `best/`: the next run puts a whole one there."""
    files = [path for path in case.scene.layout.best.iterdir() if path.is_file()]
    path = case.rng.choice(sorted(files))
    damage(path, case.rng.choice(["cut", "emptied", "flipped", "removed"]), case.rng)
    code = case.scene.run()
    if code != 0:
        case.wrong.append(f"after {path.name} of best/ was damaged: {code}: {case.scene.last_words()}")
    return True


# -------------------------------------------------------------------------------------------------- the register

Place = Literal["any", "database", "server", "tmpfs"]


@dataclass(frozen=True)
class Ending:
    """A fault between two sessions; `place` is where the sweep has to lie."""

    inject: Callable[[Case], bool]
    place: Place = "any"


@dataclass(frozen=True)
class Survived:
    """A fault that the session in which it comes has to survive; `codes` are those it may end with."""

    inject: Callable[[Case, Session], bool]
    place: Place = "any"
    codes: frozenset[int] = frozenset({0})


_LATE: Final = frozenset({0, 4})
"""An MLflow that is away until the end is told by exit code 4; then the next run delivers."""

ENDING: Final[Mapping[str, Ending]] = {
    "driver killed": Ending(driver_killed),
    "SIGTERM": Ending(stopped_by(signal.SIGTERM)),
    "SIGINT": Ending(stopped_by(signal.SIGINT)),
    "SIGHUP": Ending(stopped_by(signal.SIGHUP)),
    "disk full": Ending(disk_full, "tmpfs"),
    "resume checkpoint cut": Ending(resume_damaged("cut")),
    "resume checkpoint emptied": Ending(resume_damaged("emptied")),
    "resume checkpoint, a bit flipped": Ending(resume_damaged("flipped")),
    "resume checkpoint, a file removed": Ending(resume_damaged("removed")),
    "trial's checkpoint damaged": Ending(checkpoint_damaged),
    "journal torn": Ending(journal_torn),
    "journal damaged in the middle": Ending(journal_damaged),
    "journal segment lost": Ending(segment_lost),
    "stale lock": Ending(stale_lock),
}
SURVIVED: Final[Mapping[str, Survived]] = {
    "worker killed": Survived(worker_killed),
    "second driver": Survived(second_driver),
    "MLflow's database locked": Survived(database_locked, "database", _LATE),
    "MLflow's server stopped": Survived(server_stopped, "server", _LATE),
    "MLflow slow": Survived(requests_met("slow"), "server", _LATE),
    "MLflow answers 500": Survived(requests_met("500"), "server", _LATE),
    "MLflow's answer lost": Survived(requests_met("lost"), "server", _LATE),
}
AFTER: Final[Mapping[str, Ending]] = {"best/ damaged": Ending(best_damaged)}
