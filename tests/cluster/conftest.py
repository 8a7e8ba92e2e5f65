"""A Ray cluster of three nodes on this machine: a head without processors, and two workers with one each.

As root on Linux each node has a network namespace with an address of its own, a host name of its own, and does not
see the folder of the test, so that only the shared folder can carry files between them. Elsewhere the nodes have
loopback addresses and one disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.tune.cluster import Cluster

BIN = Path(sys.executable).parent
START_S = 120
STOP_S = 30
WORKERS = 2


@dataclass(frozen=True)
class Nodes:
    """Where the cluster's nodes are.

    Args:
        address: The dashboard.
        shared: The folder that all nodes see.
        hosts: Host names of the workers.
        apart: Whether a node sees only its own disk, beside the shared folder.
    """

    address: str
    shared: Path
    hosts: tuple[str, ...]
    apart: bool


@dataclass
class Namespaces:
    """A bridge on this machine, and a network namespace for each node."""

    hidden: Path
    apart: bool = True
    subnet: str = field(default_factory=lambda: f"10.213.{os.getpid() % 250 + 1}")
    tag: str = field(default_factory=lambda: f"fs{os.getpid() % 10**6}")
    count: int = 0

    def open(self) -> None:
        run("ip", "link", "add", self.tag, "type", "bridge")
        run("ip", "addr", "add", f"{self.subnet}.254/24", "dev", self.tag)
        run("ip", "link", "set", self.tag, "up")

    def add(self) -> tuple[str, str, list[str]]:
        """One more node: its address, its host name, and what stands before its commands."""
        self.count += 1
        name, host, address = f"{self.tag}n{self.count}", f"node{self.count}", f"{self.subnet}.{self.count}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", self.tag, "up")
        inside = ("ip", "-n", name)
        run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        script = f'hostname {host} && mount -t tmpfs none {self.hidden} && exec "$@"'
        unshare = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh"]
        return address, host, ["ip", "netns", "exec", name, *unshare]

    def close(self) -> None:
        for number in range(1, self.count + 1):
            name = f"{self.tag}n{number}"
            listed = subprocess.run(
                [str(shutil.which("ip")), "netns", "pids", name], capture_output=True, check=False
            )
            for pid in listed.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", name)
        run("ip", "link", "del", self.tag)


@dataclass
class Loopback:
    """Addresses of this machine's loopback: the nodes share its network, disk and name."""

    apart: bool = False
    count: int = 0

    def open(self) -> None:
        pass

    def add(self) -> tuple[str, str, list[str]]:
        """One more node: its address, its host name, and what stands before its commands."""
        self.count += 1
        return f"127.0.0.{self.count + 1}", socket.gethostname(), []

    def close(self) -> None:
        pass


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def can_have_namespaces() -> bool:
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "hostname")):
        return False
    probe = f"fs{os.getpid()}probe"
    script = f"ip netns add {probe} && ip netns exec {probe} unshare --uts --mount true; ip netns del {probe}"
    return subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=False).returncode == 0


@contextmanager
def node(prefix: Sequence[str], folder: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node, while the block runs."""
    folder.mkdir()
    environment = {
        "HOME": str(folder),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "VIRTUAL_ENV": str(BIN.parent),
    }
    command = [*prefix, str(BIN / "ray"), "start", "--block", f"--temp-dir={folder}/t", *options]
    command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(STOP_S)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The cluster."""
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))  # sockets need a short path
    (folder / "shared").mkdir()
    network = Namespaces(tmp_path_factory.getbasetemp()) if can_have_namespaces() else Loopback()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(network.close)
        network.open()
        address, _, prefix = network.add()
        ports = {"port": free_port(), "dashboard-port": free_port(), "ray-client-server-port": free_port()}
        options = ["--head", "--num-cpus=0", "--dashboard-host=0.0.0.0", f"--node-ip-address={address}"]
        options += [f"--{name}={port}" for name, port in ports.items()]
        started = [stack.enter_context(node(prefix, folder / "head", options))]
        dashboard = f"http://{address}:{ports['dashboard-port']}"
        wait_for(dashboard, 0, started, folder)
        hosts = []
        for number in range(WORKERS):
            own, host, prefix = network.add()
            options = ["--num-cpus=1", f"--address={address}:{ports['port']}", f"--node-ip-address={own}"]
            started.append(stack.enter_context(node(prefix, folder / f"worker{number}", options)))
            hosts.append(host)
        wait_for(dashboard, WORKERS, started, folder)
        yield Nodes(dashboard, folder / "shared", tuple(hosts), network.apart)


def wait_for(address: str, count: int, started: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Waits until so many nodes have a processor."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        try:
            found = Cluster(address).get("/api/v0/nodes")["data"]["result"]["result"]
        except UserError:
            found = []
        if found and sum(has_processor(each["resources_total"]) for each in found) >= count:
            return
        time.sleep(0.2)
    logs = "\n".join(log.read_text()[-1500:] for log in sorted(folder.glob("*/start.log")))
    pytest.fail(f"the nodes did not start: {logs}")


def has_processor(resources: Mapping[str, float]) -> bool:
    return resources.get("CPU", 0) >= 1
