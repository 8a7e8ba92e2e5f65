"""The command `submit`: the same run as a job on a Ray cluster, followed from here.

The job's name follows from the storage and the sweep, so that a second `submit` finds the first one and attaches to
it. The journal makes a second job safe: it goes on where the first one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from finetune_sweep.errors import SweepError, UserError
from finetune_sweep.package import SWEEP_FILE, pack
from finetune_sweep.spec import Sweep
from finetune_sweep.tune.engine import count_slots

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Say = Callable[[str], None]

DETACHED: Final = 130
"""The exit code after Ctrl-C here, and of a job that was stopped."""
STOP_WAIT_S: Final = 90
"""What a job has, between the request to stop and being killed, to write down where it is; Ray's default is 3."""

_ENTRYPOINT: Final = (
    f"python -m finetune_sweep.tune.arrival && exec python -m finetune_sweep run {SWEEP_FILE} --address auto"
)
_JOB_ENVIRONMENT: Final = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
_OVERRIDING: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_ANSWER_S: Final = 15.0
_POLL_S: Final = 0.5
_PATIENCE_S: Final = 120.0
_DIGEST: Final = "package"


def submit(sweep: Sweep, address: str, shared: Sequence[Path], say: Say) -> int:
    """Runs a sweep on a cluster, or attaches to its job that runs there, and follows the log.

    Args:
        sweep: The checked sweep; its storage is a folder that all nodes share.
        address: The cluster's dashboard, such as `http://10.0.0.1:8265`.
        shared: Further folders that all nodes share; what a sweep names elsewhere is sent along.
        say: Prints a line.

    Returns:
        The exit code of the run; 130 if it was stopped, or if Ctrl-C ended the following.

    Raises:
        UserError: If the cluster cannot be reached or cannot run the sweep.
        SweepError: If the job could not be started, or the cluster is lost.
    """
    cluster = Cluster(address)
    cluster.check_access()
    jobs = Jobs(cluster, sweep)
    with tempfile.TemporaryDirectory(prefix="finetune_sweep-") as folder:
        file = Path(folder) / "package.zip"
        digest = pack(sweep, shared).write(file)
        running = jobs.running()
        if running is None:
            check(cluster, sweep)
            job = jobs.start(file, digest)
            say(f"submitted {job} to {cluster.address}; Ctrl-C leaves it running")
        else:
            job = str(running.submission_id)
            say(f"attached to {job}, which runs at {cluster.address}; Ctrl-C leaves it running")
            if (running.metadata or {}).get(_DIGEST) != digest:
                say(
                    "it was submitted with other settings or files, and goes on with those; submit again when it ends"
                )
    return follow(cluster, job, say)


def stop(sweep: Sweep, address: str, say: Say) -> int:
    """Asks the job of a sweep to stop, and waits until it has.

    Returns:
        0 if no job runs any more and what was done is written down; 1 if it had to be killed.

    Raises:
        UserError: If the cluster cannot be reached.
    """
    cluster = Cluster(address)
    cluster.check_access()
    running = Jobs(cluster, sweep).running()
    if running is None:
        say(f"no job of the sweep {sweep.name!r} in {sweep.storage} runs at {cluster.address}")
        return 0
    job = str(running.submission_id)
    say(f"stopping {job}")
    begin = time.monotonic()
    cluster.jobs.stop_job(job)
    while not cluster.jobs.get_job_info(job).status.is_terminal():
        time.sleep(_POLL_S)
    if time.monotonic() - begin >= STOP_WAIT_S:
        say(
            f"it did not stop within {STOP_WAIT_S} s and was killed; submit goes on from what is in the journal"
        )
        return 1
    say("stopped; submit goes on from here")
    return 0


# ------------------------------------------------------------------------------------------------ the cluster


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
        """The token, where one is there: from the places that Ray looks in, and in the same order."""
        token = _read_token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    @cached_property
    def jobs(self) -> JobSubmissionClient:
        """Ray's client for jobs. It sends the token itself, so no setting of Ray's decides whether to."""
        for name in _OVERRIDING:  # they would replace the address that was asked for
            os.environ.pop(name, None)
        from ray.job_submission import JobSubmissionClient

        for module in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
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
        request = urllib.request.Request(self.address + path, headers=self.headers)  # noqa: S310 - http, checked
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:  # noqa: S310 - http, checked
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise UserError(self._refused(error.code, path)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"--address {self.address}: no Ray dashboard answers there ({reason}); `ray start --head`"
                " needs ray[default], and --dashboard-host=0.0.0.0 to be reached from other machines"
            ) from None

    def _refused(self, code: int, path: str) -> str:
        if code not in {401, 403}:
            return f"--address {self.address}: this is no Ray dashboard, {path} gave HTTP {code}"
        found = "the one here is not the cluster's" if self.headers else "there is none here"
        return (
            f"--address {self.address}: the cluster asks for a token, and {found}; put the cluster's into"
            " ~/.ray/auth_token (mode 600), or name its file in RAY_AUTH_TOKEN_PATH"
        )


