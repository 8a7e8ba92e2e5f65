"""The command `submit`: what is packaged, what is refused before, and a job on a real cluster of one node."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from finetune_sweep import package
from finetune_sweep.errors import UserError
from finetune_sweep.events import UnitStarted
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout
from finetune_sweep.package import INPUTS, SWEEP_FILE, dump, pack, unpack
from finetune_sweep.plan import make_plan
from finetune_sweep.spec import Resources
from finetune_sweep.submit import Jobs, _Lines
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tune.arrival import shared_folders
from finetune_sweep.tune.cluster import Cluster, check

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
TIMEOUT_S = 240
TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of a cluster that lives as long as a test
TRIAL = Resources(cpu=1)


# --------------------------------------------------------------------------------------------------- packages


def arrive(sent: package.Package, folder: Path) -> Path:
    """What the cluster makes of a package: its files in the shared storage, and the file that is run."""
    sent.write(folder / "package.zip")
    with zipfile.ZipFile(folder / "package.zip") as archive:
        archive.extractall(folder / "there")
    unpack(folder / "there", Layout(Path(sent.sweep.storage or ""), sent.sweep.name))
    return folder / "there" / SWEEP_FILE


def test_a_packaged_sweep_has_the_trials_of_the_file(
    write_sweep: WriteSweep, tmp_path: Path, tiny_model: Path, reviews: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(tiny_model, here / "small")
    shutil.copy(reviews, here / "films.csv")
    (tmp_path / "more.yaml").write_text("batch_size: {low: 8, high: 16, step: 8}\n")
    space = (
        "[{model: [here/small], learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true, count: 3},"
        " freeze_depth: {values: [0, 1], when: {batch_size: [8]}}}, more.yaml]"
    )
    file = write_sweep(model="here/small", data="here/films.csv", space=space)
    sweep = load_sweep(file, ["training.weight_decay=0.5", "seed=3"])
    expected = make_plan(sweep)

    arrived = arrive(pack(sweep), tmp_path)
    shutil.rmtree(here)
    (tmp_path / "more.yaml").unlink()
    there = load_sweep(arrived)
    plan = make_plan(there)

    assert len(plan.trials) == 9
    assert [trial.key for trial in plan.trials] == [trial.key for trial in expected.trials]
    assert plan.fingerprint == expected.fingerprint
    assert {trial.training.weight_decay for trial in plan.trials} == {0.5}
    assert Path(there.model).is_relative_to(tmp_path / "runs" / "tiny" / INPUTS)


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_is_the_same_after_being_written_out(file: Path, tmp_path: Path) -> None:
    sweep = load_sweep(file)
    (tmp_path / SWEEP_FILE).write_text(dump(sweep), encoding="utf-8")
    again = load_sweep(tmp_path / SWEEP_FILE)
    assert again.model_dump(exclude={"space"}) == sweep.model_dump(exclude={"space"})
    for before, after in zip(sweep.space.dimensions, again.space.dimensions, strict=True):
        assert (after.name, after.domain, after.when) == (before.name, before.domain, before.when)


def test_equal_content_gives_equal_packages_and_one_copy_of_it(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    sweep = load_sweep(write_sweep())
    first, second = (pack(sweep).write(tmp_path / name) for name in ("first.zip", "second.zip"))
    assert first == second

    arrive(pack(sweep), tmp_path)
    copies = sorted((tmp_path / "runs" / "tiny" / INPUTS).glob("*/*.csv"))
    written = copies[0].stat().st_mtime_ns
    copies[0].write_text("damaged")
    arrive(pack(sweep), tmp_path)
    assert sorted((tmp_path / "runs" / "tiny" / INPUTS).glob("*/*.csv")) == copies
    assert copies[0].stat().st_mtime_ns != written
    assert copies[0].read_text().startswith("review,verdict")


def test_synonyms_are_sent_and_the_trials_keep_their_names(write_sweep: WriteSweep, tmp_path: Path) -> None:
    (tmp_path / "fixed.txt").write_text("good: great\n")
    (tmp_path / "searched.txt").write_text("bad: poor\n")
    training = "{augment: {replacement: 0.5, synonyms: fixed.txt}}"
    for space in ("{augment.copies: [0, 1]}", "{augment.synonyms: [searched.txt, fixed.txt]}"):
        sweep = load_sweep(write_sweep(space=space, training=training))
        expected = [trial.key for trial in make_plan(sweep).trials]
        there = load_sweep(arrive(pack(sweep), tmp_path))
        augment = there.training.augment
        assert augment is not None
        assert Path(augment.synonyms or "").is_relative_to(tmp_path / "runs" / "tiny" / INPUTS)
        assert [trial.key for trial in make_plan(there).trials] == expected
        shutil.rmtree(tmp_path / "there")


def test_what_all_nodes_see_is_not_sent(write_sweep: WriteSweep, tiny_model: Path, reviews: Path) -> None:
    sweep = load_sweep(write_sweep())
    assert sorted(name.rpartition("/")[2] for name in pack(sweep, [tiny_model.parent]).inputs) == [
        "reviews.csv"
    ]
    assert pack(sweep, [tiny_model.parent, reviews.parent]).inputs == {}
    in_storage = sweep.model_copy(update={"storage": str(reviews.parent)})
    assert not any(name.endswith(".csv") for name in pack(in_storage).inputs)


def test_examples_and_hub_references_stay_as_they_are(write_sweep: WriteSweep) -> None:
    sweep = load_sweep(write_sweep(model="example:minilm-l6", data="hub:org/reviews"))
    sent = pack(sweep)
    assert (sent.sweep.model, sent.sweep.data.source, sent.inputs) == (
        "example:minilm-l6",
        "hub:org/reviews",
        {},
    )


def test_a_package_that_is_too_large_is_refused_before_it_is_read(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match=r"makes the package .* MiB, more than the .*--shared"):
        pack(load_sweep(write_sweep()))


def test_a_file_that_is_not_there_is_named(write_sweep: WriteSweep, tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(data="./absent.csv"))
    with pytest.raises(UserError, match=f"there is no '{tmp_path}/absent.csv' here"):
        pack(sweep)


def test_the_folders_that_have_to_be_shared_are_the_storage_and_that_of_the_database(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    sweep = load_sweep(write_sweep())
    layout = Layout(tmp_path / "runs", "tiny")
    assert shared_folders(sweep, layout) == {"storage": tmp_path / "runs", "tracking.uri": tmp_path}
    server = load_sweep(write_sweep(extra="tracking: {uri: 'http://10.0.0.1:5000'}\n"))
    assert shared_folders(server, layout) == {"storage": tmp_path / "runs"}


# --------------------------------------------------------------------------------------------------- preflight


@contextmanager
def dashboard(answers: dict[str, Any], token: str = "") -> Iterator[str]:
    """A server that answers as a dashboard does; with a token, only those who have it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path.partition("?")[0])
            allowed = not token or self.headers["Authorization"] == f"Bearer {token}"
            seen.append(self.headers["Authorization"])
            self.send_response(401 if not allowed else 404 if body is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    seen: list[str | None] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert token or not any(seen), "a token was shown to a server that did not ask for it"


def answers(ray: str, python: str, *nodes: dict[str, float]) -> dict[str, Any]:
    listed = [{"state": "ALIVE", "resources_total": node} for node in nodes]
    return {
        "/api/version": {"ray_version": ray},
        "/api/v0/cluster_metadata": {"data": {"rayVersion": ray, "pythonVersion": python}},
        "/api/v0/nodes": {"data": {"result": {"result": listed}}},
    }


RAY, PYTHON = importlib.metadata.version("ray"), platform.python_version()


def test_a_cluster_that_fits_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with dashboard(answers(RAY, PYTHON, {"CPU": 1.0})) as address:
        check(Cluster(address), TRIAL)


def test_all_that_does_not_fit_is_said_at_once() -> None:
    small = {"CPU": 2.0}
    with dashboard(answers("2.9.1", "3.8.18", small, small)) as address, pytest.raises(UserError) as caught:
        check(Cluster(address), Resources(cpu=4))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert f"the cluster has Ray 2.9.1, here is Ray {RAY}" in lines[0]
    assert "the cluster has Python 3.8, here is Python 3." in lines[1]
    assert lines[2] == (
        "resources_per_trial: no node has 4 CPUs and 0 GPUs; there is: 2 CPUs and 0 GPUs; 2 CPUs and 0 GPUs"
    )


def test_a_token_is_read_where_ray_keeps_it_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with dashboard(answers(RAY, PYTHON, {"CPU": 1.0}), TOKEN) as address:
        with pytest.raises(UserError, match="asks for a token, and there is none here"):
            Cluster(address).check_access()
        file.write_text("another")
        with pytest.raises(
            UserError, match="asks for a token, and the one here is not the cluster's"
        ) as caught:
            Cluster(address).check_access()
        assert "another" not in str(caught.value)
        file.write_text(f"{TOKEN}\n")
        check(Cluster(address), TRIAL)


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://10.0.0.1:10001", "http://"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(
        UserError, match=r"takes the URL of the cluster's dashboard, such as http://HOST:8265"
    ):
        Cluster(address)


