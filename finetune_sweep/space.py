"""What is searched: dimensions with their domains and conditions, the grid over them, and samples of them.

A domain is a choice of values or a range. A dimension with a condition (``when``) is part of a
configuration only where the dimensions it names are, with one of the values it gives. Samples are a
function of (seed, index, name), so that more trials, or one more dimension, change none that exist.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Final, TypeAlias, assert_never

from finetune_sweep.errors import Problem, UserError, nearest
from finetune_sweep.yamlio import Document, Path_, Value, kind

Config: TypeAlias = dict[str, Value]
"""One cell of a space: the value of every dimension that is active."""

MAX_CELLS: Final = 1_000_000
_LARGEST_INT: Final = 2**53

_KEYS: Final = ("low", "high", "log", "step", "count", "values", "when")
_SCALE_ADVICE: Final = " (a range is `low` and `high`, with `log: true` for a log scale)"
_OTHER_TOOLS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("lower", "min", "minimum", "start", "a"), " (did you mean 'low'?)"),
    **dict.fromkeys(("upper", "max", "maximum", "stop", "b"), " (did you mean 'high'?)"),
    **dict.fromkeys(("q", "quantized", "quantization"), " (did you mean 'step'?)"),
    **dict.fromkeys(("num", "size", "points"), " (did you mean 'count'?)"),
    **dict.fromkeys(
        ("choice", "choices", "categorical", "options", "grid", "grid_search"), " (did you mean 'values'?)"
    ),
    **dict.fromkeys(("distribution", "type", "loguniform", "uniform", "scale"), _SCALE_ADVICE),
    **dict.fromkeys(("condition", "conditions", "if"), " (did you mean 'when'?)"),
    "base": " (a log scale has no base here: `log: true` alone says it)",
}


@dataclass(frozen=True)
class Choice:
    """Some values, all different, in the order of the file."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``low`` to ``high``, both included.

    Attributes:
        low: Lowest value, above 0 with ``log``.
        high: Highest value; with a ``step`` that does not reach it, the last step before it.
        step: Distance of the values; 1 with ``log`` and with ``count``.
        log: Whether samples and the grid are even on a log scale.
        count: How many values a grid takes; all of them when it is None and ``log`` is off.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False
    count: int | None = None


@dataclass(frozen=True)
class FloatRange:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low: Lowest value, above 0 with ``log``.
        high: Highest value; with a ``step`` that does not reach it, the last step before it.
        step: Distance of the values; None for all numbers between.
        log: Whether samples and the grid are even on a log scale; excludes ``step``.
        count: How many values a grid takes; excludes ``step``.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    count: int | None = None


Domain: TypeAlias = Choice | IntRange | FloatRange


@dataclass(frozen=True)
class Dimension:
    """One searched setting.

    Attributes:
        name: The setting, dotted where it is nested.
        domain: The values it can take.
        when: Other dimensions and their values with which it is active; empty: always.
        file: Where it is written, for messages.
        line: Its line there, from 1.
    """

    name: str
    domain: Domain
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    file: str = ""
    line: int | None = None

    def problem(self, message: str, *keys: str) -> Problem:
        """Returns ``message`` as a problem of this dimension, or of a key below it."""
        return Problem(message, ".".join((self.name, *keys)), self.file, self.line)


@dataclass(frozen=True)
class Space:
    """Everything that is searched.

    Attributes:
        dimensions: In the order given, but each behind those that its condition names.

    Raises:
        ValueError: Two dimensions have one name.
    """

    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        names = [dimension.name for dimension in self.dimensions]
        if len(set(names)) < len(names):
            message = f"names of dimensions must differ, got {names}"
            raise ValueError(message)
        object.__setattr__(self, "dimensions", _parents_first(self.dimensions))


