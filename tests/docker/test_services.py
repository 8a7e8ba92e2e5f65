"""The image built and the services run, as their files say. `make test-docker`: minutes, and root on Linux.

The Dockerfile's commands are executed in a root folder of their own, and the services in namespaces, each with its
own files, user and address: see `machine`. What only a container engine does is listed in docker/README.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import compose, engine, machine

ROOT = Path(__file__).parent.parent.parent
CONTEXT = ("docker", "finetune_sweep", "search_spaces", "sweeps")
FILES = (".dockerignore", "LICENSE", "README.md", "constraints.txt", "pyproject.toml")
SWEEP = """\
name: tiny
task: text-classification
model: /data/tiny
data: {source: /data/reviews.csv, columns: {text: review, label: verdict}, max_length: 16}
space: {learning_rate: [1e-3, 1e-2], epochs: [1, 2]}
search: {type: grid}
metric: accuracy
training: {precision: fp32}
"""
ASK_MLFLOW = """\
import mlflow
client = mlflow.MlflowClient("http://mlflow:5000", "http://mlflow:5000")
experiment = client.get_experiment_by_name("tiny")
runs = client.search_runs([experiment.experiment_id])
children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
print(len(children), {run.info.status for run in children})
print("version", client.get_model_version_by_alias("tiny", "champion").version)
"""
ASK_STATUS = """\
import sys, urllib.error, urllib.request
try:
    request = urllib.request.Request(sys.argv[1], headers={"Host": sys.argv[2]} if sys.argv[2:] else {})
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="namespaces need Linux and root"
)


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, reviews: Path
) -> Iterator[engine.Engine]:
    """All that `docker compose up --build --wait` starts, with `tiny.yaml` as the sweep."""
    state = tmp_path_factory.mktemp("docker")
    context = _copy_context(state / "context")
    subprocess.run([context / "docker/make-secrets"], check=True)
    variables = {"SWEEP": "sweeps/tiny.yaml", "DATA": str(_data(state / "data", tiny_model, reviews))}
    (context / "sweeps/tiny.yaml").write_text(SWEEP, encoding="utf-8")
    project = compose.read(context / "docker/compose.yaml", variables)
    image = engine.build(context / "docker/Dockerfile", context, project.build_arguments, state)
    (state / "run").mkdir()
    with engine.Engine(project, image, state / "run") as running:
        running.up()
        yield running
    shutil.rmtree(state)


def test_a_sweep_is_submitted_trained_recorded_and_promoted(services: engine.Engine) -> None:
    code, output = services.run("sweep")
    assert code == 0, output
    asked = services.ensure("head").execute("python", "-c", ASK_MLFLOW)
    assert asked.stdout == "4 {'FINISHED'}\nversion 1\n", asked.stderr
    files = services.ensure("worker").execute("ls", "/storage/tiny/best").stdout.split()
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)


def test_the_same_again_trains_nothing(services: engine.Engine) -> None:
    code, output = services.run("sweep")
    assert code == 0, output
    assert "nothing is left to train" in output


def test_status_is_read_from_the_shared_volume(services: engine.Engine) -> None:
    code, output = services.run("sweep", "status", "sweeps/tiny.yaml", "--storage", "/storage")
    assert code == 0, output
    assert len(re.findall("finished", output)) >= 4


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (["http://head:8265/api/version"], "401"),
        (["http://mlflow:5000/api/2.0/mlflow/experiments/get?experiment_id=0"], "401"),
        (["http://mlflow:5000/", "elsewhere.example"], "403"),
        (["http://mlflow:5000/health"], "200"),
    ],
)
def test_nobody_gets_in_without_a_secret(services: engine.Engine, request_: list[str], status: str) -> None:
    asked = services.ensure("head").execute("python", "-c", ASK_STATUS, *request_)
    assert asked.stdout.strip() == status, asked.stderr


def test_a_worker_can_write_to_its_volumes_and_nowhere_else(services: engine.Engine) -> None:
    worker = services.ensure("worker")
    written = {"/storage": 0, "/home/sweep/.cache": 0, "/tmp": 0, "/data": 1, "/app": 1, "/": 1}  # noqa: S108
    for folder, code in written.items():
        assert worker.execute("touch", f"{folder}/probe").returncode == code, folder


def test_a_service_stops_when_it_is_asked_to(services: engine.Engine) -> None:
    worker = services.running.pop()
    assert machine.stop(worker.process) != -9


def _copy_context(folder: Path) -> Path:
    for name in CONTEXT:
        left_out = shutil.ignore_patterns("__pycache__", "secrets", ".env")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def _data(folder: Path, model: Path, reviews: Path) -> Path:
    shutil.copytree(model, folder / "tiny")
    shutil.copy(reviews, folder)
    for file in (folder, *folder.rglob("*")):  # weights are saved readable by their owner alone
        file.chmod(0o755 if file.is_dir() else 0o644)
    return folder
