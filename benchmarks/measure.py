"""Runs a command and measures it with all processes that come of it: wall, CPU, memory, bytes; and who else was busy.

Processes are read from /proc twice a second, so one that lives shorter than that may count less than it used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.gpu import GpuUse, watched

INTERVAL_S: Final = 0.5
FILES_INTERVAL_S: Final = 0.1
"""Checkpoints may be deleted as soon as they are written, so they are looked for more often."""
_SETTLED_NS: Final = 50_000_000
"""Times of files are as coarse as the kernel's tick."""
MEMORY_EVERY: Final = 10
"""Memory is read at every so many-th look: the kernel walks all pages of a process for it."""
CHECKPOINTS: Final = (".safetensors", ".pt", ".pth", ".bin")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_ADOPT_ORPHANS: Final = 36  # PR_SET_CHILD_SUBREAPER
_LEAVE_S: Final = 30.0
LIMIT_S: Final = 3 * 3600.0
"""A command that takes longer hangs, and is ended."""


@dataclass(frozen=True)
class Figures:
    """What a command cost.

    Args:
        wall_s: From its start to its end, in seconds.
        cpu_s: CPU seconds of all of its processes.
        others_cores: Cores that were busy with anything else, on average.
        peak_bytes: The most memory at one time: the sum of PSS over all of its processes.
        written_bytes: What its processes wrote to disk.
        checkpoint_bytes: Of files with weights and states of optimizers, including those that it deleted again.
        exit_code: Its exit code.
        gpu: What it used of the GPU; None without one, or if it used none.
    """

    wall_s: float
    cpu_s: float
    others_cores: float
    peak_bytes: int
    written_bytes: int
    checkpoint_bytes: int
    exit_code: int
    gpu: GpuUse | None = None


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; a number may be used again, so its start belongs to its name."""

    pid: int
    parent: int
    started: int
    cpu_s: float
    state: str


def processes() -> dict[int, Process]:
    """All processes of the machine."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                parts = text.rpartition(")")[2].split()
                cpu_s = (int(parts[11]) + int(parts[12])) / _TICKS
                pid = int(entry.name)
                found[pid] = Process(pid, int(parts[1]), int(parts[19]), cpu_s, parts[0])
    return found


def descendants(root: int, known: Mapping[int, Process]) -> Iterator[Process]:
    """The processes below one, not itself."""
    children: dict[int, list[Process]] = {}
    for process in known.values():
        children.setdefault(process.parent, []).append(process)
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child.pid)
            yield child


def busy_s() -> float:
    """CPU seconds that the machine was busy since it started, with anything."""
    numbers = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, numbers[:7])
    return (user + nice + system + irq + softirq) / _TICKS


@dataclass
class WrittenFiles:
    """The bytes of checkpoints that appear below a folder, also of those that are gone at the next look."""

    folder: Path
    gone: int = 0
    present: dict[int, _File] = field(default_factory=dict)
    missed: set[int] = field(default_factory=set)
    listed: dict[Path, _Listed] = field(default_factory=dict)

    def look(self) -> None:
        """Counts a file as gone at the second look without it: at one it may be between two folders.

        One that is shorter than before is written anew, as is one that comes back with another time.
        """
        now = dict(self._files(self.folder))
        missed = self.present.keys() - now.keys() - self.missed
        for inode, before in self.present.items():
            found = now.get(inode)
            if inode in missed:
                now[inode] = before
                continue
            is_back = inode in self.missed and found is not None
            if found is None or found.size < before.size or (is_back and found.changed != before.changed):
                self.gone += before.size
        self.present, self.missed = now, missed

    @property
    def total(self) -> int:
        """Bytes so far."""
        return self.gone + sum(file.size for file in self.present.values())

    def _files(self, folder: Path) -> Iterator[tuple[int, _File]]:
        """Each checkpoint by its inode. A folder that did not change is not read again: that would cost more."""
        with contextlib.suppress(OSError):
            changed = folder.stat().st_mtime_ns
            listed = self.listed.get(folder)
            if listed is None or listed.changed != changed:
                is_settled = time.time_ns() - changed > _SETTLED_NS
                listed = self.listed[folder] = _read(folder, changed if is_settled else 0)
            for file in listed.files:
                with contextlib.suppress(OSError):
                    seen = file.stat(follow_symlinks=False)
                    yield seen.st_ino, _File(seen.st_size, seen.st_mtime_ns)
            for below in listed.folders:
                yield from self._files(below)


class _File(NamedTuple):
    """The size of a checkpoint, and its last change in nanoseconds."""

    size: int
    changed: int