def test_an_address_where_nobody_answers_is_named() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"{address}: no Ray dashboard answers there .*Connection refused"):
        Cluster(address).check_access()


def test_a_server_that_is_no_dashboard_is_told_apart() -> None:
    with (
        dashboard({}) as address,
        pytest.raises(UserError, match="this is no Ray dashboard, /api/version gave HTTP 404"),
    ):
        Cluster(address).check_access()


def test_the_jobs_of_a_sweep_are_told_apart_by_storage_and_name(write_sweep: WriteSweep) -> None:
    cluster = Cluster("http://127.0.0.1:1")
    sweep = load_sweep(write_sweep())
    prefix = Jobs(cluster, sweep).prefix
    assert prefix.startswith("finetune-sweep-tiny-")
    assert Jobs(cluster, load_sweep(write_sweep(), ["seed=5"])).prefix == prefix
    assert Jobs(cluster, sweep.model_copy(update={"storage": "/elsewhere"})).prefix != prefix
    assert Jobs(cluster, sweep.model_copy(update={"name": "tiny-2"})).prefix != prefix


def test_a_log_that_is_read_again_says_each_line_once() -> None:
    said: list[str] = []
    lines = _Lines(said.append)
    lines.begin()
    lines.add("one\ntw")
    lines.begin()
    lines.add("one\n")
    lines.add("two\nthree\nfo")
    lines.end()
    assert said == ["one", "two", "three", "fo"]


