"""The documents say what the program does: their blocks load, their commands run, their tables are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import pytest
from typer.main import get_command

from finetune_sweep import errors, plan, report, yamlio
from finetune_sweep.cli import app
from finetune_sweep.errors import FailureClass
from finetune_sweep.events import (
    EVENTS,
    Entry,
    Evaluated,
    Event,
    SweepPlanned,
    TrialEnded,
    TrialPlanned,
    TrialState,
)
from finetune_sweep.record import replay
from finetune_sweep.report import SweepState
from finetune_sweep.spec import Sweep, searchable
from finetune_sweep.sweepfile import load_sweep

if TYPE_CHECKING:
    from finetune_sweep.yamlio import Value

ROOT: Final = Path(__file__).resolve().parent.parent
README: Final = ROOT / "README.md"
DOCUMENTS: Final = (
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
DESIGN: Final = (ROOT / "docs" / "design.md").read_text()
COMMAND: Final = "python -m finetune_sweep"
MINIMAL: Final[Mapping[str, Value]] = {
    "name": "block",
    "task": "text-classification",
    "model": "example:minilm-l6",
    "data": {"source": "example:acl-aspects", "columns": {"text": "sentence", "label": "aspect"}},
    "metric": "accuracy",
}


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)


YAML_BLOCKS: Final = [
    pytest.param(block, id=f"{file.stem}-{number}")
    for file in DOCUMENTS
    for number, block in enumerate(blocks(file, "yaml"), 1)
]


def commands() -> list[list[str]]:
    """The arguments of every complete command that the documents show."""
    text = "\n".join(file.read_text() for file in DOCUMENTS)
    shown = re.findall(rf"{COMMAND} ([a-z-][^`\n]*)", text)
    return [shlex.split(line, comments=True) for line in dict.fromkeys(shown)]


def known_commands() -> dict[str, Any]:
    return dict(getattr(get_command(app), "commands"))  # noqa: B009 - typer types no group


def rows(text: str, heading: str) -> Iterator[list[str]]:
    """The rows of the table below its first column's heading, each as cells."""
    lines = iter(text.partition(f"| {heading} |")[2].splitlines()[2:])
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


# ------------------------------------------------------------------------------------------------ YAML


