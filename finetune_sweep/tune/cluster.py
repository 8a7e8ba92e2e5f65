"""A Ray cluster as its dashboard shows it: reached, let in, and compared with this machine."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Resources
from finetune_sweep.tune.engine import count_slots

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_OVERRIDING: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_TALKATIVE: Final = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_UNAUTHORIZED: Final = frozenset({401, 403})
_ANSWER_S: Final = 15.0
_MOST_NODES: Final = 10_000


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster as its dashboard shows it.

    Args:
        address: The dashboard's URL.
    """

    address: str

    def __post_init__(self) -> None:
        """Checks the form of the address.

        Raises:
            UserError: If it is another kind of address.
        """
        parts = urlsplit(self.address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UserError(
                "--address takes the URL of the cluster's dashboard, such as http://HOST:8265,"
                f" got {self.address!r}"
            )
        object.__setattr__(self, "address", self.address.rstrip("/"))

    @cached_property
    def headers(self) -> dict[str, str]:
        """The token, if the cluster asks for one: it is not shown to others.

        Raises:
            UserError: If the cluster cannot be reached.
        """
        code, _ = self._ask("/api/version", {})
        token = _read_token() if code in _UNAUTHORIZED else ""
        return {"Authorization": f"Bearer {token}"} if token else {}

    @cached_property
    def jobs(self) -> JobSubmissionClient:
        """Ray's client for jobs. It sends the token itself, so no setting of Ray's decides whether to."""
        for name in _OVERRIDING:  # they would replace the address that was asked for
            os.environ.pop(name, None)
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        return JobSubmissionClient(self.address, headers=dict(self.headers))

    def check_access(self) -> None:
        """Asks the cluster for its version.

        Raises:
            UserError: If it does not answer, or wants another token.
        """
        self.get("/api/version")

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """What the dashboard answers.

        Raises:
            UserError: If it does not, or refuses; says what to do.
        """
        code, answer = self._ask(path, self.headers)
        if answer is None:
            raise UserError(self._refused(code, path))
        return answer

    def _ask(self, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        """The HTTP code, and the answer, which is None if it is not 200."""
        request = urllib.request.Request(self.address + path, headers=headers)  # noqa: S310 - http, checked
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:  # noqa: S310 - http, checked
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code, None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"--address {self.address}: no Ray dashboard answers there ({reason}); `ray start --head`"
                " needs ray[default], and --dashboard-host=0.0.0.0 to be reached from other machines"
            ) from None

    def _refused(self, code: int, path: str) -> str:
        if code not in _UNAUTHORIZED:
            return f"--address {self.address}: this is no Ray dashboard, {path} gave HTTP {code}"
        found = "the one here is not the cluster's" if self.headers else "there is none here"
        return (
            f"--address {self.address}: the cluster asks for a token, and {found}; put the cluster's into"
            " ~/.ray/auth_token (mode 600), or name its file in RAY_AUTH_TOKEN_PATH"
        )


def _read_token() -> str:
    """Ray's token for clusters, from the places that Ray looks in and in their order; or an empty text."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def check(cluster: Cluster, resources: Resources) -> None:
    """Compares versions, and looks for a node that can take a trial.

    Raises:
        UserError: With all that does not fit, one line each.
    """
    there = cluster.get("/api/v0/cluster_metadata")["data"]
    versions = (
        ("Ray", importlib.metadata.version("ray"), there["rayVersion"]),
        ("Python", _minor(platform.python_version()), _minor(there["pythonVersion"])),
    )
    problems = [
        f"--address {cluster.address}: the cluster has {name} {remote}, here is {name} {local};"
        " they must be the same, install one of them on the other side"
        for name, local, remote in versions
        if remote != local
    ]
    nodes = cluster.get(f"/api/v0/nodes?limit={_MOST_NODES}")["data"]["result"]["result"]
    alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
    try:
        count_slots(alive, resources)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