class _Listed(NamedTuple):
    """What a folder holds, as of its last change in nanoseconds; 0 while it may change again at the same time."""

    changed: int
    folders: list[Path]
    files: list[Path]


def _read(folder: Path, changed: int) -> _Listed:
    with os.scandir(folder) as entries:
        kinds = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    folders = [Path(path) for path, is_folder in kinds if is_folder]
    files = [Path(path) for path, is_folder in kinds if not is_folder and path.endswith(CHECKPOINTS)]
    return _Listed(changed, folders, files)


@contextlib.contextmanager
def _watched_files(folder: Path) -> Iterator[WrittenFiles]:
    """Looks for checkpoints in a thread, until the end of the block."""
    files, ending = WrittenFiles(folder), threading.Event()

    def look_on() -> None:
        while not ending.wait(FILES_INTERVAL_S):
            files.look()

    thread = threading.Thread(target=look_on, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        ending.set()
        thread.join()
        files.look()


@dataclass
class _Meter:
    """The sums over the processes of a command while it runs."""

    beside: frozenset[int]
    cpu_s: dict[tuple[int, int], float] = field(default_factory=dict)
    written: dict[tuple[int, int], int] = field(default_factory=dict)
    peak_bytes: int = 0
    looks: int = 0

    def look(self) -> list[Process]:
        """Reads everything once; returns the living processes of the command."""
        me = os.getpid()
        tree = [p for p in descendants(me, processes()) if p.pid not in self.beside]
        for process in tree:
            name = (process.pid, process.started)
            self.cpu_s[name] = process.cpu_s
            with contextlib.suppress(OSError, ValueError):
                self.written[name] = _written_bytes(process.pid)
        if self.looks < MEMORY_EVERY or self.looks % MEMORY_EVERY == 0:  # a short command has few looks
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(process.pid) for process in tree))
        self.looks += 1
        return [process for process in tree if process.state != "Z"]


def _written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    values = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
    return values["write_bytes"]


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


def measure(command: Sequence[str], env: Mapping[str, str], folder: Path, *, hogs: int = 0) -> Figures:
    """Runs a command to its end; its output goes to `output.txt` in the folder.

    Args:
        command: What is run, in the working directory of this process.
        env: Its whole environment.
        folder: Where it writes; checkpoints are looked for there.
        hogs: Busy processes that run beside it; their work counts neither as its own nor as that of others.
    """
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)  # Ray's processes outlive who started them

    earlier = frozenset(process.pid for process in descendants(os.getpid(), processes()))
    with (
        _hogs(hogs) as busy,
        watched(folder) as watch,
        (folder / "output.txt").open("w", encoding="utf-8") as output,
    ):
        beside = busy | ({watch.pid} if watch else set())
        meter = _Meter(earlier | beside)
        own_s, all_s, started = _own_s(beside), busy_s(), time.monotonic()
        child = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        with _watched_files(folder) as files:
            try:
                while child.poll() is None:
                    meter.look()
                    time.sleep(INTERVAL_S)
                    if time.monotonic() - started > LIMIT_S:
                        child.terminate()
                wall_s = time.monotonic() - started
                spent_s = busy_s() - all_s - (_own_s(beside) - own_s)
                cpu_s = sum(meter.cpu_s.values())
            finally:
                _end(child, meter)
                ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 0, 0, 0, 0)
    return Figures(
        wall_s=wall_s,
        cpu_s=cpu_s,
        others_cores=max(0.0, spent_s - cpu_s) / wall_s,
        peak_bytes=meter.peak_bytes,
        written_bytes=sum(meter.written.values()),
        checkpoint_bytes=files.total,
        exit_code=child.returncode,
        gpu=watch.use() if watch else None,
    )


def _own_s(beside: frozenset[int]) -> float:
    """CPU seconds of this process and of those that it started beside the command."""
    known = processes()
    return sum(known[pid].cpu_s for pid in (os.getpid(), *beside) if pid in known)


@contextlib.contextmanager
def _hogs(count: int) -> Iterator[frozenset[int]]:
    """Processes that do nothing but use a core."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield frozenset(process.pid for process in busy)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _end(child: subprocess.Popen[bytes], meter: _Meter) -> None:
    """Waits for what the command left running, and ends it if it stays."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _LEAVE_S
    while (left := meter.look()) and time.monotonic() < deadline:
        _reap(meter, child.pid)
        time.sleep(INTERVAL_S)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    child.wait()
    time.sleep(INTERVAL_S)
    _reap(meter, child.pid)


def _reap(meter: _Meter, child: int) -> None:
    """Takes leave of orphans that have ended."""
    for process in descendants(os.getpid(), processes()):
        if process.state == "Z" and process.pid not in meter.beside | {child}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
