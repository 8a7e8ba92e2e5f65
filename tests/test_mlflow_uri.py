from __future__ import annotations

from pathlib import Path

import pytest

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.mlflow_uri import artifact_location, printable_uri, tracking_uri


def test_a_relative_database_lies_beside_the_storage() -> None:
    storage = Path("/data/runs")
    assert tracking_uri("sqlite:///mlflow.db", storage) == "sqlite:////data/mlflow.db"
    assert tracking_uri("sqlite:////elsewhere/mlflow.db", storage) == "sqlite:////elsewhere/mlflow.db"
    assert tracking_uri("https://host/mlflow", storage) == "https://host/mlflow"
    assert artifact_location("sqlite:////data/mlflow.db", storage) == "file:///data/mlartifacts"
    assert artifact_location("postgresql+psycopg2://host/mlflow", storage) == "file:///data/mlartifacts"
    assert artifact_location("https://host/mlflow", storage) is None


@pytest.mark.parametrize(
    "secret",
    [
        "https://me:s3cr3t@host/mlflow",
        "https://me:s3c@r3t@host",
        "https://s3cr3t@host",
        "mysql+pymysql://me:s3c/r3t@host/mlflow",
        "https://host/mlflow?sig=s3cr3t",
        "https://host/mlflow#access_token=s3cr3t",
        "postgresql://host/db?user=me&password=s3cr3t&sslmode=require",
        "MlflowException: request to http://me:s3cr3t@host:5000/api failed",
    ],
)
def test_credentials_are_not_printed(secret: str) -> None:
    for printed in (printable_uri(secret), str(UserError(Problem(f"uri: got {secret!r}", file="a.yaml")))):
        assert "s3c" not in printed
        assert "r3t" not in printed
        assert "host" in printed


def test_credentials_are_not_printed_of_a_uri_that_was_taken_for_a_path() -> None:
    assert (
        str(UserError(f"{Path('https://me:s3cr3t@host/x')}: no such file"))
        == "https:/***@host/x: no such file"
    )


def test_an_address_without_credentials_is_printed_as_it_is() -> None:
    for uri in ("sqlite:////data/mlflow.db", "http://127.0.0.1:5000", "https://host/path?x=1"):
        assert printable_uri(uri) == uri
