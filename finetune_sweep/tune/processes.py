"""What Ray's start would do to this process and to those that it starts, and must not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def processes_apart(environment: Mapping[str, str]) -> Iterator[None]:
    """Starts this thread's processes with variables of their own, and out of reach of signals to the driver's group.

    Such a signal comes from a closing terminal; the driver then asks them to store where they are. They end with it all
    the same: the kernel sees to that on Linux; elsewhere Ray does it by the process group, which is left to it. The
    variables are no `runtime_env`: workers that Ray starts beforehand would not have it, and be of no use.
    """
    start, own = subprocess.Popen.__init__, threading.current_thread()
    group = {"process_group": 0} if sys.platform == "linux" else {}

    def apart(process: subprocess.Popen[bytes], *args: Any, **settings: Any) -> None:  # noqa: ANN401 - Popen's own
        if threading.current_thread() is own:
            known = settings.get("env") or os.environ
            settings = {**settings, **group, "env": {**known, **environment}}
        start(process, *args, **settings)

    subprocess.Popen.__init__ = apart  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Leaves SIGTERM to who has it.

    Ray's core takes it as it starts, to abort the process three seconds after it came, and as it ends gives it back to
    nobody. `signal.signal` would only work in the main thread, which may be busy for long.
    """
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.argtypes, get.restype = [ctypes.c_int], ctypes.c_void_p
    put.argtypes, put.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler = get(signal.SIGTERM)
    try:
        yield
    finally:
        put(signal.SIGTERM, handler)
