"""Every error that leaves the package.

    SweepError                 exit 1
    ├── UserError              exit 2   the file, the data or the arguments; carries all problems found
    ├── SweepLocked            exit 3   another driver holds the sweep
    ├── StorageError           exit 1   the journal is damaged, the disk is full, a manifest does not match
    ├── TrialError             exit 1   a trial cannot go on; carries its failure class
    ├── VerificationError      exit 1   the winner did not give its recorded metrics again
    └── TrackingError          exit 4   the sweep is done, MLflow is incomplete
    Interrupted                exit 130 a signal asked to stop; no error, so it is caught where a session ends

A message says what was wrong, the value, and what would be right. All of them can be pickled, since
they cross the boundary between a worker and the driver.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, Literal


class Interrupted(BaseException):
    """A signal asked to stop, exit 130: what was finished or stored stays, and the same command goes on."""


FailureClass = Literal["out_of_memory", "diverged", "lost_worker", "hang", "fault"]

_CREDENTIALS: Final = re.compile(r"(://)[^\s@/:]*:\S*@|(:/{1,2})[^/\s]+@")
"""A name and a password, which may hold any sign, up to the last @; or whatever stands before the host."""
_SECRET_OPTION: Final = re.compile(
    r"(?i)(?<=[?&#])([^=&#\s]*(?:pass|pwd|token|secret|key|sig)[^=&#\s]*)=[^&#\s]*"
)


def without_credentials(text: str) -> str:
    """A text with the names, passwords and tokens of the URIs in it struck out.

    >>> without_credentials("got 'https://me:secret@host/mlflow?token=t'")
    "got 'https://***@host/mlflow?token=***"
    >>> without_credentials("mysql+pymysql://me:pa/ss@w@rd@db.example/mlflow")
    'mysql+pymysql://***@db.example/mlflow'
    """
    return _SECRET_OPTION.sub(r"\1=***", _CREDENTIALS.sub(r"\1\2***@", text))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in what the user gave: where it stands, and what would be right.

    As text it is without the credentials that a URI of the user's may hold.
    """

    message: str
    path: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line is not None else self.file
        return without_credentials(": ".join(part for part in (where, self.path, self.message) if part))


class SweepError(Exception):
    """Base of all errors that the package raises on purpose."""

    exit_code: ClassVar[int] = 1


class UserError(SweepError):
    """The file, the data or the arguments are wrong.

    Args:
        problems: All that was found, in the order of the file; a plain text stands for one of them.
    """

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class SweepLocked(SweepError):
    """Another driver holds the sweep; the message names its host, process and start."""

    exit_code = 3


class StorageError(SweepError):
    """What lies in the storage is damaged, or it cannot take more."""


class TrialError(SweepError):
    """A trial cannot go on.

    Args:
        message: What happened, with the value.
        failure: Its class, which decides whether it is tried again.
    """

    def __init__(self, message: str, failure: FailureClass = "fault") -> None:
        super().__init__(message, failure)
        self.message = message
        self.failure: FailureClass = failure

    def __str__(self) -> str:
        return self.message


class VerificationError(SweepError):
    """The promoted checkpoint, loaded afresh, does not give the recorded metrics."""


class TrackingError(SweepError):
    """MLflow could not be given everything; the journal has it, and the next run delivers it."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'epochs'?)"`` for the known word that is nearest, or an empty text."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
