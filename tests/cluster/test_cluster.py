"""`submit` to a cluster of three nodes that share one folder: `make test-cluster`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForSequenceClassification

from finetune_sweep.events import Evaluated, SessionEnded, UnitStarted
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout

if TYPE_CHECKING:
    from tests.cluster.conftest import Nodes
    from tests.conftest import WriteSweep

TIMEOUT_S = 600
SPACE = "{learning_rate: [1e-3, 3e-3, 1e-2, 3e-2], epochs: [1, 3]}"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "finetune_sweep", *map(str, arguments)]


def submission(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("submit", *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(text: str, process: subprocess.Popen[str]) -> list[str]:
    """The lines that a process prints, to the one with the text."""
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"{text!r} was not said: {''.join(lines)}")


def evaluations(layout: Layout) -> Mapping[tuple[str, int], tuple[float, Mapping[str, float]]]:
    """Training loss and validation metrics of each trial at each epoch, to the last digit."""
    return {
        (key, event.epoch): (event.train_loss, event.metrics)
        for event in (entry.event for entry in read(layout))
        if isinstance(event, Evaluated)
        for key in event.keys
    }


def test_a_sweep_on_three_nodes_gives_what_one_machine_gives(write_sweep: WriteSweep, nodes: Nodes) -> None:
    sweep = write_sweep(space=SPACE)
    local = subprocess.run(
        command("run", sweep), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert local.returncode == 0, local.stderr

    arguments = (sweep, "--storage", nodes.shared / "runs")
    with submission(*arguments, "--address", nodes.address) as process:
        said = until("began on", process)
        status = subprocess.run(command("status", "--json", *arguments), capture_output=True, check=True)
        said += process.stdout or ()
    log = "".join(said)
    assert process.returncode == 0, log
    states = {trial["state"] for trial in json.loads(status.stdout)["trials"]}
    assert "running" in states or "finished" in states

    layout = Layout(nodes.shared / "runs", "tiny")
    assert evaluations(layout) == evaluations(Layout(sweep.parent / "runs", "tiny"))
    assert len(evaluations(layout)) == 16
    AutoModelForSequenceClassification.from_pretrained(layout.best)
    assert workers(layout) == set(nodes.hosts)
    assert all(f" began on {host} (node " in log for host in nodes.hosts)


def workers(layout: Layout) -> set[str]:
    return {entry.event.worker.host for entry in read(layout) if isinstance(entry.event, UnitStarted)}


def test_a_job_is_stopped_cleanly_and_the_next_one_goes_on(write_sweep: WriteSweep, nodes: Nodes) -> None:
    sweep = write_sweep(name="long", space="{learning_rate: [1e-2], epochs: [1, 9000]}")
    arguments = (sweep, "--storage", nodes.shared / "runs", "--address", nodes.address)
    layout = Layout(nodes.shared / "runs", "long")

    with submission(*arguments) as first:
        said = until("finished learning_rate=0.01 epochs=1", first)
        stopped = subprocess.run(command("submit", *arguments, "--stop"), timeout=TIMEOUT_S, check=False)
        said += first.stdout or ()
    assert (stopped.returncode, first.returncode) == (0, 130), "".join(said)
    assert SessionEnded(130) in [entry.event for entry in read(layout)]

    with submission(*arguments, "--set", "space.epochs=[1]") as second:
        log = "".join(second.stdout or ())
    assert second.returncode == 0, log
    assert "-2 to http://" in log
    assert "nothing is left to train" in log
    assert (layout.best / "model.safetensors").exists()


def test_a_storage_that_is_not_shared_is_named_before_anything_is_trained(
    write_sweep: WriteSweep, nodes: Nodes
) -> None:
    if not nodes.apart:
        pytest.skip("the nodes have one disk here")
    sweep = write_sweep()
    done: Any = subprocess.run(
        command("submit", sweep, "--storage", sweep.parent / "own", "--address", nodes.address),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert f"does not see what the driver wrote into {sweep.parent}/own; give a folder" in done.stdout
    assert "Traceback" not in done.stdout
