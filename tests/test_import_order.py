"""The order of the modules, the homes of the libraries, and what is loaded when little is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

PACKAGE = "finetune_sweep"
ROOT = Path(__file__).resolve().parent.parent

# A module imports only from lines above its own. `tasks.*` stands for the files of the tasks, which do not
# know each other; the package's own `__init__` is named by the package.
ORDER = (
    "finetune_sweep",
    "finetune_sweep.errors",
    "finetune_sweep.exchange",
    "finetune_sweep.durable",
    "finetune_sweep.layout",
    "finetune_sweep.lock",
    "finetune_sweep.yamlio",
    "finetune_sweep.space",
    "finetune_sweep.space_cells",
    "finetune_sweep.space_parser",
    "finetune_sweep.selection",
    "finetune_sweep.verdict",
    "finetune_sweep.settings",
    "finetune_sweep.phases",
    "finetune_sweep.speed",
    "finetune_sweep.spec",
    "finetune_sweep.complaints",
    "finetune_sweep.sweepfile",
    "finetune_sweep.events",
    "finetune_sweep.ranking",
    "finetune_sweep.record",
    "finetune_sweep.journal",
    "finetune_sweep.siblings",
    "finetune_sweep.trial",
    "finetune_sweep.plan",
    "finetune_sweep.package",
    "finetune_sweep.example_models",
    "finetune_sweep.example_sets",
    "finetune_sweep.examples",
    "finetune_sweep.tasks.arrays",
    "finetune_sweep.tasks.processors",
    "finetune_sweep.tasks.contract",
    "finetune_sweep.tasks.loading",
    "finetune_sweep.tasks.classes",
    "finetune_sweep.tasks.entities",
    "finetune_sweep.tasks.texts",
    "finetune_sweep.tasks.wording",
    "finetune_sweep.tasks.pictures",
    "finetune_sweep.tasks.boxes",
    "finetune_sweep.tasks.choosing",
    "finetune_sweep.tasks.writing",
    "finetune_sweep.tasks.*",
    "finetune_sweep.tasks",
    "finetune_sweep.finalists",
    "finetune_sweep.train",
    "finetune_sweep.train.hardware",
    "finetune_sweep.train.families",
    "finetune_sweep.train.pairs",
    "finetune_sweep.train.scratch",
    "finetune_sweep.train.weights",
    "finetune_sweep.train.architecture",
    "finetune_sweep.train.conflicts",
    "finetune_sweep.train.trainable",
    "finetune_sweep.train.effect",
    "finetune_sweep.train.pooled",
    "finetune_sweep.train.pooling",
    "finetune_sweep.train.adapters",
    "finetune_sweep.train.layers",
    "finetune_sweep.train.optim",
    "finetune_sweep.train.augment",
    "finetune_sweep.train.similar",
    "finetune_sweep.train.copies",
    "finetune_sweep.train.conll",
    "finetune_sweep.train.coco",
    "finetune_sweep.train.tables",
    "finetune_sweep.train.source",
    "finetune_sweep.train.cells",
    "finetune_sweep.train.rows",
    "finetune_sweep.train.cleaning",
    "finetune_sweep.train.data",
    "finetune_sweep.train.memory",
    "finetune_sweep.train.transfer",
    "finetune_sweep.train.packing",
    "finetune_sweep.train.prefix_cache",
    "finetune_sweep.train.state",
    "finetune_sweep.train.strategies",
    "finetune_sweep.train.adversarial",
    "finetune_sweep.train.loop",
    "finetune_sweep.train.robustness",
    "finetune_sweep.beginnings",
    "finetune_sweep.disk",
    "finetune_sweep.train.masks",
    "finetune_sweep.train.stack",
    "finetune_sweep.train.heads",
    "finetune_sweep.train.branches",
    "finetune_sweep.outlook",
    "finetune_sweep.mlflow_uri",
    "finetune_sweep.resolved",
    "finetune_sweep.snapshot",
    "finetune_sweep.mlflow_store",
    "finetune_sweep.tracking",
    "finetune_sweep.tune",
    "finetune_sweep.tune.watch",
    "finetune_sweep.tune.assignment",
    "finetune_sweep.tune.loaded",
    "finetune_sweep.tune.resume",
    "finetune_sweep.tune.member",
    "finetune_sweep.tune.fused",
    "finetune_sweep.tune.branching",
    "finetune_sweep.tune.worker",
    "finetune_sweep.tune.trainable",
    "finetune_sweep.tune.suggest",
    "finetune_sweep.tune.search",
    "finetune_sweep.tune.processes",
    "finetune_sweep.tune.engine",
    "finetune_sweep.tune.cluster",
    "finetune_sweep.tune.driver",
    "finetune_sweep.tune.arrival",
    "finetune_sweep.markdown",
    "finetune_sweep.card_finalists",
    "finetune_sweep.card",
    "finetune_sweep.assembly",
    "finetune_sweep.verification",
    "finetune_sweep.sealed",
    "finetune_sweep.promote",
    "finetune_sweep.challenge",
    "finetune_sweep.reproduce",
    "finetune_sweep.served",
    "finetune_sweep.served_pictures",
    "finetune_sweep.served_captions",
    "finetune_sweep.served_texts",
    "finetune_sweep.registry",
    "finetune_sweep.report",
    "finetune_sweep.submit",
    "finetune_sweep.plots",
    "finetune_sweep.render",
    "finetune_sweep.display",
    "finetune_sweep.starter_table",
    "finetune_sweep.starter_rows",
    "finetune_sweep.starter",
    "finetune_sweep.signals",
    "finetune_sweep.session",
    "finetune_sweep.run",
    "finetune_sweep.cli",
    "finetune_sweep.__main__",
)

# `plan` looks into data and weights' headers when it is asked for a plan, and not before: inside functions,
# and in the types of what these return. Elsewhere an import for types counts like any other.
NOT_WHEN_LOADED = {
    "finetune_sweep.plan": ("finetune_sweep.examples", "finetune_sweep.tasks", "finetune_sweep.train"),
}

# Where a library may be imported; a folder stands for all its modules.
HOMES = {
    "yaml": ("finetune_sweep.yamlio",),
    "pydantic": (
        "finetune_sweep.settings",
        "finetune_sweep.speed",
        "finetune_sweep.spec",
        "finetune_sweep.complaints",
        "finetune_sweep.sweepfile",
    ),
    "peft": ("finetune_sweep.train.adapters",),
    "datasets": (
        "finetune_sweep.train.tables",
        "finetune_sweep.train.source",
        "finetune_sweep.train.rows",
        "finetune_sweep.train.cleaning",
        "finetune_sweep.train.data",
    ),
    "mlflow": (
        "finetune_sweep.mlflow_store",
        "finetune_sweep.served",
        "finetune_sweep.served_pictures",
        "finetune_sweep.served_captions",
        "finetune_sweep.served_texts",
        "finetune_sweep.registry",
    ),
    "optuna": ("finetune_sweep.tune.suggest",),
    "ray": ("finetune_sweep.tune", "finetune_sweep.submit"),
    "plotly": ("finetune_sweep.plots",),
    "rich": ("finetune_sweep.render", "finetune_sweep.display"),
    "typer": ("finetune_sweep.cli",),
}

# Libraries whose types may be named anywhere: a task is told its rows as a `datasets.Dataset`.
TYPES_ANYWHERE = {"datasets"}

HEAVY = {"torch", "ray", "mlflow", "transformers", "datasets", "optuna"}

# What checks a file, plans, and shows the state of a sweep has to start at once.
LIGHT_MODULES = (
    "finetune_sweep.plan",
    "finetune_sweep.examples",
    "finetune_sweep.tasks",
    "finetune_sweep.train.weights",
    "finetune_sweep.train.architecture",
    "finetune_sweep.train.conflicts",
    "finetune_sweep.train.trainable",
    "finetune_sweep.tracking",
)

Place = Literal["module", "function", "types"]


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, where in the file, and whether it is there at run time."""

    importer: str
    imported: str
    line: int
    place: Place

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    return {module_name(file, root): file for file in sorted((root / PACKAGE).rglob("*.py"))}


