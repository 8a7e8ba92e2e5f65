"""How many trials fit where, and which addresses are refused before Ray is asked; Ray is not started here."""

from __future__ import annotations

import socket

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Resources
from finetune_sweep.tune.engine import check_reachable, count_slots


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