def _read_token() -> str:
    """Ray's token for clusters, or an empty text."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def check(cluster: Cluster, sweep: Sweep) -> None:
    """Compares versions, and looks for a node that can take a trial.

    Raises:
        UserError: With all that does not fit, one line each.
    """
    there = cluster.get("/api/version")["ray_version"], cluster.get("/api/v0/cluster_metadata")["data"]
    versions = (
        ("Ray", importlib.metadata.version("ray"), there[0]),
        ("Python", _minor(platform.python_version()), _minor(there[1]["pythonVersion"])),
    )
    problems = [
        f"--address {cluster.address}: the cluster has {name} {remote}, here is {name} {local};"
        " they must be the same, install one of them on the other side"
        for name, local, remote in versions
        if remote != local
    ]
    nodes = cluster.get("/api/v0/nodes?limit=10000&detail=1")["data"]["result"]["result"]
    try:
        count_slots(
            [node["resources_total"] for node in nodes if node["state"] == "ALIVE"], sweep.resources_per_trial
        )
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


# --------------------------------------------------------------------------------------------------- the job


@dataclass(frozen=True)
class Jobs:
    """The jobs of one sweep on a cluster: `finetune-sweep-<name>-<digest>-1`, `-2` and so on.

    Ray takes a submission id once; the digits count the submissions.
    """

    cluster: Cluster
    sweep: Sweep

    @property
    def prefix(self) -> str:
        """What their submission ids begin with: it follows from the storage and the name of the sweep."""
        digest = hashlib.sha256(f"{self.sweep.storage}\n{self.sweep.name}".encode()).hexdigest()[:8]
        return f"finetune-sweep-{self.sweep.name}-{digest}-"

    def running(self) -> JobDetails | None:
        """The one that waits or runs, if any."""
        return next((job for _, job in self._all() if not job.status.is_terminal()), None)

    def start(self, package: Path, digest: str) -> str:
        """Submits the next one.

        Args:
            package: The zip that Ray extracts as the job's working directory.
            digest: Of the package, for those who attach.

        Returns:
            Its submission id.

        Raises:
            SweepError: If the cluster refuses.
        """
        number = max((number for number, _ in self._all()), default=0) + 1
        try:
            return self.cluster.jobs.submit_job(
                entrypoint=_ENTRYPOINT,
                submission_id=f"{self.prefix}{number}",
                runtime_env={
                    "working_dir": str(package),
                    "py_modules": [str(Path(__file__).parent)],
                    "env_vars": _JOB_ENVIRONMENT,
                },
                metadata={"sweep": self.sweep.name, "storage": str(self.sweep.storage), _DIGEST: digest},
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise SweepError(f"{self.cluster.address} did not take the job: {_first_line(error)}") from error

    def _all(self) -> list[tuple[int, JobDetails]]:
        pattern = re.compile(re.escape(self.prefix) + r"(\d+)")
        found = ((pattern.fullmatch(job.submission_id or ""), job) for job in self.cluster.jobs.list_jobs())
        return [(int(match[1]), job) for match, job in found if match]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass
class _Lines:
    """Says a log line by line, each once, also when it is read again from its beginning."""

    say: Say
    seen: int = 0
    _read: int = 0
    _rest: str = field(default="")

    def begin(self) -> None:
        """The log is read from its beginning."""
        self._read = 0

    def add(self, text: str) -> None:
        """Says the lines that are complete and new."""
        fresh = text[max(0, self.seen - self._read) :]
        self._read += len(text)
        self.seen = max(self.seen, self._read)
        *lines, self._rest = (self._rest + fresh).split("\n")
        for line in lines:
            self.say(line)

    def end(self) -> None:
        """Says what stands after the last line."""
        if self._rest:
            self.say(self._rest)


def follow(cluster: Cluster, job: str, say: Say) -> int:
    """Says the lines of a job's log until it ends.

    Returns:
        The exit code of what the job runs; 130 if it was stopped, or if Ctrl-C ended the following.

    Raises:
        SweepError: If the cluster does not answer for two minutes, or it could not run the job.
    """
    lines = _Lines(say)
    try:
        details = _until_ended(cluster, job, lines)
    except KeyboardInterrupt:
        say(f"detached; {job} goes on. The same command attaches again, --stop stops it")
        return DETACHED
    lines.end()
    if details.status == "STOPPED":
        say(f"{job} was stopped; submit goes on from here")
        return DETACHED
    code = details.driver_exit_code
    if code is None:
        raise SweepError(f"{cluster.address} could not run {job}: {details.message}")
    return code if code >= 0 else 128 - code


def _until_ended(cluster: Cluster, job: str, lines: _Lines) -> JobDetails:
    """Follows the log, again after a lost connection, until the job has ended."""
    answered = time.monotonic()
    while True:
        lines.begin()
        seen = lines.seen
        try:
            asyncio.run(_tail(cluster.jobs, job, lines))
            details = cluster.jobs.get_job_info(job)
            if details.status.is_terminal():
                return details
            answered = time.monotonic()
        except (OSError, RuntimeError) as error:
            if lines.seen > seen:
                answered = time.monotonic()
            if time.monotonic() - answered > _PATIENCE_S:
                raise SweepError(
                    f"{cluster.address} does not answer any more ({_first_line(error)}); if the cluster is there,"
                    f" {job} goes on, and the same command attaches again"
                ) from error
        time.sleep(_POLL_S)


async def _tail(jobs: JobSubmissionClient, job: str, lines: _Lines) -> None:
    async with contextlib.aclosing(jobs.tail_job_logs(job)) as log:  # type: ignore[type-var]
        async for text in log:
            lines.add(text)