def canonical(value: Value) -> str:
    """Returns canonical JSON: equal texts for equal values, as RFC 8785 has it for numbers.

    >>> canonical({"b": 1.0, "a": [True, 5e-5]})
    '{"a":[true,5e-05],"b":1}'
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def contains(domain: Domain, value: Value) -> bool:
    """Returns whether ``value`` is in the domain; ``count`` concerns grids only and excludes nothing."""
    if isinstance(domain, Choice):
        return canonical(value) in {canonical(each) for each in domain.values}
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not domain.low <= value <= domain.high
    ):
        return False
    if isinstance(domain, IntRange):
        return value == int(value) and (int(value) - domain.low) % domain.step == 0
    if domain.step is None:
        return True
    position = round((_exact(value) - _exact(domain.low)) / _exact(domain.step))
    return position < _steps(domain, domain.step) and _step_value(domain, domain.step, position) == value


def endpoints(domain: Domain) -> tuple[Value, ...]:
    """Returns what must be valid for the whole domain to be: all values of a choice, both ends of a range."""
    match domain:
        case Choice():
            return domain.values
        case IntRange():
            return domain.low, domain.high - (domain.high - domain.low) % domain.step
        case FloatRange(step=None):
            return domain.low, domain.high
        case FloatRange():
            step = domain.step or 1.0
            return domain.low, _step_value(domain, step, _steps(domain, step) - 1)
    assert_never(domain)


def grid(space: Space) -> Iterator[Config]:
    """Returns every configuration of the space once; the last dimension changes fastest.

    Raises:
        UserError: A dimension has no finite number of values, or the grid is too large.
    """
    problems = grid_problems(space)
    if problems:
        raise UserError(problems)
    choices = [(dimension, _grid_values(dimension.domain)) for dimension in space.dimensions]
    return _cells(choices, {})


def grid_problems(space: Space) -> list[Problem]:
    """Returns why a grid over this space cannot be made, in the order of its dimensions; empty if it can."""
    problems = []
    cells = 1
    for dimension in space.dimensions:
        size = _grid_size(dimension.domain)
        if size is None:
            advice = "add `count: 5` for five values, or use `search: {type: random}`"
            got = _describe(dimension.domain)
            problems.append(dimension.problem(f"a grid needs a finite domain, got {got}: {advice}"))
        elif cells <= MAX_CELLS < cells * size:
            advice = "set `count` or a larger `step`, or use `search: {type: random}`"
            message = (
                f"the grid has {cells * size:,} cells with this, at most {MAX_CELLS:,} are made: {advice}"
            )
            problems.append(dimension.problem(message))
        cells *= size or 1
    return problems


def sample(space: Space, seed: int, index: int) -> Config:
    """Draws configuration ``index`` of the random search ``seed``: ranges evenly, or evenly in their log.

    Args:
        space: What is searched.
        seed: Of the search.
        index: Of the trial, from 0; equal arguments give equal configurations, whatever the number of trials.
    """
    config: Config = {}
    for dimension in space.dimensions:
        if is_active(dimension, config):
            config[dimension.name] = _draw(dimension.domain, _uniform(seed, index, dimension.name))
    return config


def allows(space: Space, config: Config) -> bool:
    """Whether a configuration is one of the space: the active dimensions, and values of their domains."""
    active = [dimension for dimension in space.dimensions if is_active(dimension, config)]
    return [d.name for d in active] == list(config) and all(contains(d.domain, config[d.name]) for d in active)


def check_conditions(space: Space) -> list[Problem]:
    """Returns what is wrong with the conditions: unknown names, values out of the domain, circles."""
    known = {dimension.name: dimension for dimension in space.dimensions}
    problems = []
    for dimension in space.dimensions:
        for name, allowed in dimension.when.items():
            if name not in known:
                words = nearest(name, known) or f": this space has {', '.join(known)}"
                problems.append(dimension.problem(f"'{name}' is not searched{words}", "when", name))
                continue
            domain = known[name].domain
            problems.extend(
                dimension.problem(
                    f"{name} never has the value {canonical(value)}: it is {_describe(domain)}", "when", name
                )
                for value in allowed
                if not contains(domain, value)
            )
    settled = {dimension.name for dimension in _settled(space.dimensions)}
    circle = [dimension for dimension in space.dimensions if dimension.name not in settled]
    if circle:
        names = ", ".join(dimension.name for dimension in circle)
        problems.append(
            circle[0].problem(f"the conditions of {names} wait for each other: remove one", "when")
        )
    return problems


def parse_dimension(name: str, value: Value, document: Document, path: Path_) -> Dimension:
    """Reads one dimension of a space.

    Args:
        name: The setting.
        value: A list (a choice), a scalar (a choice of one), ``{low, high, log, step, count}`` (a range) or
            ``{values}``; the mappings take ``when`` too.
        document: The file it stands in.
        path: Where in the file.

    Raises:
        UserError: All that is wrong with it.
    """
    parser = _Parser(document, path)
    when: Mapping[str, tuple[Value, ...]] = {}
    domain: Domain | None
    if isinstance(value, dict):
        when = parser.conditions(value.get("when", {}))
        domain = parser.mapping(value)
    else:
        domain = parser.choice(value if isinstance(value, list) else [value])
    if parser.problems or domain is None:
        raise UserError(sorted(parser.problems, key=lambda problem: problem.line or 0))
    return Dimension(name, domain, when, document.file, document.line(path))


@dataclass
class _Parser:
    """Reads the parts of one dimension and collects what is wrong with them."""

    document: Document
    path: Path_
    problems: list[Problem] = field(default_factory=list)

    def note(self, message: str, *keys: str | int) -> None:
        self.problems.append(self.document.problem((*self.path, *keys), message))

    def conditions(self, value: Value) -> dict[str, tuple[Value, ...]]:
        if not isinstance(value, dict):
            self.note(f"`when` must be a mapping such as {{freeze_depth: [0, 3]}}, got {kind(value)}", "when")
            return {}
        for name, allowed in value.items():
            if allowed == []:
                self.note("a condition needs at least one value, got []", "when", name)
        return {name: tuple(each) if isinstance(each, list) else (each,) for name, each in value.items()}

    def mapping(self, value: dict[str, Value]) -> Domain | None:
        unknown = [key for key in value if key not in _KEYS]
        for key in unknown:
            words = _OTHER_TOOLS.get(key) or nearest(key, _KEYS)
            words = (
                words or ": a range has low, high, log, step, count; a choice of mappings is a list of them"
            )
            self.note(f"unknown key '{key}'{words}", key)
        if "values" in value:
            return self.value_list(value)
        missing = [key for key in ("low", "high") if key not in value]
        if missing and not unknown:
            self.note(f"a range needs `low` and `high`, a choice `values`: got no {' and no '.join(missing)}")
        return None if missing else self.range(value)

    def value_list(self, value: dict[str, Value]) -> Domain | None:
        for key in ("low", "high", "log", "step", "count"):
            if key in value:
                self.note(f"`{key}` belongs to a range, `values` to a choice: keep one of them", key)
        values = value["values"]
        if isinstance(values, list):
            return self.choice(values, "values")
        self.note(f"`values` must be a list, got {kind(values)}", "values")
        return None

    def choice(self, values: list[Value], *keys: str) -> Choice:
        if not values:
            self.note("a choice needs at least one value, got []", *keys)
        seen: set[str] = set()
        for position, value in enumerate(values):
            text = canonical(value)
            if text in seen:
                self.note(f"the value {text} is repeated: keep one of them", *keys, position)
            if isinstance(value, float) and not math.isfinite(value):
                self.note(f"a value must be finite, got {value}", *keys, position)
            seen.add(text)
        return Choice(tuple(values))

    def range(self, value: dict[str, Value]) -> Domain | None:
        low, high = self.number(value, "low"), self.number(value, "high")
        step = self.number(value, "step") if "step" in value else None
        log = value.get("log", False)
        if not isinstance(log, bool):
            self.note(f"`log` must be true or false, got {kind(log)}", "log")
        count = value.get("count")
        if "count" in value and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            self.note(f"`count` must be a whole number of at least 2, got {kind(count)}", "count")
            count = None
        if self.problems or low is None or high is None:
            return None
        number = count if isinstance(count, int) else None
        domain: IntRange | FloatRange
        if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float):
            domain = IntRange(low, high, 1 if step is None else step, log is True, number)
        else:
            fraction = None if step is None else float(step)
            domain = FloatRange(float(low), float(high), fraction, log is True, number)
        self.bounds(domain)
        if step is not None:
            self.steps(domain, step)
        return domain

    def number(self, value: dict[str, Value], key: str) -> float | int | None:
        number = value[key]
        if isinstance(number, bool) or not isinstance(number, int | float):
            self.note(f"`{key}` must be a number, got {kind(number)}", key)
        elif not math.isfinite(number) or (isinstance(number, int) and abs(number) > _LARGEST_INT):
            self.note(f"`{key}` must be finite, and a whole number within 2^53, got {number}", key)
        else:
            return number
        return None

    def bounds(self, domain: IntRange | FloatRange) -> None:
        low, high, count = domain.low, domain.high, domain.count
        if low > high:
            self.note(f"`low <= high` must hold, but got (low={low}, high={high})", "low")
        elif domain.log and low <= 0:
            self.note(f"a log range needs `low > 0`, but got (low={low}, high={high})", "low")
        elif count is None:
            return
        elif count == 1 and low < high:
            self.note("`count` must be at least 2, for both ends of the range, got 1", "count")
        elif count > MAX_CELLS:
            self.note(f"`count` must be at most {MAX_CELLS:,}, got {count}", "count")
        elif isinstance(domain, IntRange) and count > high - low + 1:
            self.note(f"{low} to {high} are {high - low + 1} whole numbers, but got (count={count})", "count")

    def steps(self, domain: IntRange | FloatRange, step: float) -> None:
        if step <= 0:
            self.note(f"`step > 0` must hold, but got (step={step})", "step")
        elif domain.log:
            self.note(f"a log range has no `step`, got {step}: set `count`, or leave `log` out", "step")
        elif domain.count is not None:
            self.note(f"a range has `step` or `count`, but got (step={step}, count={domain.count})", "step")
        elif 0 < domain.high - domain.low < step:
            got = f"(low={domain.low}, high={domain.high}, step={step})"
            self.note(f"`step <= high - low` must hold, but got {got}", "step")


def _settled(dimensions: Iterable[Dimension]) -> Iterator[Dimension]:
    """Yields dimensions behind all that their conditions name, else in order; leaves out circles."""
    waiting = list(dimensions)
    while waiting:
        names = {dimension.name for dimension in waiting}
        ready = next((dimension for dimension in waiting if not names & set(dimension.when)), None)
        if ready is None:
            return
        waiting.remove(ready)
        yield ready


def _parents_first(dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    settled = tuple(_settled(dimensions))
    return (*settled, *(dimension for dimension in dimensions if dimension not in settled))


def is_active(dimension: Dimension, config: Config) -> bool:
    """Whether a dimension's conditions hold for the values of the dimensions before it."""
    return all(
        name in config and canonical(config[name]) in {canonical(value) for value in allowed}
        for name, allowed in dimension.when.items()
    )


