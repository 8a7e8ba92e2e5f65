"""A small sweep in a folder of its own: driven in sessions, each a process of the real command, under the seam."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finetune_sweep.errors import StorageError
from finetune_sweep.events import Entry, Evaluated, SessionEnded, SessionStarted
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout

ROOT: Final = Path(__file__).parents[2]
SEAM: Final = Path(__file__).parent / "seam"
MARKER: Final = "CHAOS_FOLDER"
"""The variable by which every process of a scene is known; see `seam/sitecustomize.py`."""
NAME: Final = "tiny"
SESSION_S: Final = 300.0
"""No session of a tiny sweep lasts so long; one that does hangs, and that is a violation."""
_POLL_S: Final = 0.02
AGENTS_S: Final = 120.0
"""Of a driver that was killed, two helpers of Ray look for their node for 70 s before they end by themselves."""

SWEEP: Final = """\
name: tiny
task: text-classification
model: {pretrained}
data: {{source: {rows}, split: {{validation: 0.2, test: 0.2}}, max_length: 16}}
space:
  learning_rate: [3e-3, 1e-2]
  epochs: {{values: [{short}, {long}], when: {{learning_rate: [3e-3]}}}}
metric: {{name: loss}}
training: {{freeze_depth: 1, batch_size: 4, precision: fp32, epochs: {long}, lr_schedule: {{type: constant}}}}
tracking: {{uri: "{uri}", experiment: {model}, registered_model: {model}}}
keep_checkpoints: 1
storage: {storage}
cache: {base}/cache
min_free_bytes: 0
"""


@dataclass(frozen=True)
class Length:
    """How long the two trainings of a sweep are: one has trials of `short` and `long` epochs, one of `long` ones.

    Args:
        short: Epochs.
        long: Epochs.
        selection: The line of the sweep file by which the winner is chosen; by default the best trial is it.
    """

    short: int
    long: int
    selection: str = ""


POINT: Final = Length(2, 3)
"""For points, each of which is met in any training."""
MOMENT: Final = Length(20, 40, "selection: {finalists: 1, seeds: 2}\n")
"""For faults at random moments: some seconds of training, in the search and of the finalists."""


@dataclass
class Scene:
    """A sweep that faults happen to.

    Args:
        folder: Of this sweep alone; made anew.
        base: What all sweeps share: see `build_base`.
        length: Of its trainings.
        uri: Of MLflow; by default a database in the folder.
        storage: Where the sweep lies; by default in the folder.
        extra: More lines of the sweep file.
        inputs: The names of model and rows in `base`.
        points: Where the seam is to kill: at the first of them that a session comes to.
        kill_workers_alone: Whether a worker that comes to one dies without the driver, once a session.
        memory_bytes: What a training may use beyond what its process has; None for any.
        hang_at: The number of the evaluation at which the first training that comes to it hangs for ever.
        sessions: How many there were.
        codes: How they ended.
    """

    folder: Path
    base: Path
    length: Length = MOMENT
    uri: str = ""
    storage: Path | None = None
    extra: str = ""
    inputs: tuple[str, str] = ("model", "rows.csv")
    points: Sequence[str] = ()
    kill_workers_alone: bool = False
    memory_bytes: int | None = None
    hang_at: int | None = None
    sessions: int = 0
    codes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.ray = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))  # sockets need a short path
        if not self.uri:
            shutil.copy(self.base / "mlflow.db", self.folder / "mlflow.db")
            self.uri = f"sqlite:///{self.folder}/mlflow.db"
        self.storage = self.storage or self.folder / "runs"
        text = SWEEP.format(
            base=self.base,
            pretrained=self.base / self.inputs[0],
            rows=self.base / self.inputs[1],
            model=self.folder.name,
            short=self.length.short,
            long=self.length.long,
            uri=self.uri,
            storage=self.storage,
        )
        self.file.write_text(text + self.length.selection + self.extra, encoding="utf-8")

    @property
    def file(self) -> Path:
        """The sweep file."""
        return self.folder / "sweep.yaml"

    @property
    def layout(self) -> Layout:
        """Where the sweep lies."""
        return Layout(self.storage or self.folder, NAME)

    @property
    def place(self) -> tuple[Layout, str, str]:
        """Where the sweep lies, where MLflow is, and the name of its experiment and registered model there."""
        return self.layout, self.uri, self.folder.name

    @property
    def marker(self) -> str:
        """What stands in the environment of every process of this scene."""
        return f"{MARKER}={self.folder}"

    def start(self, *arguments: str, command: str = "run") -> Session:
        """One more session."""
        self.sessions += 1
        order = {
            "root": str(self.layout.root),
            "session": self.sessions,
            "points": list(self.points),
            "kill_workers_alone": self.kill_workers_alone,
            "memory_bytes": self.memory_bytes,
            "hang_at": self.hang_at,
            "pays": 0.0,
        }
        (self.folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        (self.folder / "operations.log").touch()
        return Session(self, self.sessions, [command, str(self.file), *arguments])

    def run(self, *arguments: str, command: str = "run") -> int:
        """A session until its end; returns its exit code, or minus the signal that ended it."""
        return self.start(*arguments, command=command).wait()

    def entries(self) -> list[Entry]:
        """The journal."""
        return read(self.layout)

    def operations(self) -> list[Mapping[str, object]]:
        """What the seam announced, in order."""
        log = self.folder / "operations.log"
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    def is_watched(self) -> bool:
        """Whether the seam was there, in the driver and in a worker: without it nothing would be proved."""
        roles = {str(line["label"]).partition(":")[0] for line in self.operations()}
        return {"driver", "worker"} <= roles

    @property
    def code(self) -> int:
        """How the last session ended; as if killed, if there was none."""
        return self.codes[-1] if self.codes else -signal.SIGKILL

    def killed_at(self) -> list[str]:
        """The points at which the seam killed."""
        return [str(line["label"]) for line in self.operations() if line["killed"]]

    def last_words(self) -> str:
        """What the last session printed at its end."""
        log = self.folder / f"session-{self.sessions}.log"
        return log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""

    def processes(self) -> list[int]:
        """The living processes of this scene, whoever is their parent."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]  # noqa: PTH208

    def _is_ours(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return self.marker.encode() in environment and state != "Z"

    def close(self, *, keep: bool) -> None:
        """Ends what is left of it and deletes what Ray wrote; the sweep itself unless it is to be kept."""
        self.end_processes(0.0)
        shutil.rmtree(self.ray, ignore_errors=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def end_processes(self, patience_s: float = AGENTS_S) -> list[int]:
        """Those that do not end by themselves in this time; they are killed."""
        deadline = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with _gone_is_fine():
                os.kill(pid, signal.SIGKILL)
        return left


class _gone_is_fine:  # noqa: N801 - reads like `suppress`
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ProcessLookupError)


@dataclass
class Session:
    """One process of the command."""

    scene: Scene
    number: int
    arguments: Sequence[str]

    def __post_init__(self) -> None:
        paths = [str(SEAM), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            MARKER: str(self.scene.folder),
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_TMPDIR": str(self.scene.ray),
            "TMPDIR": str(self.scene.ray),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.before = len(self.scene.layout.segments())
        with (self.scene.folder / f"session-{self.number}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_sweep", *self.arguments],
                cwd=self.scene.folder,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    @property
    def is_running(self) -> bool:
        """Whether the driver lives."""
        return self.process.poll() is None

    def own(self) -> list[Entry]:
        """What this session has journalled so far."""
        segments = self.scene.layout.segments()[self.before :]
        if not segments:
            return []
        try:
            entries = self.scene.entries()
        except (StorageError, FileNotFoundError):
            return []
        starts = [at for at, entry in enumerate(entries) if isinstance(entry.event, SessionStarted)]
        return entries[starts[-1] :] if starts and len(starts) > self.before else []

    def is_at_work(self) -> bool:
        """Whether it has taken the sweep and not left it: a fault now falls into its work."""
        events = [entry.event for entry in self.own()]
        return self.is_running and bool(events) and not isinstance(events[-1], SessionEnded)

    def until(self, reached: Callable[[list[Entry]], bool], patience_s: float = SESSION_S) -> bool:
        """Waits until the session has journalled this; False if it ended first.

        Raises:
            TimeoutError: If neither happens.
        """
        deadline = time.monotonic() + patience_s
        while self.is_running:
            if reached(self.own()):
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.scene.folder}: session {self.number} did not get so far")
            time.sleep(_POLL_S)
        return False

    def until_at_work(self) -> bool:
        """Waits until it has taken the sweep."""
        return self.until(bool)

    def until_training(self, evaluations: int = 1) -> bool:
        """Waits until it has told so many evaluations."""
        return self.until(lambda own: sum(isinstance(e.event, Evaluated) for e in own) >= evaluations)

    def signal(self, number: int) -> None:
        """Sends a signal to the driver alone."""
        with _gone_is_fine():
            os.kill(self.process.pid, number)

    def wait(self, patience_s: float = SESSION_S) -> int:
        """Waits for its end; returns the exit code, or minus the signal.

        Raises:
            TimeoutError: If it does not end; then it is killed.
        """
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.scene.end_processes(5.0)
            raise TimeoutError(
                f"{self.scene.folder}: session {self.number} did not end in {patience_s:g} s"
            ) from None
        self.scene.codes.append(code)
        return code


# ----------------------------------------------------------------------------------------------------- the base


def build_base(base: Path) -> None:
    """What all sweeps share, made once: a tiny model, rows, a migrated database of MLflow."""
    if (base / "complete").exists():
        return
    from finetune_sweep.mlflow_store import make_client
    from tests.promotion.finished_sweep import save_model, save_rows

    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    save_model(base / "model")
    save_rows(base / "rows.csv")
    make_client(f"sqlite:///{base}/mlflow.db").search_experiments()
    (base / "complete").touch()
