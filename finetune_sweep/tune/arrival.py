"""The first step of a submitted job: its files are put where all nodes see them, and the nodes are looked at.

`python -m finetune_sweep.tune.arrival` runs in the folder into which Ray extracted the package.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finetune_sweep.durable import explained
from finetune_sweep.errors import SweepError, UserError
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.mlflow_uri import tracking_uri
from finetune_sweep.package import SWEEP_FILE, unpack
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import load_sweep

PACKAGES: Final = (
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "sklearn",
    "pydantic",
    "optuna",
    "mlflow",
)
"""What every node has to have beside Ray; the package itself comes with the job."""
_LOOK_S: Final = 10.0
_LOOK_PAUSE_S: Final = 0.5
_ANSWER_S: Final = 120.0


def main() -> int:
    """Unpacks the job in the working directory, and checks the nodes.

    Returns:
        The exit code.
    """
    try:
        sweep = load_sweep(Path(SWEEP_FILE))
        layout = Layout(parse_storage(sweep.storage or ""), sweep.name)
        unpack(Path(), layout)
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        check_nodes(shared_folders(sweep, layout))
    except SweepError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a program
        return error.exit_code
    return 0


def shared_folders(sweep: Sweep, layout: Layout) -> dict[str, Path]:
    """The folders that all nodes must share, by the option that names them: the storage, and MLflow's sqlite file's."""
    folders = {"storage": layout.storage}
    scheme, separator, file = tracking_uri(sweep.tracking.uri, layout.storage).partition(":///")
    if separator and scheme.partition("+")[0] == "sqlite":
        folders["tracking.uri"] = Path(file).parent
    return folders


def check_nodes(folders: dict[str, Path]) -> None:
    """Looks from every node for a file that was just written into each folder, and for the packages.

    Raises:
        UserError: With what a node does not see or have, one line each.
        StorageError: If a folder cannot be written.
    """
    name = f".seen-by-all-{uuid.uuid4().hex}"
    marks = {option: folder / name for option, folder in folders.items()}
    try:
        for mark in marks.values():
            with explained(mark):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
        problems = _ask_nodes(marks)
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)
    if problems:
        raise UserError("\n".join(problems))


def _ask_nodes(marks: dict[str, Path]) -> list[str]:
    look = ray.remote(num_cpus=0)(_look)
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    answers = {}
    for node, address in addresses.items():
        there = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        answers[there.remote(list(marks.values()), PACKAGES)] = address
    done, silent = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_S)
    problems = [f"node {answers[task]} did not answer within {_ANSWER_S:g} s" for task in silent]
    for task in done:
        try:
            unseen, missing = ray.get(task)
        except ray.exceptions.RayError as error:
            problems.append(f"node {answers[task]} cannot run a task of the job: {error}")
            continue
        problems += [
            f"{option}: node {answers[task]} does not see what the driver wrote into {mark.parent};"
            " give a folder that all nodes of the cluster share under this path"
            for option, mark in marks.items()
            if mark in unseen
        ]
        if missing:
            problems.append(f"node {answers[task]} lacks {', '.join(missing)}; install the same there")
    return problems


def _look(marks: Sequence[Path], packages: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Runs on a node: the files that it does not see, also not after a while, and the packages it lacks."""
    deadline = time.monotonic() + _LOOK_S
    while (unseen := [mark for mark in marks if not mark.exists()]) and time.monotonic() < deadline:
        time.sleep(_LOOK_PAUSE_S)
    return unseen, [name for name in packages if importlib.util.find_spec(name) is None]


if __name__ == "__main__":
    sys.exit(main())