def _cells(choices: Sequence[tuple[Dimension, Sequence[Value]]], config: Config) -> Iterator[Config]:
    if not choices:
        yield dict(config)
        return
    (dimension, values), *rest = choices
    if not is_active(dimension, config):
        yield from _cells(rest, config)
        return
    for value in values:
        yield from _cells(rest, {**config, dimension.name: value})


def _grid_size(domain: Domain) -> int | None:
    match domain:
        case Choice():
            return len(domain.values)
        case IntRange(count=None, log=False):
            return (domain.high - domain.low) // domain.step + 1
        case FloatRange(count=None, step=float(step)):
            return _steps(domain, step)
        case IntRange() | FloatRange():
            return domain.count
    assert_never(domain)


def _grid_values(domain: Domain) -> Sequence[Value]:
    match domain:
        case Choice():
            return list({canonical(value): value for value in reversed(domain.values)}.values())[::-1]
        case IntRange(count=int(count)):
            return _spread_ints(domain, count)
        case IntRange():
            return range(domain.low, domain.high + 1, domain.step)
        case FloatRange(count=None, step=float(step)):
            return [_step_value(domain, step, position) for position in range(_steps(domain, step))]
        case FloatRange():
            return _spread_floats(domain, domain.count or 1)
    assert_never(domain)


