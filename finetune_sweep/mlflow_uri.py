"""Where MLflow is: as a whole address, and as one that may be printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from finetune_sweep.errors import without_credentials

_DATABASES: Final = {"sqlite", "postgresql", "mysql", "mssql"}


def tracking_uri(uri: str, storage: Path) -> str:
    """The absolute tracking URI: a relative sqlite file lies in the parent folder of the storage.

    >>> tracking_uri("sqlite:///mlflow.db", Path("/data/runs"))
    'sqlite:////data/mlflow.db'
    """
    scheme, separator, rest = uri.partition(":///")
    is_relative = not rest.startswith(("/", ":memory:"))
    if scheme.partition("+")[0] == "sqlite" and separator and is_relative:
        return f"{scheme}:///{(storage.parent / rest).absolute()}"
    return uri


def artifact_location(uri: str, storage: Path) -> str | None:
    """Where artifacts go with a database: `mlartifacts` beside the storage. None: the server decides."""
    is_database = re.split(r"[+:]", uri, maxsplit=1)[0] in _DATABASES
    return (storage.parent / "mlartifacts").absolute().as_uri() if is_database else None


def printable_uri(text: str) -> str:
    """A URI, or a text that holds some, without the credentials.

    >>> printable_uri("https://me:secret@host/mlflow")
    'https://***@host/mlflow'
    """
    return without_credentials(text)
