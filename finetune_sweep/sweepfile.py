"""From a sweep file to a checked `Sweep`: reading, overriding, the space, and every problem at once."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import platformdirs
from pydantic import BaseModel, ValidationError

from finetune_sweep import spec, yamlio
from finetune_sweep.errors import Problem, UserError, nearest
from finetune_sweep.layout import parse_storage
from finetune_sweep.space import (
    Config,
    Dimension,
    Space,
    check_conditions,
    endpoints,
    grid_problems,
    parse_dimension,
)
from finetune_sweep.spec import Sweep, Training
from finetune_sweep.yamlio import Document, Value

KeyPath = tuple[str | int, ...]

FOREIGN_WORDS: Final = {
    "method": "search",
    "algorithm": "search",
    "sampler": "search",
    "parameters": "space",
    "search_space": "space",
    "hyperparameters": "space",
    "param_space": "space",
    "goal": "mode",
    "direction": "mode",
    "objective": "metric",
    "num_samples": "trials",
    "n_trials": "trials",
    "num_trials": "trials",
    "dataset": "data",
    "datasets": "data",
    "model_name": "model",
    "model_name_or_path": "model",
    "pretrained": "model",
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "frozen_layers": "freeze_depth",
    "freeze_layers": "freeze_depth",
    "lr_scheduler_type": "lr_schedule",
    "scheduler": "lr_schedule",
    "num_warmup_steps": "warmup_steps",
    "gradient_clip_val": "max_grad_norm",
    "max_seq_length": "max_length",
    "resources": "resources_per_trial",
    "optim": "optimizer",
    "experiment_name": "experiment",
    "path": "source",
}
"""What other tools call our settings, for the hint behind an unknown key."""


@dataclass
class _Reading:
    """One sweep file being read: the documents, what `--set` replaced, and the problems so far."""

    document: Document
    overrides: dict[KeyPath, str] = field(default_factory=dict)
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
    for dimension in space.dimensions:
        if problem.path == f"space.{dimension.name}":
            return dataclasses.replace(problem, file=dimension.file, line=dimension.line)
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
        _put(raw, tuple(name.split(".")), value)
    try:
        return Training.model_validate(raw)
    except ValidationError as error:
        lines = (
            f"{'.'.join(_plain(issue['loc']))}: {_describe(issue, Training)}" for issue in error.errors()
        )
        raise UserError(f"space: {config} is not possible: {'; '.join(lines)}") from None


def absolute(sweep: Sweep, base: Path) -> Sweep:
    """The sweep with every relative path resolved against the folder of its file."""

    def resolve(reference: str) -> str:
        return reference if ":" in reference else str((base / Path(reference).expanduser()).resolve())

    data = sweep.data
    files = {split: resolve(path) for split, path in data.files.items()} if data.files else None
    source = resolve(data.source) if data.source else None
    storage = resolve(sweep.storage) if sweep.storage else str(spec.default_storage())
    return sweep.model_copy(
        update={
            "model": resolve(sweep.model),
            "data": data.model_copy(update={"source": source, "files": files}),
            "storage": storage,
            "cache": resolve(sweep.cache) if sweep.cache else str(default_cache()),
        }
    )


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
    if path[0] == "space" and len(path) > 1:
        path = ("space", ".".join(path[1:]))
    reading.overrides[path] = text
    _put(raw, path, yamlio.parse_scalar(value))


def _put(raw: dict[str, Any], path: Sequence[str], value: Value) -> None:
    """Sets a nested value; what stands in the way, such as `null` or a shorthand, becomes a mapping."""
    for name in path[:-1]:
        inner = raw.get(name)
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
            message = (
                f"unknown dimension{_hint(name, [*spec.setting_names(Training), 'model', 'data.max_length'])}"
            )
            reading.problems.append(document.problem(here, message))
            continue
        try:
            dimension = parse_dimension(name, _typed(name, value, base), document, here)
        except UserError as error:
            reading.problems += error.problems
            continue
        dimensions.pop(name, None)
        dimensions[name] = dimension


def _typed(name: str, value: Value, base: Path) -> Value:
    """A domain as its setting means it.

    `{low: 0, high: 1}` of fractions is no range of whole numbers; a folder among the models is relative to the
    file that names it.
    """
    if name == "model":
        return _model_paths(value, base)
    if isinstance(value, dict) and spec.is_fractional(name):
        return {k: float(v) if type(v) is int and k in {"low", "high"} else v for k, v in value.items()}
    return value


def _model_paths(value: Value, base: Path) -> Value:
    if isinstance(value, str):
        return value if ":" in value else str((base / value).resolve())
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
            message = _setting_problem(dimension, value, base)
            if message:
                problem = Problem(message, f"space.{dimension.name}", dimension.file, dimension.line)
                reading.problems.append(problem)
                break


def _setting_problem(dimension: Dimension, value: Value, base: dict[str, Any]) -> str:
    if dimension.name == "model":
        return "" if isinstance(value, str) and value else f"must be the name of a model, got {value!r}"
    section: type[BaseModel] = Training
    path = tuple(dimension.name.split("."))
    raw: dict[str, Any] = copy.deepcopy(base)
    if dimension.name == "data.max_length":
        section, raw, path = spec.Data, {"source": "-"}, ("max_length",)
    for parent, allowed in dimension.when.items():
        if parent != "model":
            _put(raw, tuple(parent.split(".")), allowed[0])
    _put(raw, path, value)
    try:
        section.model_validate(raw)
    except ValidationError as error:
        own = [issue for issue in error.errors() if _plain(issue["loc"])[: len(path)] == path]
        return "; ".join(_describe(issue, section) for issue in own)
    return ""


# ------------------------------------------------------------------------------------ pydantic's complaints


def _validate(reading: _Reading, section: type[Sweep], raw: dict[str, Any]) -> Sweep | None:
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        for issue in _without_renamed(error.errors(), section):
            reading.add(_plain(issue["loc"]), _describe(issue, section))
        return None


def _without_renamed(issues: list[Any], section: type[BaseModel]) -> list[Any]:
    """Leaves out that a key is missing where another issue says which unknown key should have its name."""
    unknown = [issue for issue in issues if issue["type"] == "extra_forbidden"]
    meant = {
        (*issue["loc"][:-1], name)
        for issue in unknown
        for name in _siblings(section, issue["loc"])
        if f"'{name}'?" in _hint(str(issue["loc"][-1]), _siblings(section, issue["loc"]))
    }
    return [issue for issue in issues if issue["type"] != "missing" or issue["loc"] not in meant]


_TAGS: Final = frozenset({"grid", "random", "tpe", "constant", "linear"})


def _plain(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """A pydantic location without the tags of unions, which do not stand in the file."""
    return tuple(
        str(part)
        for index, part in enumerate(loc)
        if not (part in _TAGS and index and loc[index - 1] in {"search", "lr_schedule"})
    )


def _describe(issue: Any, section: type[BaseModel]) -> str:  # noqa: ANN401, PLR0911 - pydantic's ErrorDetails; a case each
    """One sentence for one of pydantic's errors: the rule, the value, the nearest right word."""
    value, context = issue["input"], issue.get("ctx", {})
    match issue["type"]:
        case "missing":
            return f"is required{_meaning(section, issue['loc'])}"
        case "extra_forbidden":
            return f"unknown key{_hint(str(issue['loc'][-1]), _siblings(section, issue['loc']))}"
        case "literal_error":
            expected = context["expected"].replace("'", "")
            return f"must be one of {expected}, got {_short(value)}{nearest(str(value), _words(expected))}"
        case "union_tag_invalid":
            tags = context["expected_tags"].replace("'", "")
            return f"type must be one of {tags}, got {context['tag']!r}{nearest(str(context['tag']), _words(tags))}"
        case "union_tag_not_found":
            return f"needs a `type`, got {_short(value)}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            (sign, bound), *_ = ((_SIGNS[name], limit) for name, limit in context.items() if name in _SIGNS)
            return f"must be {sign} {bound:g}, got {_short(value)}"
        case "value_error":
            return str(context["error"])
        case "string_too_short":
            return "must not be empty"
        case kind if kind in _TYPES:
            return f"must be {_TYPES[kind]}, got {_short(value)}"
    return f"{issue['msg']}, got {_short(value)}"