def test_the_reference_is_up_to_date(tmp_path: Path) -> None:
    fresh = tmp_path / "sweep-file.md"
    script = ROOT / "docs" / "generate_reference.py"

    subprocess.run([sys.executable, script, fresh], cwd=ROOT, check=True, timeout=120)

    assert fresh.read_text() == (ROOT / "docs" / "sweep-file.md").read_text(), "run `make docs`"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_every_yaml_block_is_a_sweep_or_a_part_of_one(block: str, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(ROOT / "search_spaces", tmp_path / "search_spaces")
    file = tmp_path / "sweeps" / "block.yaml"
    file.parent.mkdir()
    content = yamlio.parse(block, "block").value
    assert isinstance(content, dict)
    if set(content) <= set(Sweep.model_fields):
        content = content if "name" in content else {**MINIMAL, **content}
    else:
        assert all(searchable(name) for name in content)
        content = {**MINIMAL, "space": content, "search": {"type": "random", "trials": 3}}
    file.write_text(yamlio.dump(content))

    sweep = load_sweep(file, options={"cache": str(cache)}, check=plan.check)

    assert sweep.search.type == "tpe" or list(plan.configurations(sweep, replay([])))


def test_the_sweep_of_the_readme_stands_there_as_it_can_be_copied(tmp_path: Path) -> None:
    (block,) = blocks(README, "yaml")
    file = tmp_path / "sweep.yaml"
    file.write_text(block)

    assert load_sweep(file).name == "papers"


# -------------------------------------------------------------------------------------------- commands


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 150


def test_every_command_has_its_row_in_the_readme() -> None:
    shown = {name.split()[0] for cells in rows(README.read_text(), "command") for name in words(cells[0])}
    assert shown == set(known_commands())


def test_every_option_is_documented() -> None:
    text = "\n".join(file.read_text() for file in DOCUMENTS)
    parameters = [p for command in known_commands().values() for p in command.params]
    options = {name for p in parameters for name in p.opts if name.startswith("--")}
    assert "--set" in options
    assert [name for name in sorted(options) if not re.search(rf"{name}\b", text)] == []


def test_every_exit_code_is_in_the_readme() -> None:
    raised = {error.exit_code for error in vars(errors).values() if hasattr(error, "exit_code")}
    shown = {int(cells[0]) for cells in rows(README.read_text(), "exit code")}
    assert shown == {0, 130} | raised


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_line_in_the_documents_is_understood(arguments: list[str]) -> None:
    name, *rest = arguments
    if name.startswith("-"):
        assert name in {"--help", "--version"}
    else:
        known_commands()[name].make_context(name, rest)


def test_the_cheap_commands_of_the_readme_run_and_its_numbers_are_theirs(tmp_path: Path) -> None:
    lines = [
        line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith(COMMAND)
    ]
    plans = [shlex.split(line)[3:] for line in lines if " plan " in line]
    assert f"{COMMAND} --help" in lines
    assert len(plans) == 1

    shown = execute(["--help"])
    planned = json.loads(execute([*plans[0], "--json", "--storage", str(tmp_path), "--cache", str(tmp_path)]))

    assert all(name in shown for name in known_commands())
    numbers = f"{planned['trials']} trials in {planned['trajectories']} trainings"
    assert numbers in README.read_text()


def execute(arguments: list[str]) -> str:
    command = [sys.executable, "-m", "finetune_sweep", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ----------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_sweeps_and_spaces_that_are_named_are_there() -> None:
    """Where a name has a slash behind it, as a folder."""
    names = {
        name.rstrip(".")
        for file in (README, *sorted((ROOT / "docs").glob("*.md")))
        for name in re.findall(r"(?<![\w./-])(?:sweeps|search_spaces)/[\w./-]*", file.read_text())
    }
    assert {"sweeps/bert.yaml", "sweeps/tiny_bart/"} <= names
    missing = [n for n in names if not ((ROOT / n).is_dir() if n.endswith("/") else (ROOT / n).exists())]
    assert missing == []


def anchors(file: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---------------------------------------------------------------------------------------------- design


def test_the_table_of_events_is_that_of_the_journal() -> None:
    shown = {cells[0].strip("`"): words(cells[1]) for cells in rows(DESIGN, "event")}
    assert shown == {name: {field.name for field in fields(event)} for name, event in EVENTS.items()}


def test_the_tables_of_states_and_failures_are_complete() -> None:
    for heading, known in {
        "state of a trial": TrialState,
        "state of a sweep": SweepState,
        "class": FailureClass,
    }.items():
        assert {cells[0].strip("`") for cells in rows(DESIGN, heading)} == set(get_args(known))


def test_the_keys_of_status_json_are_documented() -> None:
    metrics = {"accuracy": 1.0}
    events: list[Event] = [
        TrialPlanned("a", "a", {}, {"epochs": 1}, 0),
        TrialPlanned("b", "b", {}, {"epochs": 1}, 0),
        SweepPlanned("text-classification", "f", "accuracy", "max", "best", "fp32", "cpu", ("a",)),
        Evaluated("a", ("a",), 1, 1, 1.0, 1.0, metrics, metrics, 1.0, 1.0, 1),
        TrialEnded("a", "finished", 1, 1, 1.0),
    ]
    view = report.status(replay(Entry(0.0, event) for event in events), "s", locked=False).to_json()
    best, trials = view["best"], view["trials"]
    assert isinstance(best, dict)
    assert isinstance(trials, list)
    keys = {*view, *best, *(key for trial in trials if isinstance(trial, dict) for key in trial)}

    section = DESIGN.partition("## What `status --json` prints")[2].partition("\n## ")[0]

    assert {"score", "current"} <= keys
    assert keys <= {word.partition(":")[0] for word in words(section)}


def test_every_module_is_in_the_table_of_modules() -> None:
    shown = {name for cells in rows(DESIGN, "module") for name in words(cells[0])}
    package = ROOT / "finetune_sweep"
    modules = {str(file.relative_to(package)) for file in package.rglob("*.py")}
    assert shown == {name for name in modules if not name.rpartition("/")[2].startswith("__")}


def test_the_messages_that_are_explained_are_those_of_the_program() -> None:
    source = "\n".join(file.read_text() for file in (ROOT / "finetune_sweep").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\*\*`([^`]+)`|, \*\*`([^`]+)`", text, re.MULTILINE)
    parts = [part.strip() for found in messages for part in "".join(found).split("...")]
    assert len(parts) > 20
    assert [part for part in parts if part not in joined] == []