def _spread(domain: IntRange | FloatRange, count: int) -> list[float]:
    """Returns ``count`` numbers, evenly or log spaced, with both ends of the range exact."""
    if count == 1 or domain.low == domain.high:
        return [domain.low]
    inner = [
        _between(domain.low, domain.high, position / (count - 1), log=domain.log)
        for position in range(1, count - 1)
    ]
    return [domain.low, *inner, domain.high]


def _spread_ints(domain: IntRange, count: int) -> list[Value]:
    """Rounds to whole numbers, and moves those apart that fall together."""
    values = [round(value) for value in _spread(domain, count)]
    for position in range(1, len(values)):
        values[position] = max(values[position], values[position - 1] + 1)
    values[-1] = domain.high
    for position in range(len(values) - 2, -1, -1):
        values[position] = min(values[position], values[position + 1] - 1)
    return list(values)


def _spread_floats(domain: FloatRange, count: int) -> list[Value]:
    """Rounds what lies between the ends to six digits, unless the range is too narrow for that."""
    exact = _spread(domain, count)
    rounded = [exact[0], *(_short(value) for value in exact[1:-1]), *exact[1:][-1:]]
    rising = all(before < after for before, after in pairwise(rounded))
    return list(rounded if rising else dict.fromkeys(exact))


