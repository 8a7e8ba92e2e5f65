"""The command `submit`: the same run as a job on a Ray cluster, followed from here.

The job's name follows from the storage and the sweep, so that a second `submit` finds the first one and attaches to
it. The journal makes a second job safe: it goes on where the first one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.durable import temporary_folder
from finetune_sweep.errors import SweepError
from finetune_sweep.package import SWEEP_FILE, pack
from finetune_sweep.spec import Sweep
from finetune_sweep.tune.cluster import Cluster, check

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
    with temporary_folder() as folder:
        file = folder / "package.zip"
        digest = pack(sweep, shared).write(file)
        running = jobs.running()
        if running is None:
            check(cluster, sweep.resources_per_trial)
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
    with _answering(cluster):
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
        with _answering(self.cluster):
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

    def _all(self) -> list[tuple[int, JobDetails]]:
        pattern = re.compile(re.escape(self.prefix) + r"(\d+)")
        with _answering(self.cluster):
            jobs = self.cluster.jobs.list_jobs()
        found = ((pattern.fullmatch(job.submission_id or ""), job) for job in jobs)
        return [(int(match[1]), job) for match, job in found if match]


@contextlib.contextmanager
def _answering(cluster: Cluster) -> Iterator[None]:
    """Turns what Ray's client raises into one line."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise SweepError(f"{cluster.address} refused: {_first_line(error)}") from error


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
    from aiohttp import ClientError

    try:
        async for text in jobs.tail_job_logs(job):
            lines.add(text)
    except ClientError as error:
        raise ConnectionError(str(error)) from error
