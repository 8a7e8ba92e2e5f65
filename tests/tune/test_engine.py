"""How many trials fit where, which addresses are refused before Ray is asked, and what is ready once it runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from finetune_sweep.errors import UserError
from finetune_sweep.signals import collected
from finetune_sweep.spec import Resources
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tune.engine import Engine, check_reachable, count_slots

if TYPE_CHECKING:
    from tests.conftest import WriteSweep


pytestmark = pytest.mark.usefixtures("environment_as_before")


@pytest.mark.parametrize(
    ("nodes", "resources", "slots"),
    [
        ([{"CPU": 8.0}], Resources(cpu=1), 8),
        ([{"CPU": 8.0}], Resources(cpu=3), 2),
        ([{"CPU": 2.0}], Resources(cpu=0.25), 8),
        ([{"CPU": 3.0}, {"CPU": 3.0}], Resources(cpu=2), 2),
        ([{"CPU": 16.0, "GPU": 8.0}], Resources(cpu=1, gpu=1), 8),
        ([{"CPU": 16.0, "GPU": 8.0}], Resources(cpu=1, gpu=3), 2),
        ([{"CPU": 16.0, "GPU": 2.0}], Resources(cpu=1, gpu=0.25), 8),
        ([{"CPU": 16.0, "GPU": 1.0}], Resources(cpu=1, gpu=0.4), 2),
        ([{"CPU": 100.0, "GPU": 3.0}], Resources(cpu=1, gpu=0.1), 30),
        ([{"CPU": 4.0, "GPU": 8.0}], Resources(cpu=1, gpu=1), 4),
        ([{"CPU": 2.0, "GPU": 1.0}], Resources(cpu=1, gpu=0.25), 2),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 2.0}], Resources(cpu=1, gpu=1), 2),
    ],
)
def test_slots_are_what_fits_on_each_node(
    nodes: list[dict[str, float]], resources: Resources, slots: int
) -> None:
    assert count_slots(nodes, resources) == slots


@pytest.mark.parametrize(
    ("nodes", "there_is"),
    [
        ([], "there is: no node"),
        ([{"CPU": 8.0}], "there is: 8 CPUs and 0 GPUs"),
        (
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}],
            "there is: 8 CPUs and 1 GPUs; 2 CPUs and 1 GPUs",
        ),
    ],
)
def test_what_no_single_node_has_is_told_with_what_there_is(
    nodes: list[dict[str, float]], there_is: str
) -> None:
    with pytest.raises(UserError) as raised:
        count_slots(nodes, Resources(cpu=1, gpu=2))

    assert str(raised.value) == f"resources_per_trial: no node has 1 CPUs and 2 GPUs; {there_is}"


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_in_one_line(scheme: str, closed_port: int) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"

    with pytest.raises(UserError) as raised:
        check_reachable(address)

    assert str(raised.value) == f"--address {address}: no Ray cluster answers there: Connection refused"


def test_auto_says_where_it_led(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")

    with pytest.raises(UserError, match=rf"^--address auto \(127\.0\.0\.1:{closed_port}\): no Ray cluster"):
        check_reachable("auto")


@pytest.mark.parametrize("address", ["10.0.0.1", "somewhere", "10.0.0.1:port", "10.0.0.1:70000", ""])
def test_an_address_without_a_port_is_told_what_it_may_be(address: str) -> None:
    with pytest.raises(UserError, match=r"must be auto, HOST:PORT or ray://HOST:PORT"):
        check_reachable(address)


def test_an_address_where_something_listens_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")


def in_a_worker() -> tuple[bool, str | None, int, int]:
    return "transformers" in sys.modules, os.environ.get("OMP_NUM_THREADS"), os.getpid(), os.getppid()


def test_a_worker_that_was_warmed_up_has_loaded_what_trials_need(write_sweep: WriteSweep) -> None:
    """And Ray, which a thread of the engine's started, is gone with the block."""
    sweep = load_sweep(write_sweep())
    threads = os.environ.get("OMP_NUM_THREADS")
    with Engine(sweep) as engine:
        engine.start()
        engine.start()
        engine.warm_up(engine.slots)
        first, second = engine.fresh(in_a_worker), engine.fresh(in_a_worker)

    assert first[:2] == (True, str(sweep.resources_per_trial.threads))
    assert first[1] == second[1]
    assert first[2] != second[2]
    assert first[3] == second[3]
    assert not Path(f"/proc/{first[3]}").exists()
    assert "ray" not in {thread.name for thread in threading.enumerate()}
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_signal_to_end_is_still_the_sessions_own(write_sweep: WriteSweep) -> None:
    with collected() as asked, Engine(load_sweep(write_sweep())) as engine:
        engine.start()
        assert engine.slots
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.is_stopping()
        time.sleep(3.5)  # Ray's own handler would end this process by now


def test_where_trials_have_gpus_no_worker_is_touched_before_it_is_given_one(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray counts a GPU that it is told of, there or not. A trial has all cores, so that one process comes at a time."""
    init = ray.init
    monkeypatch.setattr(ray, "init", lambda **settings: init(**settings, num_gpus=1))
    cores = f"resources_per_trial.cpu={len(os.sched_getaffinity(0))}"
    with Engine(load_sweep(write_sweep(), [cores, "resources_per_trial.gpu=1", "device=cpu"])) as engine:
        engine.start()
        engine.warm_up(engine.slots)
        assert not engine.fresh(in_a_worker)[0]


def test_what_is_wrong_with_an_address_is_told_to_who_needs_ray(
    write_sweep: WriteSweep, closed_port: int
) -> None:
    with Engine(load_sweep(write_sweep()), f"127.0.0.1:{closed_port}") as engine:
        engine.start()
        with pytest.raises(UserError, match=r"no Ray cluster answers there"):
            _ = engine.slots
