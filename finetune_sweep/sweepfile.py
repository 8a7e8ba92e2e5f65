"""From a sweep file to a checked `Sweep`: reading, overriding, the space, and every problem at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ValidationError

from finetune_sweep import settings, spec, yamlio
from finetune_sweep.complaints import complaints, hint
from finetune_sweep.errors import Problem, UserError
from finetune_sweep.layout import parse_storage
from finetune_sweep.settings import Training
from finetune_sweep.space import Config, Dimension, Space, check_conditions, endpoints, located
from finetune_sweep.space_cells import grid_problems
from finetune_sweep.space_parser import parse_dimension
from finetune_sweep.spec import Sweep
from finetune_sweep.yamlio import Document, Value

KeyPath = tuple[str | int, ...]


@dataclass
class _Reading:
    """One sweep file being read: the document, what `--set` replaced in it and in the space, the problems so far."""

    document: Document
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    dimensions: list[Document] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: KeyPath, message: str) -> None:
        for overridden, text in self.overrides.items():
            if path[: len(overridden)] == overridden:
                self.problems.append(Problem(message, ".".join(map(str, path)), f"--set {text}"))
                return
        self.problems.append(self.document.problem(path, message))


def load_sweep(
    file: Path,
    overrides: Sequence[str] = (),
    check: Callable[[Sweep], list[Problem]] | None = None,
    options: Mapping[str, str | None] | None = None,
) -> Sweep:
    """Reads and checks a sweep file.

    Args:
        file: The YAML file.
        overrides: `key=value` texts of `--set`, keys dotted; they win over the file.
        options: Settings that have an option of their own, by dotted key; None where it was not given.
        check: A further check of the sweep as a whole, whose problems are shown with the others.

    Raises:
        UserError: With everything that is wrong, in the order of the file.
    """
    reading = _Reading(yamlio.load(file))
    raw = _mapping(reading.document.value)
    for text in overrides:
        _override(reading, raw, text)
    for name, value in (options or {}).items():
        if value is not None:
            path = tuple(name.split("."))
            reading.overrides[path] = f"{name}={value}"
            _put(raw, path, value)
    space = _read_space(reading, raw.get("space", {}), file.parent)
    raw["space"] = space
    if "model" not in raw and (models := _models_of(space)):
        raw["model"] = models[0]
    sweep = _validate(reading, Sweep, raw)
    if sweep is not None:
        sweep = absolute(sweep, file.parent.absolute())
        _check_storage(reading, sweep)
    reading.problems += check_conditions(space)
    _check_settings(reading, space, sweep)
    if sweep is not None and sweep.search.type == "grid":
        reading.problems += grid_problems(space)
    if sweep is not None and check is not None and not reading.problems:
        reading.problems += [_located(reading, space, problem) for problem in check(sweep)]
    if sweep is None or reading.problems:
        raise UserError(_in_order(reading.problems))
    return sweep


def _check_storage(reading: _Reading, sweep: Sweep) -> None:
    try:
        parse_storage(sweep.storage or "")
    except UserError as error:
        reading.add(("storage",), str(error))


def _located(reading: _Reading, space: Space, problem: Problem) -> Problem:
    """A problem that knows its path alone, with its file and line."""
    in_space = located(space, problem.message, problem.path)
    if in_space.file:
        return in_space
    found = _Reading(reading.document, reading.overrides)
    found.add(tuple(problem.path.split(".")), problem.message)
    return found.problems[0]


def training_of(sweep: Sweep, config: Config) -> Training:
    """The settings of one trial: the file's `training` with a configuration's values in their places.

    Raises:
        UserError: If the values do not go together.
    """
    raw = sweep.training.model_dump(exclude_unset=True)
    for name, value in config.items():
        if name in {"model", "data.max_length"}:
            continue
        _put(raw, tuple(name.split(".")), value, sweep.training)
    _drop_effectless(raw, config)
    try:
        return Training.model_validate(raw)
    except ValidationError as error:
        found = complaints(error, Training)
        raise UserError([_impossible(sweep.space, config, *complaint) for complaint in found]) from None


def _impossible(space: Space, config: Config, path: tuple[str, ...], message: str) -> Problem:
    """What is wrong with the settings of one trial, at the dimension that it comes from."""
    name = ".".join(path)
    of_section = [each for each in config if path and each.partition(".")[0] == path[0]]
    mentioned = [each for each in config if each in message]
    nearest = [each for each in of_section if each == name] or of_section or mentioned
    where = f"space.{nearest[0]}" if nearest else "space"
    what = ": ".join(part for part in (name, message) if part)
    return located(space, f"{config} is not possible: {what}", where)


def _drop_effectless(raw: dict[str, Any], names: Collection[str]) -> None:
    """Drops what a searched value turns off: LoRA of rank 0, augmentation without copies or a rate above 0; synonyms.

    The cell is then the same trial as one without it.
    """
    lora = raw.get("lora")
    if isinstance(lora, dict) and "lora.r" in names and lora.get("r") == 0:
        raw["lora"] = None
    augment = raw.get("augment")
    if not isinstance(augment, dict):
        return
    is_counted = "augment.copies" in names and augment.get("copies") == 0
    rates = {f"augment.{name}" for name in settings.AUGMENT_RATES}
    is_rated = not rates.isdisjoint(names) and not any(augment.get(name) for name in settings.AUGMENT_RATES)
    if is_counted or is_rated:
        raw["augment"] = None
    elif not (rates.isdisjoint(names) or augment.get("replacement") or augment.get("insertion")):
        raw["augment"] = {name: value for name, value in augment.items() if name != "synonyms"}


def absolute(sweep: Sweep, base: Path) -> Sweep:
    """The sweep with every relative path resolved against the folder of its file."""

    def resolve(reference: str) -> str:
        return reference if ":" in reference else str((base / Path(reference).expanduser()).resolve())

    data = sweep.data
    files = {split: resolve(path) for split, path in data.files.items()} if data.files else None
    source = resolve(data.source) if data.source else None
    storage = resolve(sweep.storage) if sweep.storage else str(spec.default_storage())
    augment = sweep.training.augment
    if augment is not None and augment.synonyms:
        augment = augment.model_copy(update={"synonyms": resolve(augment.synonyms)})
    return sweep.model_copy(
        update={
            "model": _model_reference(sweep.model, base),
            "data": data.model_copy(update={"source": source, "files": files}),
            "storage": storage,
            "training": sweep.training.model_copy(update={"augment": augment} if augment else {}),
            "cache": resolve(sweep.cache) if sweep.cache else str(default_cache()),
        }
    )


def _model_reference(reference: str, base: Path) -> str:
    """A folder as an absolute path; a bare word that is none stays, for the message about what it may have meant."""
    if reference.startswith("scratch:"):
        return "scratch:" + _model_reference(reference.removeprefix("scratch:"), base)
    folder = base / Path(reference).expanduser()
    is_path = reference.startswith((".", "/", "~")) or folder.is_dir()
    return str(folder.resolve()) if ":" not in reference and is_path else reference


def default_cache() -> Path:
    """The folder for what can be computed again: `$XDG_CACHE_HOME/finetune_sweep` or `~/.cache/finetune_sweep`."""
    return Path(platformdirs.user_cache_dir("finetune_sweep"))


# -------------------------------------------------------------------------------------------- overriding


def _mapping(value: Value) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _override(reading: _Reading, raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes key=value, got {text!r}")
    path = tuple(key.strip().split("."))
    parsed = yamlio.parse_scalar(value)
    if path[0] == "space" and len(path) > 1:
        reading.dimensions.append(Document({".".join(path[1:]): parsed}, f"--set {text}", {}))
        return
    reading.overrides[path] = text
    _put(raw, path, parsed)


def _put(raw: dict[str, Any], path: Sequence[str], value: Value, defaults: BaseModel | None = None) -> None:
    """Sets a nested value; what stands in the way, such as `null` or a shorthand, becomes a mapping.

    A section that is not there yet begins with its default, if it has one.
    """
    for name in path[:-1]:
        inner = raw.get(name)
        if inner is None and isinstance(section := getattr(defaults, name, None), BaseModel):
            inner = section.model_dump()
        if isinstance(inner, str):
            inner = {"type": inner}
        raw[name] = dict(inner) if isinstance(inner, dict) else {}
        raw = raw[name]
    raw[path[-1]] = value


# ----------------------------------------------------------------------------------------------- the space


def _read_space(reading: _Reading, value: object, base: Path) -> Space:
    """Reads `space:`, a mapping, a file, or a list of both; later ones override."""
    dimensions: dict[str, Dimension] = {}
    parts = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
    for index, part in parts:
        path: KeyPath = ("space",) if index is None else ("space", index)
        if isinstance(part, str):
            _read_space_file(reading, path, base / part, dimensions)
        elif isinstance(part, dict):
            _add_dimensions(reading, reading.document, path, part, base, dimensions)
        else:
            reading.add(path, f"must be a file, a mapping, or a list of them, got {part!r}")
    for document in reading.dimensions:
        _add_dimensions(reading, document, (), _mapping(document.value), Path.cwd(), dimensions)
    return Space(tuple(dimensions.values()))


def _read_space_file(reading: _Reading, path: KeyPath, file: Path, dimensions: dict[str, Dimension]) -> None:
    if not file.exists():
        reading.add(path, f"there is no file {str(file)!r}")
        return
    try:
        document = yamlio.load(file)
    except UserError as error:
        reading.problems += error.problems
        return
    _add_dimensions(reading, document, (), _mapping(document.value), file.parent, dimensions)


def _add_dimensions(
    reading: _Reading,
    document: Document,
    path: KeyPath,
    mapping: dict[str, Any],
    base: Path,
    dimensions: dict[str, Dimension],
) -> None:
    for name, value in mapping.items():
        here = (*path, name)
        if not spec.searchable(name):
            message = f"unknown dimension{hint(name, [*settings.setting_names(Training), 'model', 'data.max_length'])}"
            reading.problems.append(document.problem(here, message))
            continue
        try:
            dimension = parse_dimension(name, _typed(name, value, base), document, here)
        except UserError as error:
            reading.problems += error.problems
            continue
        dimensions[name] = dimension


def _typed(name: str, value: Value, base: Path) -> Value:
    """A domain as its setting means it.

    `{low: 0, high: 1}` of fractions is no range of whole numbers; a folder among the models is relative to the
    file that names it.
    """
    if name == "model":
        return _model_paths(value, base)
    if name == "augment.synonyms" and isinstance(value, list):
        return [str((base / Path(str(file)).expanduser()).resolve()) for file in value]
    if isinstance(value, dict) and settings.is_fractional(name):
        return {k: float(v) if type(v) is int and k in {"low", "high"} else v for k, v in value.items()}
    return value


def _model_paths(value: Value, base: Path) -> Value:
    if isinstance(value, str):
        return _model_reference(value, base)
    if isinstance(value, list):
        return [_model_paths(item, base) for item in value]
    if isinstance(value, dict) and "values" in value:
        return {**value, "values": _model_paths(value["values"], base)}
    return value


def _models_of(space: Space) -> list[str]:
    for dimension in space.dimensions:
        if dimension.name == "model":
            return [str(value) for value in endpoints(dimension.domain)]
    return []


def _check_settings(reading: _Reading, space: Space, sweep: Sweep | None) -> None:
    """Every value that a dimension can take must be one that its setting can have."""
    base = sweep.training.model_dump(exclude_unset=True) if sweep is not None else {}
    for dimension in space.dimensions:
        for value in endpoints(dimension.domain):
            message = _setting_problem(
                dimension, value, base, alone=sweep is not None and _is_alone(dimension, space)
            )
            if message:
                problem = Problem(message, f"space.{dimension.name}", dimension.file, dimension.line)
                reading.problems.append(problem)
                break


def _is_alone(dimension: Dimension, space: Space) -> bool:
    """Whether nothing else of its section is searched."""
    section = dimension.name.partition(".")[0]
    return not any(d.name.partition(".")[0] == section for d in space.dimensions if d is not dimension)


def _setting_problem(dimension: Dimension, value: Value, base: dict[str, Any], *, alone: bool) -> str:
    """What is wrong with a value; also with the section around it, if nothing else of that is searched."""
    if dimension.name == "model":
        return "" if isinstance(value, str) and value else f"must be the name of a model, got {value!r}"
    section: type[BaseModel] = Training
    path = tuple(dimension.name.split("."))
    raw: dict[str, Any] = copy.deepcopy(base)
    if dimension.name == "data.max_length":
        section, raw, path = spec.Data, {"source": "-"}, ("max_length",)
    for parent, allowed in dimension.when.items():
        if parent != "model":
            _put(raw, tuple(parent.split(".")), allowed[0], Training())
    _put(raw, path, value, Training())
    _drop_effectless(raw, [dimension.name])
    try:
        section.model_validate(raw)
    except ValidationError as error:
        found = complaints(error, section)
        reach = path[:1] if alone else path
        return "; ".join(
            message if place[: len(path)] == path else f"{'.'.join(place)}: {message}"
            for place, message in found
            if place[: len(reach)] == reach
        )
    return ""


def _validate(reading: _Reading, section: type[Sweep], raw: dict[str, Any]) -> Sweep | None:
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        for path, message in complaints(error, section):
            reading.add(path, message)
        return None


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by file and line, each once."""
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda p: (p.file, math.inf if p.line is None else p.line))