def imports(root: Path) -> list[Import]:
    known = modules(root)
    found = []
    for importer, file in known.items():
        package = importer if file.name == "__init__.py" else importer.rpartition(".")[0]
        for node, place in statements(ast.parse(file.read_text(encoding="utf-8")), "module"):
            targets = imported_modules(node, package, set(known))
            found += [Import(importer, target, node.lineno, place) for target in targets]
    return found


def statements(node: ast.AST, place: Place) -> Iterator[tuple[ast.Import | ast.ImportFrom, Place]]:
    """All import statements below a node; under `if TYPE_CHECKING` they are for types, in a function too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, place
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, "types" if place == "types" else "function")
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from statements(ast.Module([statement], []), "types")
            for statement in child.orelse:
                yield from statements(ast.Module([statement], []), place)
        else:
            yield from statements(child, place)


def imported_modules(node: ast.Import | ast.ImportFrom, package: str, known: set[str]) -> set[str]:
    """The modules that a statement names: `from package import module` names the module, not the package."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base] if base else parents)
    return {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}


def rank(module: str) -> int:
    """The place of a module in the order; -1 for one that it does not name."""
    if module in ORDER:
        return ORDER.index(module)
    group = f"{module.rpartition('.')[0]}.*"
    return ORDER.index(group) if group in ORDER else -1