# ------------------------------------------------------------------------------------------------- a real job


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A cluster of one node, which asks for a token; gives the address of its dashboard."""
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    ports["ray-client-server-port"] = free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    settings["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch, (folder / "start.log").open("w") as log:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        options = [f"--{name}={port}" for name, port in ports.items()]
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{ports['dashboard-port']}"
            wait_until_ready(address, process, folder / "start.log")
            yield address
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        try:
            check(Cluster(address), TRIAL)
        except UserError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"ray start ended: {log.read_text()[-2000:]}")


@dataclass
class Submission:
    """A `submit` that is followed line by line."""

    process: subprocess.Popen[str]
    output: IO[str]
    lines: list[str]

    def wait_for(self, text: str) -> str:
        for line in self.output:
            self.lines.append(line)
            if text in line:
                return line
        pytest.fail(f"{text!r} was not said: {''.join(self.lines)}")

    def end(self) -> tuple[int, str]:
        with self.output:
            self.lines += self.output.readlines()
        return self.process.wait(TIMEOUT_S), "".join(self.lines)


def submission(sweep: Path, address: str, *arguments: str) -> Submission:
    line = [sys.executable, "-m", "finetune_sweep", "submit", str(sweep), "--address", address, *arguments]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=sweep.parent
    )
    assert process.stdout is not None
    return Submission(process, process.stdout, [])


@pytest.mark.slow
def test_a_job_is_submitted_left_and_attached_to(write_sweep: WriteSweep, head: str) -> None:
    """One story about one job, since a job takes a while."""
    sweep = write_sweep(space="{learning_rate: [1e-2], epochs: [1]}")
    expected = make_plan(load_sweep(sweep)).trials

    first = submission(sweep, head)
    first.wait_for("submitted finetune-sweep-tiny-")
    first.wait_for("Running entrypoint")
    first.process.send_signal(signal.SIGINT)
    code, said = first.end()
    assert code == 130
    assert said.splitlines()[-1].endswith("attaches again, --stop stops it")

    second = submission(sweep, head, "--set", "retries=1")
    second.wait_for("attached to finetune-sweep-tiny-")
    second.wait_for("submitted with other settings")
    code, said = second.end()
    assert code == 0, said
    assert TOKEN not in said

    layout = Layout(sweep.parent / "runs", "tiny")
    (unit,) = [entry.event for entry in read(layout) if isinstance(entry.event, UnitStarted)]
    assert unit.keys == tuple(trial.key for trial in expected)
    assert f"began on {unit.worker.host} (node {unit.worker.node})" in said
    assert (layout.best / "model.safetensors").exists()
    assert submission(sweep, head, "--stop").end()[0] == 0


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_job(write_sweep: WriteSweep, head: str) -> None:
    sweep = write_sweep()
    code, said = submission(sweep, head, "--storage", str(sweep / "below-a-file")).end()
    assert code == 1, said
    assert said.splitlines()[-1].startswith(f"{sweep}/below-a-file/")
    assert "Traceback" not in said


def test_submit_needs_a_storage_that_is_written_down(write_sweep: WriteSweep) -> None:
    sweep = write_sweep()
    sweep.write_text(sweep.read_text().replace("storage: ./runs\n", ""))
    code, said = submission(sweep, "http://127.0.0.1:1").end()
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("submit needs --storage DIR")


def test_ray_addresses_in_the_environment_do_not_replace_the_option(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert Cluster(head).jobs.get_address() == head
