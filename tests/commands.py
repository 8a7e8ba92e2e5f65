"""The commands as a user types them, each in a process of its own, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_sweep.events import Event
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 300


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def command(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Result:
    line = [sys.executable, "-m", "finetune_sweep", *map(str, arguments)]
    done = subprocess.run(
        line,
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def status(sweep: Path) -> Any:  # noqa: ANN401 - JSON
    result = command("status", "--json", sweep, cwd=sweep.parent)
    assert result.code == 0, result.err
    return json.loads(result.out)


def trials(sweep: Path) -> dict[str, Any]:
    return {trial["key"]: trial for trial in status(sweep)["trials"]}


def layout(sweep: Path, name: str = "tiny") -> Layout:
    return Layout(sweep.parent / "runs", name)


def wait_for(sweep: Path, is_there: Callable[[list[Event]], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_there([entry.event for entry in read(layout(sweep))]):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
