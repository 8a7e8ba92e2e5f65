"""The files of docker/: linted, of one mind with the project, and without anything secret in them.

What the services do when they run is tested by `make test-docker`.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
TOOLS = Path(sys.executable).parent


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = _run(TOOLS / "hadolint", DOCKER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp && echo $HOME\n", encoding="utf-8")
    assert _run(TOOLS / "hadolint", bad).returncode == 1


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_a_compose_file_follows_the_schema(name: str) -> None:
    done = _schema(DOCKER / name)
    assert done.returncode == 0, done.stdout


def test_the_schema_finds_a_misspelt_word(tmp_path: Path) -> None:
    bad = tmp_path / "compose.yaml"
    bad.write_text(COMPOSE.read_text(encoding="utf-8").replace("depends_on:", "depend_on:"), encoding="utf-8")
    assert _schema(bad).returncode == 1


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in _services().values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_service_is_privileged() -> None:
    for name, service in _services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"], name
        assert "user" not in service, f"{name}: the image says who runs"


def test_what_a_service_mounts_from_an_empty_volume_belongs_to_its_user() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    made = next(line for line in dockerfile.splitlines() if "install -d -o sweep" in line).split()
    volumes = [volume for service in _services().values() for volume in service.get("volumes", [])]
    assert {volume.replace(":-", "").split(":")[1] for volume in volumes if "/files/" not in volume} <= set(
        made
    )


def test_ignored_files_are_all_but_what_the_dockerfile_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [
        line.split() for line in (DOCKER / "Dockerfile").read_text().splitlines() if line.startswith("COPY")
    ]
    assert {word for words in copies for word in words[1:-1]} == sent


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = _run(sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", "cluster")
    assert done.stdout.splitlines() == project["dependencies"] + project["optional-dependencies"]["cluster"]


def test_secrets_are_made_once_and_are_nobody_elses(make_secrets: Callable[[], Path]) -> None:
    secrets = make_secrets()
    first = {file.name: file.read_text(encoding="utf-8") for file in secrets.iterdir()}
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()} == {0o600}
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {file.read_text(encoding="utf-8") for file in make_secrets().iterdir()} == set(first.values())
    assert set(first) == {Path(entry["file"]).name for entry in _compose()["secrets"].values()}
    assert len(first["ray_token"]) == 64


def test_server_and_clients_get_one_password_also_when_one_file_is_lost(
    make_secrets: Callable[[], Path],
) -> None:
    secrets = make_secrets()
    before = _password(secrets / "mlflow_auth")
    assert _password(secrets / "mlflow_credentials") == before
    (secrets / "mlflow_credentials").unlink()
    make_secrets()
    assert _password(secrets / "mlflow_auth") == _password(secrets / "mlflow_credentials") != before


def test_secrets_are_not_committed() -> None:
    ignored = (DOCKER / ".gitignore").read_text(encoding="utf-8").split()
    assert {"secrets/", ".env"} <= set(ignored)


@pytest.fixture
def make_secrets(tmp_path: Path) -> Callable[[], Path]:
    """Runs the script in a folder of its own; returns the folder of the secrets."""
    script = shutil.copy(DOCKER / "make-secrets", tmp_path / "make-secrets")

    def make() -> Path:
        assert _run(script).returncode == 0
        return tmp_path / "secrets"

    return make


def _password(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(line.rpartition(" = ")[2] for line in lines if "password = " in line)


def _compose() -> dict[str, dict[str, dict[str, str]]]:
    content: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return content


def _services() -> dict[str, dict[str, list[str]]]:
    services: dict[str, dict[str, list[str]]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))[
        "services"
    ]
    return services


def _schema(file: Path) -> subprocess.CompletedProcess[str]:
    return _run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command], text=True, capture_output=True, check=False)