def is_below(module: str, folders: tuple[str, ...]) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


def breaks_the_order(found: Import) -> bool:
    if not is_below(found.imported, (PACKAGE,)) or rank(found.imported) < rank(found.importer):
        return False
    allowed_later = NOT_WHEN_LOADED.get(found.importer, ())
    return found.place == "module" or not is_below(found.imported, allowed_later)


def is_away_from_home(found: Import) -> bool:
    library = found.imported.partition(".")[0]
    if library not in HOMES or (found.place == "types" and library in TYPES_ANYWHERE):
        return False
    return not is_below(found.importer, HOMES[library])


def loaded_libraries(*arguments: str) -> set[str]:
    """Starts Python with the arguments; returns the top-level packages that it imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_every_module_has_its_place_in_the_order() -> None:
    assert [module for module in modules(ROOT) if rank(module) < 0] == []


def test_modules_import_only_from_those_before_them() -> None:
    assert [str(found) for found in imports(ROOT) if breaks_the_order(found)] == []


def test_each_library_is_imported_in_its_home_only() -> None:
    assert [str(found) for found in imports(ROOT) if is_away_from_home(found)] == []


def test_a_backward_import_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / PACKAGE / "train").mkdir(parents=True)
    (tmp_path / PACKAGE / "cli.py").touch()
    (tmp_path / PACKAGE / "train" / "loop.py").touch()
    (tmp_path / PACKAGE / "errors.py").write_text(
        "if TYPE_CHECKING:\n    from finetune_sweep import cli\n"
        "else:\n    import yaml\n"
        "def late():\n    from .train.loop import fit\n    import datasets\n"
    )
    (tmp_path / PACKAGE / "plan.py").write_text(
        "import finetune_sweep.train.loop\nif TYPE_CHECKING:\n    import datasets, finetune_sweep.tasks\n"
        "def plan():\n    from finetune_sweep.train import loop\n"
    )
    found = imports(tmp_path)

    assert [str(item) for item in found if breaks_the_order(item)] == [
        "finetune_sweep.errors:2 imports finetune_sweep.cli",
        "finetune_sweep.errors:6 imports finetune_sweep.train.loop",
        "finetune_sweep.plan:1 imports finetune_sweep.train.loop",
    ]
    assert [str(item) for item in found if is_away_from_home(item)] == [
        "finetune_sweep.errors:4 imports yaml",
        "finetune_sweep.errors:7 imports datasets",
    ]


def test_help_loads_no_heavy_library() -> None:
    loaded = loaded_libraries("-m", PACKAGE, "--help")
    assert "typer" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_no_heavy_library(module: str) -> None:
    loaded = loaded_libraries("-c", f"import {module}")
    assert PACKAGE in loaded
    assert loaded & HEAVY == set()