_SIGNS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TYPES: Final = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "is_instance_of": "a mapping",
}


def _words(listed: str) -> list[str]:
    return listed.replace(" or ", ", ").split(", ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(section: type[BaseModel], loc: Iterable[int | str]) -> list[type[BaseModel]]:
    """The sections that a location may lie in."""
    sections = [section]
    for part in loc:
        inner = [
            nested
            for model in sections
            if str(part) in model.model_fields
            for nested in spec.nested_models(model.model_fields[str(part)].annotation)
        ]
        tagged = [model for model in sections if str(part) in _TAGS and _tag(model) == part]
        sections = inner or tagged or sections
    return sections


def _tag(model: type[BaseModel]) -> str:
    return model.__name__.lower()


def _siblings(section: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    return [name for model in _fields(section, loc[:-1]) for name in model.model_fields]


def _meaning(section: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    for model in _fields(section, loc[:-1]):
        if (found := model.model_fields.get(str(loc[-1]))) and found.description:
            return f": {' '.join(found.description.split())}"
    return ""


def _hint(word: str, known: Sequence[str]) -> str:
    foreign = FOREIGN_WORDS.get(word)
    if foreign in known:
        return f" '{word}' (did you mean '{foreign}'?)"
    listed = f" (known: {', '.join(known)})"
    return f" '{word}'{nearest(word, known) or listed}"


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by file and line, each once."""
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda p: (p.file, math.inf if p.line is None else p.line))
