"""How busy a GPU was, and how much of its memory was taken, as `nvidia-smi` reports it four times a second."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_EVERY_MS: Final = 250
_COMMAND: Final = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    f"--loop-ms={_EVERY_MS}",
    "--id=0",
)


@dataclass(frozen=True)
class GpuUse:
    """What a command used of the first GPU.

    Args:
        utilisation: The part of the time in which a kernel ran, on average from its first kernel to its last, 0 to 1.
        busy_s: How long that is, in seconds.
        peak_bytes: The most memory that was taken at one time, by anything.
    """

    utilisation: float
    busy_s: float
    peak_bytes: int


@dataclass
class Watch:
    """The samples of a GPU.

    Args:
        file: What `nvidia-smi` writes.
        pid: Of its process.
    """

    file: Path
    pid: int

    def use(self) -> GpuUse | None:
        """What the samples so far say; None if no kernel ran."""
        return use_of(self.file.read_text(encoding="utf-8").splitlines())


def use_of(lines: Sequence[str]) -> GpuUse | None:
    """Reads lines such as `37, 1024`: percent of utilisation, MiB of memory. The last may be cut off.

    Returns:
        None if no kernel ran.
    """
    cells = [line.split(", ") for line in lines]
    samples = [(int(c[0]), int(c[1])) for c in cells if len(c) == 2 and all(part.isdigit() for part in c)]
    at_work = [number for number, (busy, _) in enumerate(samples) if busy]
    if not at_work:
        return None
    between = [busy for busy, _ in samples[at_work[0] : at_work[-1] + 1]]
    return GpuUse(
        utilisation=statistics.fmean(between) / 100,
        busy_s=len(between) * _EVERY_MS / 1000,
        peak_bytes=max(memory for _, memory in samples) * 2**20,
    )


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watch | None]:
    """Samples the first GPU in the meantime; gives None on a machine without one."""
    if shutil.which(_COMMAND[0]) is None:
        yield None
        return
    file = folder / "gpu.csv"
    with file.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(_COMMAND, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield Watch(file, process.pid)
        finally:
            process.terminate()
            process.wait()
