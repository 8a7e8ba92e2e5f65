"""Faults that need a sweep, a model or a cluster of their own: memory, divergence, a node, a hang."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Final

from finetune_sweep.events import Entry, Evaluated, TrialEnded
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.record import replay
from finetune_sweep.spec import Sweep
from tests.chaos import invariants
from tests.chaos.chains import Ground, Row
from tests.chaos.scene import MOMENT, POINT, ROOT, Length, Scene
from tests.cluster import conftest as cluster

MIB: Final = 1 << 20
WIDE: Final = "wide"
BATCH: Final = 192
CLUSTER_S: Final = 300.0


def out_of_memory(ground: Ground, seed: int) -> Row:
    """A worker may use little more memory than it has when its training begins: real allocations fail."""
    rng = Random(seed)
    _build_wide(ground.base)
    inputs = (WIDE, f"{WIDE}.csv")
    scene = Scene(ground.work / f"memory-{seed}", ground.base, POINT, inputs=inputs)
    scene.memory_bytes = rng.randint(100, 220) * MIB
    options = [f"training.batch_size={BATCH}", "data.max_length=128", "training.freeze_depth=0"]
    code = scene.run(*_sets(*options))
    record, entries = replay(scene.entries()), scene.entries()
    evaluations = [entry.event for entry in entries if isinstance(entry.event, Evaluated)]
    ends = [entry.event for entry in entries if isinstance(entry.event, TrialEnded)]
    refused = [end for end in ends if end.failure is not None]
    fired = bool(refused) or any(event.micro_batch < BATCH for event in evaluations)
    wrong = [
        f"trial {end.key} ended as {end.failure.kind}: {end.failure.message}"
        for end in refused
        if end.failure is not None and end.failure.kind != "out_of_memory"
    ]
    wrong += [f"epoch {e.epoch} took {e.step} steps" for e in evaluations if e.step != e.epoch]
    if code != (1 if refused or not ends else 0):
        wrong.append(f"it ended with {code}, {len(refused)} trials failed: {scene.last_words()}")
    scene.memory_bytes = None
    wrong += _completed(scene, *_sets(*options), trials=len(record.current()))
    return _row("out of memory", seed, fired, wrong, scene)


def diverged(ground: Ground, seed: int) -> Row:
    """A learning rate at which the weights pass what a float can hold; the driver is killed meanwhile, too."""
    rng = Random(seed)
    scene = Scene(ground.work / f"diverged-{seed}", ground.base, Length(4, 8))
    rate = rng.choice([8.0, 9.0, 9.9])
    options = [f"space.learning_rate=[3e-3, {rate}]", "training.optimizer=sgd", "training.weight_decay=9.9"]
    session = scene.start(*_sets(*options))
    if rng.random() < 0.5:
        session.until_training(rng.randint(1, 10))
        session.signal(signal.SIGKILL)
    session.wait()
    wrong = _completed(scene, *_sets(*options), trials=3)
    record = replay(scene.entries())
    states = {trial.planned.config["learning_rate"]: trial.state for trial in record.current()}
    fired = states.get(rate) == "diverged"
    if record.promoted is None or states.get(3e-3) != "finished":
        wrong.append(f"the states are {states}, promoted is {record.promoted}")
    return _row("diverged (NaN)", seed, fired, wrong, scene)


def hang(ground: Ground, seed: int) -> Row | None:
    """A training that stops taking steps; None while the package has no limit of time for a trial."""
    if "trial_timeout_s" not in Sweep.model_fields:
        return None
    rng = Random(seed)
    scene = Scene(ground.work / f"hang-{seed}", ground.base, MOMENT, extra="trial_timeout_s: 20\n")
    scene.hang_at = rng.randint(2, 15)
    code = scene.run()
    entries = scene.entries()
    fired = any(line["label"] == "worker: hang" for line in scene.operations())
    wrong = invariants.after_a_session(code, entries, invariants.Before(), ground.known.results)
    scene.hang_at = None
    wrong += [] if code == 0 else [f"a hang ended the session with {code}: {scene.last_words()}"]
    wrong += _completed(scene, trials=3)
    wrong += invariants.as_undisturbed(invariants.results(replay(scene.entries())), ground.known.results)
    return _row("hang", seed, fired, wrong, scene)


def _sets(*options: str) -> list[str]:
    return [part for option in options for part in ("--set", option)]


def _completed(scene: Scene, *arguments: str, trials: int) -> list[str]:
    """Runs on until the end, and looks at all of it; the numbers are compared with no other run."""
    code = scene.run(*arguments)
    entries = scene.entries()
    record = replay(entries)
    found = invariants.no_process(scene.end_processes())
    if code != 0 or len(record.current()) != trials:
        return [*found, f"the run after it ended with {code}: {scene.last_words()}"]
    found += invariants.of_a_complete_sweep(*scene.place, entries, {})
    return [*found, *invariants.ended_once(entries), *invariants.truthful(code, record)]


def _row(name: str, seed: int, fired: bool, wrong: list[str], scene: Scene) -> Row:  # noqa: FBT001 - a field of the row
    scene.close(keep=bool(wrong))
    return Row(name, seed, fired, tuple(wrong))


def _build_wide(base: Path) -> None:
    """A model and rows whose batches take some hundred MiB; made once."""
    if (base / f"{WIDE}.csv").exists():
        return
    import torch
    from transformers import BertConfig, BertModel

    from tests.promotion.finished_sweep import NAMES, THINGS, WORDS

    shutil.copytree(base / "model", base / WIDE, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=128,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    BertModel(config).save_pretrained(base / WIDE)
    rng = Random(0)
    rows = ["text,label"]
    for number in range(BATCH * 10 // 6):
        verdict = ("bad", "good")[number % 2]
        words = rng.choices([*NAMES, *THINGS, "saw", "the"], k=120)
        rows.append(f"{' '.join([*words[:60], verdict, *words[60:]])},{verdict}")
    (base / f"{WIDE}.csv").write_text("\n".join(rows), encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- a node


def node_killed(ground: Ground, seed: int) -> Row | None:
    """All processes of one of two working nodes; None where this process may not have network namespaces."""
    if not cluster.can_have_namespaces():
        return None
    rng = Random(seed)
    with _cluster() as (dashboard, shared, names):
        shutil.copytree(ground.base, shared / "base")
        scene = Scene(shared / f"node-{seed}", shared / "base", MOMENT, storage=shared / "runs")
        log = ground.work / f"node-{seed}.log"
        line = [sys.executable, "-m", "finetune_sweep", "submit", str(scene.file), "--address", dashboard]
        with log.open("w") as out:
            process = subprocess.Popen(
                line, stdout=out, stderr=out, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        count = rng.randint(1, 20)
        fired = _evaluated(scene.layout, count, process)
        _kill_namespace(rng.choice(names))
        code = process.wait(CLUSTER_S)
        entries = read(scene.layout)
        # The seam is not there, so these short epochs are stored as rarely as any.
        before = invariants.Before(most_again=None)
        wrong = invariants.after_a_session(code, entries, before, ground.known.results)
        wrong += invariants.of_a_complete_sweep(*scene.place, entries, ground.known.results)
        if code != 0:
            wrong.append(f"the job ended with {code}: {log.read_text(encoding='utf-8')[-1500:]}")
    scene.close(keep=False)
    return Row("node of a cluster killed", seed, fired and _was_open(entries), tuple(wrong))


def _evaluated(layout: Layout, count: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + CLUSTER_S
    while time.monotonic() < deadline and process.poll() is None:
        if sum(isinstance(entry.event, Evaluated) for entry in read(layout)) >= count:
            return True
        time.sleep(0.05)
    return False


def _was_open(entries: list[Entry]) -> bool:
    """Whether a trial was begun twice: its worker had been lost."""
    return any(trial.attempts > 1 for trial in replay(entries).trials.values())


def _kill_namespace(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=True)  # noqa: S607
    for pid in map(int, listed.stdout.split()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def _cluster() -> Iterator[tuple[str, Path, list[str]]]:
    """A head and two nodes of one processor each: the dashboard, the shared folder, the nodes' namespaces."""
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))  # sockets need a short path
    (folder / "shared").mkdir()
    hidden = Path(tempfile.mkdtemp(prefix="fs-hidden-"))
    network = cluster.Namespaces(hidden)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(network.close)
        network.open()
        address, _, prefix = network.add()
        port, dashboard_port = cluster.free_port(), cluster.free_port()
        options = ["--head", "--num-cpus=0", "--dashboard-host=0.0.0.0", f"--node-ip-address={address}"]
        options += [f"--port={port}", f"--dashboard-port={dashboard_port}"]
        started = [stack.enter_context(cluster.node(prefix, folder / "head", options))]
        dashboard = f"http://{address}:{dashboard_port}"
        cluster.wait_for(dashboard, 0, started, folder)
        names = []
        for number in range(cluster.WORKERS):
            own, _, prefix = network.add()
            options = ["--num-cpus=1", f"--address={address}:{port}", f"--node-ip-address={own}"]
            started.append(stack.enter_context(cluster.node(prefix, folder / f"worker{number}", options)))
            names.append(f"{network.tag}n{network.count}")
        cluster.wait_for(dashboard, cluster.WORKERS, started, folder)
        yield dashboard, folder / "shared", names


ALONE: Final[Mapping[str, Callable[[Ground, int], Row | None]]] = {
    "out of memory": out_of_memory,
    "diverged (NaN)": diverged,
    "hang": hang,
    "node of a cluster killed": node_killed,
}
