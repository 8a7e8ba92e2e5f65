"""Reads a compose file, as far as the one of the project goes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.docker import dockerfile

# What the containers of `machine` do in any case; another value could not be tried with them.
_ALWAYS: Final = {
    "init": True,
    "read_only": True,
    "tmpfs": ["/tmp:mode=1777"],  # noqa: S108 - in the container
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}
_OBEYED: Final = {
    *(
        "environment",
        "entrypoint",
        "command",
        "working_dir",
        "volumes",
        "secrets",
        "healthcheck",
        "depends_on",
    ),
    *("deploy", "shm_size", "profiles", "build"),
}
_LEFT_TO_AN_ENGINE: Final = {"image", "restart", "ports", "stop_grace_period"}


@dataclass(frozen=True)
class Mount:
    """A volume or a folder of the host, and where it is in the container."""

    source: str
    target: str
    read_only: bool

    @property
    def is_volume(self) -> bool:
        return not self.source.startswith((".", "/"))


@dataclass(frozen=True)
class Service:
    """A service, its variables filled in. `secrets` and `mounts` say what of the host is where in the container."""

    name: str
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    working_dir: str | None
    mounts: tuple[Mount, ...]
    secrets: Mapping[Path, str]
    health: tuple[str, ...]
    waits_for: tuple[str, ...]
    replicas: int
    shm_size: str
    on_demand: bool


@dataclass(frozen=True)
class Project:
    """A compose file: its services, and what the image is built with."""

    folder: Path
    services: Mapping[str, Service]
    build_arguments: Mapping[str, str]


def read(file: Path, variables: Mapping[str, str]) -> Project:
    """The compose file, with variables from `.env` beside it and from the caller, who wins."""
    text = file.read_text(encoding="utf-8")
    content = _fill(yaml.safe_load(text), _dot_env(file.parent) | dict(variables))
    services = {
        name: _service(name, entry, file.parent, content["secrets"])
        for name, entry in content["services"].items()
    }
    builds = [entry["build"] for entry in content["services"].values() if "build" in entry]
    return Project(file.parent, services, builds[0]["args"])


def _dot_env(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text(encoding="utf-8").split()
    return dict(line.split("=", 1) for line in lines)


def _fill(value: Any, variables: Mapping[str, str]) -> Any:  # noqa: ANN401 - what YAML holds
    if isinstance(value, dict):
        return {key: _fill(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    parts = [dockerfile.expand(part, variables) for part in value.split("$$")]
    return "$".join(parts)


def _service(name: str, entry: Mapping[str, Any], folder: Path, secrets: Mapping[str, Any]) -> Service:
    assert {key: entry.get(key) for key in _ALWAYS} == _ALWAYS, f"{name} cannot be tried as it stands"
    assert entry.keys() <= _ALWAYS.keys() | _OBEYED | _LEFT_TO_AN_ENGINE, (
        f"{name} has a key that is not obeyed"
    )
    health = entry.get("healthcheck", {}).get("test", ["CMD"])
    assert health[0] == "CMD", health
    return Service(
        name=name,
        environment=entry.get("environment", {}),
        entrypoint=_words(entry.get("entrypoint", [])),
        command=_words(entry.get("command", [])),
        working_dir=entry.get("working_dir"),
        mounts=tuple(_mount(volume) for volume in entry.get("volumes", [])),
        secrets=dict(_secret(secret, folder, secrets) for secret in entry.get("secrets", [])),
        health=tuple(health[1:]),
        waits_for=tuple(entry.get("depends_on", {})),
        replicas=int(entry.get("deploy", {}).get("replicas", 1)),
        shm_size=str(entry.get("shm_size", "64m")),
        on_demand="profiles" in entry,
    )


def _words(command: str | list[str]) -> tuple[str, ...]:
    return tuple(shlex.split(command) if isinstance(command, str) else command)


def _mount(volume: str) -> Mount:
    source, target, *mode = re.split(":", volume)
    return Mount(source, target, mode == ["ro"])


def _secret(secret: str | Mapping[str, str], folder: Path, files: Mapping[str, Any]) -> tuple[Path, str]:
    name = secret if isinstance(secret, str) else secret["source"]
    target = name if isinstance(secret, str) else secret["target"]
    return folder / files[name]["file"], target if target.startswith("/") else f"/run/secrets/{target}"
