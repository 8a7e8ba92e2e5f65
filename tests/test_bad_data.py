"""What a user is told of data that are wrong, and of a file that is, by the command itself."""
# ruff: noqa: E501 - the messages stand here as a user reads them

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from finetune_sweep.cli import app
from tests.test_sweepfile import BAD as BAD_SWEEPS

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

ROWS = "".join(f"a text of number {row},{'ab'[row % 2]}\n" for row in range(40))
GOOD = f"review,verdict\n{ROWS}"


@dataclass(frozen=True)
class Bad:
    """Files by their names, what `data.source` says, and the message."""

    files: dict[str, str | bytes]
    source: str
    message: str


BAD = {
    "missing column": Bad(
        {"d.csv": GOOD.replace("verdict", "verdicts")},
        "d.csv",
        "d.csv: has no column 'verdict', it has review, verdicts (did you mean 'verdicts'?); say `columns: {label: NAME}`",
    ),
    "one class only": Bad(
        {"d.csv": GOOD.replace(",b", ",a")},
        "d.csv",
        "classification needs at least two classes, the training rows have only 'a'",
    ),
    "empty file": Bad({"d.csv": ""}, "d.csv", "d.csv: is empty"),
    "header only": Bad(
        {"d.csv": "review,verdict\n"}, "d.csv", "d.csv: has no rows; the first line must name the columns"
    ),
    "label missing in a row": Bad(
        {"d.csv": GOOD.replace("number 7,b", "number 7,")}, "d.csv", "d.csv: row 8 of train has no label"
    ),
    "not a csv": Bad(
        {"d.csv": b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe"},
        "d.csv",
        "d.csv: cannot be read as csv: 'utf-8' codec can't decode byte 0x89 in position 0: invalid start byte",
    ),
    "not json": Bad(
        {"d.jsonl": GOOD},
        "d.jsonl",
        "d.jsonl: line 1: cannot be read as json: Expecting value, column 1: review,verdict",
    ),
    "a row with a comma in its text": Bad(
        {"d.csv": GOOD + "a text, unquoted,a\n"},
        "d.csv",
        "d.csv: cannot be read as csv: Error tokenizing data. C error: Expected 2 fields in line 42, saw 3",
    ),
    "nothing there": Bad(
        {"data.csv": GOOD}, "dat.csv", "data: dat.csv: no such file or folder (did you mean 'data.csv'?)"
    ),
    "a file where a folder should be": Bad(
        {"d.csv": GOOD}, "d.csv/train.csv", "data: d.csv/train.csv: no such file or folder"
    ),
    "a path that no system has": Bad({}, "d" * 300, f"data: {'d' * 300}: File name too long"),
    "folder without splits": Bad(
        {"d/one.csv": GOOD, "d/two.csv": GOOD},
        "d",
        "data: d: holds one.csv, two.csv: name them train, validation and test, or say `files: {train: ...}`",
    ),
    "folder without train": Bad(
        {"d/validation.csv": GOOD, "d/test.csv": GOOD}, "d", "data: d: has test, validation and no train"
    ),
    "unknown suffix": Bad(
        {"d.xlsx": GOOD},
        "d.xlsx",
        "data: d.xlsx: must be one of .csv, .tsv, .json, .jsonl, .ndjson, .parquet, .conll, .conllu, .iob, .iob2, .bio, got .xlsx",
    ),
    "duplicate header": Bad(
        {"d.csv": GOOD.replace("review,", "verdict,")},
        "d.csv",
        "d.csv: the header names 'verdict' more than once",
    ),
    "class only in validation": Bad(
        {"d/train.csv": GOOD, "d/dev.csv": "review,verdict\nnew,a\nother,c\n"},
        "d",
        "d/dev.csv: row 2: class 'c' is in validation (1 rows) and not in train, which has a, b",
    ),
    "too few rows": Bad(
        {"d.csv": "".join(GOOD.splitlines(keepends=True)[:9])},
        "d.csv",
        "d.csv: split.test 0.1 of 8 rows is 1, 2 are needed: raise it, give a file of this split, or set it to 0",
    ),
}


def plan(sweep: Path) -> Result:
    return CliRunner().invoke(app, ["plan", str(sweep)])


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_told_in_one_line(name: str, write_sweep: WriteSweep, tmp_path: Path) -> None:
    bad = BAD[name]
    for file, content in bad.files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)

    result = plan(write_sweep(data=bad.source))

    assert result.exit_code == 2
    assert result.stderr.replace(f"{tmp_path}/", "") == bad.message + "\n"
    assert result.stdout == ""


@pytest.mark.parametrize("name", BAD_SWEEPS)
def test_a_bad_sweep_ends_the_command_with_the_message_alone(name: str, tmp_path: Path) -> None:
    text, message = BAD_SWEEPS[name]
    (tmp_path / "bad.yaml").write_text(text)

    result = plan(tmp_path / "bad.yaml")

    assert result.exit_code == 2
    shown = result.stderr.replace(f"{tmp_path}/", "").replace(str(tmp_path), "FOLDER")
    assert shown == message + "\n"
    assert "Traceback" not in result.output
