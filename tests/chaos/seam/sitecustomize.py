"""Counts the durable operations of a sweep in every process of it, and kills at the one that is asked for.

Python imports this module before anything else in each process that has its folder in PYTHONPATH: the driver, and
through Ray the workers. The package knows nothing of it. Where CHAOS_FOLDER is not set, or in a process that is
neither, it does nothing.

An operation is announced in `operations.log` before it happens; so one that was killed at is announced and did not
happen, and whatever was announced before it did.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "CHAOS_FOLDER"
MLFLOW_WRITES = [
    "create_experiment",
    "create_run",
    "log_batch",
    "log_inputs",
    "set_terminated",
    "update_run",
    "log_artifact",
    "set_tag",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "log_outputs",
    "create_registered_model",
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
]
RENAMED = {"os.remove": "unlink", "os.truncate": "truncate", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}

_write = os.write


class Seam:
    """What one process knows: what it was ordered, what it has announced."""

    def __init__(self, folder: str, role: str) -> None:
        self.folder = folder
        self.role = role
        with open(f"{folder}/order.json", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to import
            order = json.load(file)
        self.root: str = order["root"]
        self.session: int = order["session"]
        self.points: frozenset[str] = frozenset(order["points"])
        self.kill_workers_alone: bool = order["kill_workers_alone"]
        self.memory_bytes: int | None = order["memory_bytes"]
        self.hang_at: int | None = order.get("hang_at")
        self.pays: float = order["pays"]
        self.counts: Counter[str] = Counter()
        self.written: dict[str, str] = {}
        self.runs: dict[str, str] = {}
        self.busy = threading.local()
        self.lock = threading.Lock()
        self.log = os.open(f"{folder}/operations.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if role == "driver":
            with open(f"{folder}/driver.pid", "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(str(os.getpid()))

    def inside(self, path: object) -> str | None:
        """The part of a path within the sweep's folder, without numbers of processes; None for any other path."""
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 - an audit hook stays light
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if text != self.root and not text.startswith(self.root + "/"):
            return None
        name = re.sub(r"\.\d+\.tmp", ".PID.tmp", text[len(self.root) + 1 :])
        name = re.sub(r"^\.best\.[a-z0-9_]{8}\.tmp", ".best.RANDOM.tmp", name)
        return re.sub(r"journal/\d+", "journal/N", name) or "."

    def announce(self, operation: str, name: str, *, counted: bool = True) -> None:
        """Says what is about to happen; the process dies here if this is the point that was asked for."""
        role = "promotion" if self.role == "worker" and name.startswith((".best", "best")) else self.role
        label = f"{role}: {operation} {name}"
        with self.lock:
            if counted:
                self.counts[label] += 1
                label += f" #{self.counts[label]}" if self.counts[label] > 1 else ""
            fatal = label in self.points and label not in self._kills(None)
            line = {"time": time.time(), "session": self.session, "pid": os.getpid(), "label": label}
            _write(self.log, json.dumps(line | {"killed": fatal}).encode() + b"\n")
            if fatal:
                self._die()

    def _kills(self, session: int | None) -> set[str]:
        with open(f"{self.folder}/operations.log", encoding="utf-8") as file:  # noqa: PTH123
            lines = [json.loads(line) for line in file if '"killed": true' in line]
        return {line["label"] for line in lines if session in {None, line["session"]}}

    def _die(self) -> None:
        """A worker dies alone at most once a session, so that its trials do not run out of retries."""
        is_first = len(self._kills(self.session)) == 1
        if self.role == "driver" or not self.kill_workers_alone or not is_first:
            with open(f"{self.folder}/driver.pid", encoding="utf-8") as file:  # noqa: PTH123
                os.kill(int(file.read()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def once(self) -> Iterator[bool]:
        """Whether the thread is not inside an operation that was announced."""
        is_outer = not getattr(self.busy, "now", False)
        self.busy.now = True
        try:
            yield is_outer
        finally:
            self.busy.now = not is_outer

    # ------------------------------------------------------------------------------------------ the system

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Files that are created, renamed, deleted."""
        match event:
            case "open":
                path, mode, flags = args
                writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
                if (writes or (mode and set(mode) & set("wax+"))) and (name := self.inside(path)) is not None:
                    self.announce("open", name)
            case "os.rename":
                if (name := self.inside(args[1])) is not None:
                    self.announce("rename", f"{self.inside(args[0])} -> {name}")
            case "os.remove" | "os.truncate" | "os.mkdir" | "os.rmdir":
                self._entry(event, args)

    def _entry(self, event: str, args: tuple[Any, ...]) -> None:
        """An entry of a folder; inside `shutil.rmtree` it is named relative to an open one."""
        path = args[0]
        if event in {"os.remove", "os.rmdir"} and isinstance(args[-1], int) and args[-1] >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), os.fsdecode(path))  # noqa: PTH115, PTH118
        name = self.inside(path)
        if name is None or (event != "os.mkdir" and not isinstance(path, int) and not os.path.lexists(path)):
            return
        if event == "os.mkdir" and (os.path.lexists(path) or not os.path.isdir(os.path.dirname(path))):  # noqa: PTH112, PTH120
            return
        self.announce(RENAMED[event], name)

    def write(self, descriptor: int, content: bytes) -> int:
        """A line of the journal is named for its events."""
        name = self.inside(descriptor)
        if name is not None:
            events = _events(content) if name.startswith("journal/") else ""
            self.written[name] = events
            self.announce("write", f"{name} {events}".strip(), counted=not events)
        return _write(descriptor, content)

    def synced(self, operation: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """`os.fsync` and its kind, announced."""

        @functools.wraps(original)
        def call(descriptor: int, *args: Any) -> Any:  # noqa: ANN401 - whatever the system call takes
            name = self.inside(descriptor)
            if name is not None:
                events = self.written.get(name, "")
                self.announce(operation, f"{name} {events}".strip(), counted=not events)
            return original(descriptor, *args)

        return call

    # ------------------------------------------------------------------------------------------ MLflow, steps

    def mlflow_client(self, module: ModuleType) -> None:
        """Announces the calls of MLflow's client that change something."""
        for method in MLFLOW_WRITES:
            original = getattr(module.MlflowClient, method)
            setattr(module.MlflowClient, method, self._mlflow_call(method, original))
        search = module.MlflowClient.search_runs

        @functools.wraps(search)
        def search_runs(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - MLflow's
            found = search(*args, **kwargs)
            for run in found:
                self.runs[run.info.run_id] = run.data.tags.get("finetune_sweep.key", "parent")
            return found

        module.MlflowClient.search_runs = search_runs

    def _mlflow_call(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - MLflow's
            about = ""
            with self.once() as is_outer:
                if is_outer:
                    tags = next((a for a in args if isinstance(a, Mapping)), {})
                    about = tags.get("finetune_sweep.key", "parent") if method == "create_run" else ""
                    about = about or next((self.runs[a] for a in args if a in self.runs), "")
                    self.announce(f"mlflow.{method}", about)
                result = original(*args, **kwargs)
                if method == "create_run":
                    self.runs[result.info.run_id] = about
                return result

        return call

    def step(self, module: ModuleType, function: str) -> None:
        """Announces a function of the package: what it writes goes through libraries that are not Python."""
        original = getattr(module, function)

        @functools.wraps(original)
        def call(folder: Path, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the function
            splits = [a for a in args if isinstance(a, str)]
            self.announce(function, " ".join([self.inside(folder) or "", *splits]))
            return original(folder, *args, **kwargs)

        setattr(module, function, call)

    def tensors(self, module: ModuleType) -> None:
        """Announces `safetensors.torch.save_file`, which writes without Python."""
        original = module.save_file

        @functools.wraps(original)
        def save_file(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - theirs
            if (name := self.inside(filename)) is not None:
                self.announce("save", name)
            return original(tensors, filename, *args, **kwargs)

        setattr(module, "save_file", save_file)  # noqa: B010 - a module has no such attribute for mypy

    def training(self, module: ModuleType) -> None:
        """Limits the memory of a training, or lets one hang for ever at an evaluation, where that is ordered."""
        original = module.fit

        @functools.wraps(original)
        def fit(*args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401 - as the function
            if self.memory_bytes is not None:
                self._limit_memory(self.memory_bytes)
            for number, evaluation in enumerate(original(*args, **kwargs), 1):
                if number == self.hang_at and "worker: hang" not in self._kills(None):
                    self._hang()
                yield evaluation

        setattr(module, "fit", fit)  # noqa: B010 - the same

    def _limit_memory(self, more_bytes: int) -> None:
        with open("/proc/self/statm", encoding="utf-8") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, hard))

    def _hang(self) -> None:
        line = {"time": time.time(), "session": self.session, "pid": os.getpid(), "label": "worker: hang"}
        _write(self.log, json.dumps(line | {"killed": True}).encode() + b"\n")
        while True:
            time.sleep(3600)

    def on_import(self, module: ModuleType) -> None:
        """Takes hold of what a module brings."""
        match module.__name__:
            case "mlflow.tracking.client":
                self.mlflow_client(module)
            case "safetensors.torch":
                self.tensors(module)
            case "finetune_sweep.exchange":
                self.step(module, "exchange")
            case "finetune_sweep.assembly":
                self.step(module, "assemble")
                self.step(module, "evaluate_folder")
            case "finetune_sweep.train.loop":
                self.training(module)
            case "finetune_sweep.tune.resume":
                setattr(module, "PAYS", self.pays)  # noqa: B010 - the same
                setattr(module, "MAY_LOSE_S", 0.0)  # noqa: B010 - the same


HOOKED = frozenset(
    {
        "mlflow.tracking.client",
        "safetensors.torch",
        "finetune_sweep.exchange",
        "finetune_sweep.assembly",
        "finetune_sweep.train.loop",
        "finetune_sweep.tune.resume",
    }
)


class Finder(importlib.abc.MetaPathFinder):
    """Lets the seam see some modules right after their import."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in HOOKED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            original = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                original(module)
                self.seam.on_import(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _events(content: bytes) -> str:
    """The events of journal lines; those whose number and order depend on the moment are named without key."""
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line[9:])
            about = [str(event[name])[:4] for name in ("key", "unit", "epoch") if event.get(name)]
            named = event["type"] + (f"({','.join(about)})" if about else "")
            found.append("Tracked" if event["type"] == "Tracked" else named)
    return "+".join(dict.fromkeys(found))


def _role() -> str | None:
    line = sys.orig_argv
    if "finetune_sweep" in line and "-m" in line:
        return "driver"
    return "worker" if any(part.endswith("default_worker.py") for part in line) else None


def _install() -> None:
    folder, role = os.environ.get(FOLDER), _role()
    if folder is None or role is None:
        return
    seam = Seam(folder, role)
    sys.addaudithook(seam.audit)
    os.write = seam.write  # type: ignore[assignment]
    os.fsync = seam.synced("fsync", os.fsync)
    os.pwrite = seam.synced("pwrite", os.pwrite)
    sys.meta_path.insert(0, Finder(seam))


_install()
