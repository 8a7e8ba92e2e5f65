"""Ray, as the sweep uses it: started or joined, its slots counted, functions run in fresh processes."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Resources, Sweep
from finetune_sweep.train import hardware
from finetune_sweep.tune.processes import processes_apart, sigterm_kept

P = ParamSpec("P")
R = TypeVar("R")

_DRIVER_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "auto",
}
"""What Ray reads from the environment: no telemetry, workers of ordinary priority, no files and no signal handlers
of Tune's own."""
_REACH_S: Final = 5.0
_ADDRESSES: Final = "auto, HOST:PORT or ray://HOST:PORT"


class Engine:
    """A Ray with room for the trials of a sweep; it begins at the latest when it is needed, and ends with the block."""

    def __init__(self, sweep: Sweep, address: str | None = None) -> None:
        """Starts nothing yet.

        Args:
            sweep: Says what a trial occupies.
            address: Of a running Ray, such as `auto` or `10.0.0.1:6379`; None starts one on this machine.
        """
        self._resources = sweep.resources_per_trial
        self._max_concurrent = sweep.max_concurrent
        self._device = sweep.device
        self._address = address
        self._slots: int | None = None
        self._thread: threading.Thread | None = None
        self._started: Future[None] = Future()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None or (self._address is not None and not self._started.done()):
            return  # an address that does not answer would be waited for
        if self._started.exception() is None:
            _shut_down()
        self._over.set()
        self._thread.join()

    def start(self) -> None:
        """Begins to start it, beside what this thread does; whoever needs it first waits until it runs."""
        if self._thread is not None:
            return
        os.environ.update(_DRIVER_ENVIRONMENT)
        import ray  # noqa: F401 - in this thread: two that import at once can wait for each other

        thread = threading.Thread(target=self._hold, name="ray", daemon=True)
        thread.start()
        self._thread = thread

    def _hold(self) -> None:
        """Starts Ray and stays: the kernel ends Ray's processes with the thread that started them."""
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._started.set_exception(error)
            _shut_down()
            return
        self._started.set_result(None)
        self._over.wait()

    def settle(self) -> None:
        """Waits for a start that was begun, and begins none.

        Raises:
            UserError: If the cluster cannot be reached.
        """
        if self._thread is not None:
            self._started.result()

    def warm_up(self, workers: int) -> None:
        """Lets some processes, at most one a slot, import what `fresh` needs, while the driver does other things.

        Where trials have GPUs, nothing is done: a process must not look at a GPU before it is given its own.
        """
        import ray

        if self._resources.gpu:
            return
        warm_up = ray.remote(num_cpus=self._resources.cpu)(_import_all)
        for _ in range(min(workers, self.slots)):
            warm_up.remote()

    @property
    def slots(self) -> int:
        """How many trials can run at once.

        Raises:
            UserError: If no node has what one trial asks for, or the cluster cannot be reached.
        """
        self._ensure_started()
        if self._slots is None:
            self._slots = self._count()
        return self._slots

    @property
    def resources(self) -> dict[str, float]:
        """What a trial occupies, in Ray's words."""
        return {"cpu": self._resources.cpu, "gpu": self._resources.gpu}

    def hardware(self) -> tuple[str, str]:
        """Device and precision of the workers, asked of one of them.

        Raises:
            UserError: If they lack what the sweep asks for.
        """
        return self.fresh(hardware.resolve, self._device, self._resources.gpu)

    def fresh(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a function of a module in a process that has only imported, with the resources and threads of a trial.

        Raises:
            Exception: Whatever the function raises.
        """
        return self._remote(function, calls=1)(*args, **kwargs)

    def fresh_once(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same in a process that may also have run this very function once before.

        Raises:
            Exception: Whatever the function raises.
        """
        return self._remote(function, calls=2)(*args, **kwargs)

    def _remote(self, function: Callable[P, R], calls: int) -> Callable[P, R]:
        """The function as a task of Ray, whose process ends after so many calls."""
        import ray

        self._ensure_started()
        cpu, gpu = self._resources.cpu, self._resources.gpu
        task = ray.remote(num_cpus=cpu, num_gpus=gpu, max_calls=calls, max_retries=1)(function)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                result: R = ray.get(task.remote(*args, **kwargs))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            return result

        return call

    def _ensure_started(self) -> None:
        self.start()
        self._started.result()

    def _start(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that a thread gets no handler of SIGTERM
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        environment = _worker_environment(self._resources.threads)
        if self._address is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            with sigterm_kept(), processes_apart(environment):
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        else:
            check_reachable(self._address)
            try:
                with sigterm_kept():
                    ray.init(address=self._address, runtime_env={"env_vars": environment}, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"--address {self._address}: no Ray cluster could be joined: {reason}"
                ) from error
        _protect_token()

    def _count(self) -> int:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        slots = count_slots(nodes, self._resources)
        return min(slots, self._max_concurrent or slots)


def _import_all() -> None:
    """Imports torch, transformers and what else a model and its data need; that takes seconds."""
    import transformers  # noqa: F401 - for whoever imports it next in this process

    import finetune_sweep.tune.loaded  # noqa: F401 - as above


def _shut_down() -> None:
    """Ends Ray, or what there is of one that did not start."""
    import ray

    with sigterm_kept():
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Knocks at a Ray cluster's door: Ray itself would wait there for minutes, warning line by line.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`.

    Raises:
        UserError: If nothing listens there, or `auto` finds no running Ray.
    """
    found = _running_address() if address == "auto" else address
    said = address if found == address else f"{address} ({found})"
    try:
        parts = urlsplit(found if "://" in found else f"//{found}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--address {said}: must be {_ADDRESSES}: {error}") from error
    if host is None or port is None:
        raise UserError(f"--address {said}: must be {_ADDRESSES}")
    try:
        socket.create_connection((host, port), _REACH_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--address {said}: no Ray cluster answers there: {reason}") from error


def _running_address() -> str:
    """Where Ray's `auto` leads: to RAY_ADDRESS, or to what was last started on this machine."""
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise UserError(
            "--address auto: no Ray runs on this machine; give HOST:PORT, or leave --address out"
        ) from error


def count_slots(nodes: Sequence[Mapping[str, float]], resources: Resources) -> int:
    """How many trials fit on nodes, given what each has in all.

    Raises:
        UserError: If not even one does.
    """
    slots = sum(_fit(node, resources) for node in nodes)
    if not slots:
        raise UserError(
            f"resources_per_trial: no node has {resources.cpu:g} CPUs and {resources.gpu:g} GPUs;"
            f" there is: {'; '.join(_describe(node) for node in nodes) or 'no node'}"
        )
    return slots


def _worker_environment(count: int) -> dict[str, str]:
    """Threads that do not fight: as many as the slot has cores, and none that spins while it waits."""
    return {
        "OMP_NUM_THREADS": str(count),
        "MKL_NUM_THREADS": str(count),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }


def _fit(node: Mapping[str, float], resources: Resources) -> int:
    """How many trials fit on a node. A fraction of a GPU must fit on one GPU."""
    counts = [math.floor(node.get("CPU", 0) / resources.cpu + 1e-9)]
    if resources.gpu:
        gpus = node.get("GPU", 0)
        shared = resources.gpu < 1
        counts.append(
            int(gpus) * math.floor(1 / resources.gpu + 1e-9) if shared else int(gpus // resources.gpu)
        )
    return min(counts)


def _describe(node: Mapping[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"


def _protect_token() -> None:
    """Ray writes its token for the local cluster so that every user of the machine can read it."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)
