"""The configurations of a space: the grid over it, and samples of it.

Samples are a function of (seed, index, name), so that more trials, or one more dimension, change none that
exist.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Final, assert_never

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.space import (
    Choice,
    Config,
    Dimension,
    Domain,
    FloatRange,
    IntRange,
    Space,
    canonical,
    describe,
    endpoints,
    is_active,
    step_count,
    step_value,
)
from finetune_sweep.yamlio import Value

MAX_CELLS: Final = 1_000_000
_FEW: Final = 16
"""Whole numbers of a range that are all looked at."""


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
            got = describe(dimension.domain)
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


def contexts(space: Space, names: Collection[str], most: int) -> Iterator[Config]:
    """Returns what some dimensions can be together, with those that their conditions name.

    Of a range these are its ends, or if it is one of few whole numbers, all of them.

    Args:
        space: What is searched.
        names: Of dimensions; that of a section stands for all of its settings.
        most: Where there are more configurations, so many are drawn from all of them, always the same ones.
    """
    needed = {d.name for d in space.dimensions if {d.name, d.name.partition(".")[0]} & set(names)}
    for dimension in reversed(space.dimensions):  # a dimension stands behind those that it depends on
        needed |= set(dimension.when) if dimension.name in needed else set()
    ends = [replace(d, domain=_narrowed(d.domain)) for d in space.dimensions if d.name in needed]
    narrowed = Space(tuple(ends))
    if math.prod(len(endpoints(dimension.domain)) for dimension in ends) <= most:
        return grid(narrowed)
    return (sample(narrowed, 0, index) for index in range(most))


def _narrowed(domain: Domain) -> Choice:
    if isinstance(domain, IntRange) and (domain.high - domain.low) // domain.step < _FEW:
        return Choice(tuple(range(domain.low, domain.high + 1, domain.step)))
    return Choice(endpoints(domain))


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
            return step_count(domain, step)
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
            return [step_value(domain, step, position) for position in range(step_count(domain, step))]
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
            steps = step_count(domain, step)
            return step_value(domain, step, min(int(Fraction(uniform) * steps), steps - 1))
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


def _short(number: float) -> float:
    return float(f"{number:.6g}")
