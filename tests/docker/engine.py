"""Builds the image from its Dockerfile and starts services from the compose file, on `machine`'s containers."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.docker import dockerfile, machine
from tests.docker.compose import Mount, Project, Service
from tests.docker.machine import Bind, Box

_HEALTHY_WITHIN_S: Final = 240.0


@dataclass(frozen=True)
class Image:
    """What a build leaves: files, and how to run them."""

    root: Path
    environment: Mapping[str, str]
    user: int
    folder: str
    command: tuple[str, ...]


@dataclass
class _Build:
    """The state of a build between two instructions."""

    root: Path
    context: Path
    state: Path
    arguments: Mapping[str, str]
    defaults: dict[str, str] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=lambda: {"PATH": machine.PATH})
    user: int = 0
    folder: str = "/"
    command: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        given = {name: value for name, value in self.arguments.items() if name in self.defaults}
        return self.defaults | given | self.environment


def build(file: Path, context: Path, arguments: Mapping[str, str], state: Path) -> Image:
    """Executes a Dockerfile, each RUN in a container; what is printed goes to `state/build.log`.

    Raises:
        AssertionError: If an instruction fails, is not known here, or copies what `.dockerignore` leaves out.
    """
    root = state / "image"
    machine.make_base(root)
    step = _Build(root, context, state, arguments)
    _run(step, "ldconfig && python -m ensurepip && ln -s pip3 /usr/local/bin/pip")
    for instruction in dockerfile.read(file):
        _take(step, instruction)
    return Image(root, step.environment, step.user, step.folder, step.command)


def _take(step: _Build, instruction: dockerfile.Instruction) -> None:
    value = instruction.value
    if instruction.name == "RUN":
        _run(step, value, instruction.flags)
        return
    value = dockerfile.expand(value, step.variables)
    match instruction.name:
        case "FROM":
            assert value.startswith("python:"), f"the base that is made here is Python, not {value}"
        case "ARG":
            name, _, default = value.partition("=")
            step.defaults[name] = default
        case "ENV":
            step.environment |= dict(word.split("=", 1) for word in value.split())
        case "WORKDIR":
            step.folder = value
            (step.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            step.user = int(value.partition(":")[0])
        case "COPY":
            _copy(step, *value.split())
        case "CMD":
            step.command = tuple(dockerfile.arguments(value))
        case _:
            raise AssertionError(f"{instruction.name} is not known here: {value}")


def _run(step: _Build, command: str, flags: tuple[str, ...] = ()) -> None:
    settings, indexes = machine.index_settings()
    caches = [Bind(_cache(step.state), flag.rpartition("target=")[2]) for flag in flags]
    box = Box(
        root=step.root,
        scratch=step.state / "building",
        binds=(*indexes, *caches),
        environment={"HOME": "/root"} | step.variables | settings,
        user=step.user,
        is_built=True,
    )
    began = time.monotonic()
    with (step.state / "build.log").open("a", encoding="utf-8") as log:
        print(f"\n>>> RUN {command}", file=log, flush=True)
        code = machine.start(box, ["/bin/sh", "-c", command], log, step.folder).wait()
        print(f"<<< {code} after {time.monotonic() - began:.0f} s", file=log)
    assert code == 0, f"RUN {command}: exit code {code}; see {log.name}"


def _cache(state: Path) -> Path:
    folder = state / "cache"
    folder.mkdir(exist_ok=True)
    return folder


def _copy(step: _Build, *words: str) -> None:
    *sources, target = words
    for name in sources:
        source = step.context / name
        assert _is_sent(name, step.context), f".dockerignore leaves out {name}, which the Dockerfile copies"
        into = Path(os.path.normpath(step.root / step.folder.lstrip("/") / target))
        if source.is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, into, ignore=left_out, dirs_exist_ok=True)
        else:
            shutil.copy(source, into / source.name if target.endswith("/") else into)


def _is_sent(name: str, context: Path) -> bool:
    """Whether `.dockerignore` lets a path through: the last line that matches it or a parent decides."""
    lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = True
    for line in lines:
        pattern = line.removeprefix("!").strip()
        path = Path(name)
        if not line.startswith("#") and any(fnmatch.fnmatch(str(p), pattern) for p in (path, *path.parents)):
            sent = line.startswith("!")
    return sent


@dataclass
class Container:
    """A service that runs."""

    service: Service
    box: Box
    process: subprocess.Popen[str]
    log: Path

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside."""
        return machine.execute(self.box, self.process, command)

    def is_healthy(self) -> bool:
        return self.execute(*self.service.health).returncode == 0