def _draw(domain: Domain, uniform: float) -> Value:
    match domain:
        case Choice():
            return domain.values[int(uniform * len(domain.values))]
        case IntRange(log=True):
            drawn = round(_between(domain.low - 0.5, domain.high + 0.5, uniform, log=True))
            return min(max(drawn, domain.low), domain.high)
        case IntRange():
            return domain.low + domain.step * int(uniform * ((domain.high - domain.low) // domain.step + 1))
        case FloatRange(step=float(step)):
            steps = _steps(domain, step)
            return _step_value(domain, step, min(int(Fraction(uniform) * steps), steps - 1))
        case FloatRange():
            drawn_float = _between(domain.low, domain.high, uniform, log=domain.log)
            rounded = _short(drawn_float)
            return rounded if domain.low <= rounded <= domain.high else drawn_float
    assert_never(domain)


def _between(low: float, high: float, fraction: float, *, log: bool) -> float:
    """Returns the point at ``fraction`` of the way from ``low`` to ``high``, never outside."""
    if log:
        point = math.exp((1 - fraction) * math.log(low) + fraction * math.log(high))
    else:
        point = (1 - fraction) * low + fraction * high
    return min(max(point, low), high)


def _uniform(seed: int, index: int, name: str) -> float:
    """Returns a number in [0, 1) that depends on nothing else: no generator, whose stream may change."""
    digest = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _steps(domain: FloatRange, step: float) -> int:
    return int((_exact(domain.high) - _exact(domain.low)) // _exact(step)) + 1


def _step_value(domain: FloatRange, step: float, position: int) -> float:
    """Returns a value of a stepped range as it would be written: 0.1 and two steps of 0.1 are 0.3."""
    return float(_exact(domain.low) + position * _exact(step))


def _exact(number: float) -> Fraction:
    return Fraction(repr(number))


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _plain(value: Value) -> Value:
    match value:
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case float() if value.is_integer() and abs(value) <= _LARGEST_INT:
            return int(value)
    return value


def _describe(domain: Domain) -> str:
    if isinstance(domain, Choice):
        return f"one of {canonical(list(domain.values))}"
    scale = " on a log scale" if domain.log else ""
    return f"the range {domain.low} to {domain.high}{scale}"
