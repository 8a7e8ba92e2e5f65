"""What is searched: dimensions, each with its domain, and the conditions under which they are.

A domain is a choice of values or a range. A dimension with a condition (``when``) is part of a
configuration only where the dimensions it names are, with one of the values it gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, TypeAlias, assert_never

from finetune_sweep.errors import Problem, nearest
from finetune_sweep.yamlio import Value

Config: TypeAlias = dict[str, Value]
"""One cell of a space: the value of every dimension that is active."""

LARGEST_INT: Final = 2**53
"""Above it a float no longer has every whole number."""


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
    return position < step_count(domain, domain.step) and step_value(domain, domain.step, position) == value


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
            return domain.low, step_value(domain, step, step_count(domain, step) - 1)
    assert_never(domain)


def is_active(dimension: Dimension, config: Config) -> bool:
    """Whether a dimension's conditions hold for the values of the dimensions before it."""
    return all(
        name in config and canonical(config[name]) in {canonical(value) for value in allowed}
        for name, allowed in dimension.when.items()
    )


def allows(space: Space, config: Config) -> bool:
    """Whether a configuration is one of the space: the active dimensions, and values of their domains."""
    active = [dimension for dimension in space.dimensions if is_active(dimension, config)]
    return [d.name for d in active] == list(config) and all(
        contains(d.domain, config[d.name]) for d in active
    )


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
                    f"{name} never has the value {canonical(value)}: it is {describe(domain)}", "when", name
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


def located(space: Space, message: str, path: str) -> Problem:
    """Returns a problem, where its path is `space.` and a dimension with the file and the line of that."""
    found = (d for d in space.dimensions if path == f"space.{d.name}")
    dimension = next(found, None)
    return Problem(message, path, dimension.file, dimension.line) if dimension else Problem(message, path)


def describe(domain: Domain) -> str:
    """Returns a domain in words, for messages."""
    if isinstance(domain, Choice):
        return f"one of {canonical(list(domain.values))}"
    scale = " on a log scale" if domain.log else ""
    return f"the range {domain.low} to {domain.high}{scale}"


def step_count(domain: FloatRange, step: float) -> int:
    """Returns how many values a stepped range has."""
    return int((_exact(domain.high) - _exact(domain.low)) // _exact(step)) + 1


def step_value(domain: FloatRange, step: float, position: int) -> float:
    """Returns a value of a stepped range as it would be written: 0.1 and two steps of 0.1 are 0.3."""
    return float(_exact(domain.low) + position * _exact(step))


def _exact(number: float) -> Fraction:
    return Fraction(repr(number))


def _plain(value: Value) -> Value:
    match value:
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case float() if value.is_integer() and abs(value) <= LARGEST_INT:
            return int(value)
    return value


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