class Engine:
    """The services of a project, started in the order in which they wait for each other."""

    def __init__(self, project: Project, image: Image, state: Path) -> None:
        """Starts nothing yet; `state` is an empty folder for volumes and logs."""
        self._project, self._image, self._state = project, image, state
        self._network = machine.Network()
        self.running: list[Container] = []
        for service in project.services.values():
            for index in range(service.replicas):
                self._network.name(_host_name(service, index))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for container in reversed(self.running):
            machine.stop(container.process)
        self._network.close()

    def up(self) -> None:
        """Starts what `docker compose up --wait` starts."""
        for name, service in self._project.services.items():
            if not service.on_demand:
                self.ensure(name)

    def ensure(self, name: str) -> Container:
        """Starts a service, and those it waits for, unless it runs; the first of its containers."""
        service = self._project.services[name]
        known = [container for container in self.running if container.service == service]
        if known:
            return known[0]
        for other in service.waits_for:
            self.ensure(other)
        started = [self._start(service, index, service.command) for index in range(service.replicas)]
        self.running += started
        for container in started:
            _wait_until_healthy(container)
        return started[0]

    def run(self, name: str, *command: str) -> tuple[int, str]:
        """What `docker compose run --rm` does: exit code and output of a service, or of another command in it."""
        service = self._project.services[name]
        for other in service.waits_for:
            self.ensure(other)
        container = self._start(service, 0, command or service.command)
        code = container.process.wait()
        return code, container.log.read_text(encoding="utf-8")

    def _start(self, service: Service, index: int, command: tuple[str, ...]) -> Container:
        host = _host_name(service, index)
        log = self._state / f"{host}.log"
        box = Box(
            root=self._image.root,
            scratch=self._state / f"scratch-{host}-{time.monotonic_ns()}",
            binds=self._binds(service),
            environment={"HOME": "/home/sweep", **self._image.environment, **service.environment},
            user=self._image.user,
            shm_size=service.shm_size,
        )
        with log.open("w", encoding="utf-8") as output:
            folder = service.working_dir or self._image.folder
            words = [*service.entrypoint, *(command or self._image.command)]
            process = machine.start(box, words, output, folder)
        self._network.attach(process, host)
        return Container(service, box, process, log)

    def _binds(self, service: Service) -> tuple[Bind, ...]:
        hosts = self._state / "hosts"
        lines = ["127.0.0.1 localhost"] + [f"{ip} {name}" for name, ip in self._network.addresses.items()]
        hosts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        resolver = self._state / "resolv.conf"
        resolver.write_text(
            "nameserver 127.0.0.1\n", encoding="utf-8"
        )  # refuses at once: names are in `hosts`
        secrets = [Bind(file.resolve(), target, read_only=True) for file, target in service.secrets.items()]
        volumes = [Bind(self._source(mount), mount.target, mount.read_only) for mount in service.mounts]
        names = (
            Bind(hosts, "/etc/hosts", read_only=True),
            Bind(resolver, "/etc/resolv.conf", read_only=True),
        )
        return *names, *volumes, *secrets

    def _source(self, mount: Mount) -> Path:
        """A folder of the host, or a volume; an empty volume takes its owner from the image."""
        if not mount.is_volume:
            return (self._project.folder / mount.source).resolve()
        folder = self._state / "volumes" / mount.source
        if not folder.exists():
            folder.mkdir(parents=True)
            owner = (self._image.root / mount.target.lstrip("/")).stat()
            os.chown(folder, owner.st_uid, owner.st_gid)
        return folder


def _host_name(service: Service, index: int) -> str:
    return service.name if service.replicas == 1 else f"{service.name}-{index + 1}"


def _wait_until_healthy(container: Container) -> None:
    until = time.monotonic() + _HEALTHY_WITHIN_S
    while time.monotonic() < until:
        code = container.process.poll()
        assert code is None, (
            f"{container.service.name}: exit code {code}\n{container.log.read_text()[-4000:]}"
        )
        if container.is_healthy():
            return
        time.sleep(1)
    raise AssertionError(f"{container.service.name} is not healthy\n{container.log.read_text()[-4000:]}")
