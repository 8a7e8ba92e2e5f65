from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune_sweep.errors import UserError
from finetune_sweep.space import (
    Choice,
    Config,
    Dimension,
    Domain,
    FloatRange,
    IntRange,
    Space,
    canonical,
    contains,
    endpoints,
)
from finetune_sweep.space_cells import contexts, grid, grid_problems, sample
from finetune_sweep.yamlio import Value
from tests.domains import all_values, domains, spaces


def respects_conditions(space: Space, config: Config) -> bool:
    """Says whether exactly the dimensions whose conditions hold are in the configuration."""
    for dimension in space.dimensions:
        holds = all(
            parent in config and any(canonical(config[parent]) == canonical(value) for value in allowed)
            for parent, allowed in dimension.when.items()
        )
        if holds != (dimension.name in config):
            return False
    return True


# ---------------------------------------------------------------------------------------------------- grid


@settings(deadline=None)
@given(spaces())
def test_a_grid_is_complete_without_duplicates_and_respects_conditions(space: Space) -> None:
    cells = list(grid(space))
    assert all(respects_conditions(space, cell) for cell in cells)
    found = Counter(canonical(cell) for cell in cells)
    assert set(found.values()) <= {1}
    names = [dimension.name for dimension in space.dimensions]
    everything = product(*(all_values(dimension.domain) for dimension in space.dimensions))
    expected = set()
    for values in everything:
        cell: Config = {}
        for dimension, value in zip(space.dimensions, values, strict=True):
            if all(
                parent in cell and canonical(cell[parent]) in map(canonical, allowed)
                for parent, allowed in dimension.when.items()
            ):
                cell[dimension.name] = value
        expected.add(canonical(cell))
        assert list(cell) == [name for name in names if name in cell]
    assert set(found) == expected


@settings(deadline=None)
@given(domains)
def test_the_values_of_a_grid_lie_within_the_domain_in_order_with_both_ends(domain: Domain) -> None:
    space = Space((Dimension("x", domain),))
    assume(not grid_problems(space))
    values = all_values(domain)
    assert all(contains(domain, value) for value in values)
    assert len({canonical(value) for value in values}) == len(values)
    assert (values[0], values[-1]) == (endpoints(domain)[0], endpoints(domain)[-1])
    if not isinstance(domain, Choice):
        numbers = [value for value in values if isinstance(value, int | float)]
        assert numbers == sorted(numbers)
        assert domain.count in (None, len(values))


def test_the_last_dimension_changes_fastest() -> None:
    space = Space((Dimension("a", Choice((1, 2))), Dimension("b", Choice(("x", "y")))))
    cells = [(cell["a"], cell["b"]) for cell in grid(space)]
    assert cells == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_an_inactive_dimension_is_absent() -> None:
    space = Space(
        (
            Dimension("reinit_layers", Choice((1, 2)), {"freeze_depth": (0,)}),
            Dimension("freeze_depth", Choice((0, "all"))),
        )
    )
    assert list(grid(space)) == [
        {"freeze_depth": 0, "reinit_layers": 1},
        {"freeze_depth": 0, "reinit_layers": 2},
        {"freeze_depth": "all"},
    ]


def test_an_empty_space_has_one_cell() -> None:
    assert list(grid(Space(()))) == [{}]


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (IntRange(1, 6), [1, 2, 3, 4, 5, 6]),
        (IntRange(1, 6, step=2), [1, 3, 5]),
        (IntRange(1, 100, log=True, count=3), [1, 10, 100]),
        (IntRange(1, 8, log=True, count=6), [1, 2, 3, 4, 5, 8]),
        (IntRange(1, 3, log=True, count=3), [1, 2, 3]),
        (IntRange(8, 64, count=3), [8, 36, 64]),
        (IntRange(4, 4, count=1), [4]),
        (FloatRange(1e-6, 1e-3, log=True, count=4), [1e-6, 1e-5, 1e-4, 1e-3]),
        (FloatRange(1e-5, 5e-5, log=True, count=3), [1e-5, 2.23607e-5, 5e-5]),
        (FloatRange(0.0, 0.3, count=4), [0.0, 0.1, 0.2, 0.3]),
        (FloatRange(0.1, 0.45, step=0.1), [0.1, 0.2, 0.3, 0.4]),
        (FloatRange(1.0, 1.0000001, count=3), [1.0, 1.00000005, 1.0000001]),
        (FloatRange(2.0, 2.0, count=3), [2.0]),
    ],
)
def test_grid_values_worked_out_by_hand(domain: Domain, values: list[Value]) -> None:
    assert all_values(domain) == pytest.approx(values, rel=1e-15)


def test_a_grid_over_an_unbounded_range_is_refused_with_the_way_out() -> None:
    rates = FloatRange(1e-6, 1e-3, log=True)
    dimension = Dimension("learning_rate", rates, file="space.yaml", line=1)
    space = Space((dimension, Dimension("epochs", IntRange(1, 9, log=True))))
    with pytest.raises(UserError) as caught:
        grid(space)
    first, second = str(caught.value).splitlines()
    assert first == (
        "space.yaml:1: learning_rate: a grid needs a finite domain, got the range 1e-06 to 0.001 "
        "on a log scale: "
        "add `count: 5` for five values, or use `search: {type: random}`"
    )
    assert second.startswith("epochs: a grid needs a finite domain")


def test_a_grid_of_too_many_cells_is_refused_before_it_is_made() -> None:
    space = Space((Dimension("a", IntRange(0, 10**9)), Dimension("b", IntRange(0, 10**9))))
    (problem,) = grid_problems(space)
    assert str(problem).startswith("a: the grid has 1,000,000,001 cells with this, at most 1,000,000")


# -------------------------------------------------------------------------------------------------- sample


@settings(deadline=None)
@given(spaces(of=domains), st.integers(0, 2**32), st.integers(0, 1000))
def test_a_sample_is_reproducible_within_the_domains_and_respects_conditions(
    space: Space, seed: int, index: int
) -> None:
    config = sample(space, seed, index)
    assert config == sample(space, seed, index)
    assert respects_conditions(space, config)
    for dimension in space.dimensions:
        assert dimension.name not in config or contains(dimension.domain, config[dimension.name])


@settings(deadline=None)
@given(spaces(of=domains), st.integers(0, 100), st.integers(1, 10))
def test_more_trials_leave_the_first_ones_as_they_are(space: Space, seed: int, trials: int) -> None:
    few = [sample(space, seed, index) for index in range(trials)]
    many = [sample(space, seed, index) for index in range(trials + 5)]
    assert many[:trials] == few


def test_samples_stay_what_they_were_when_published() -> None:
    space = Space(
        (
            Dimension("learning_rate", FloatRange(1e-6, 1e-3, log=True)),
            Dimension("epochs", IntRange(1, 6)),
            Dimension("freeze_depth", Choice((0, "embeddings", "all"))),
        )
    )
    assert [sample(space, 0, index) for index in range(2)] == [
        {"learning_rate": 0.000130213, "epochs": 6, "freeze_depth": 0},
        {"learning_rate": 0.000132422, "epochs": 4, "freeze_depth": "all"},
    ]


def test_another_dimension_leaves_the_values_of_the_others() -> None:
    one = Dimension("a", FloatRange(0.0, 1.0))
    two = Dimension("b", FloatRange(0.0, 1.0))
    assert sample(Space((one, two)), 0, 3)["a"] == sample(Space((one,)), 0, 3)["a"]
    assert sample(Space((one, two)), 0, 3)["a"] != sample(Space((one, two)), 0, 3)["b"]
    assert sample(Space((one,)), 0, 3) != sample(Space((one,)), 1, 3)


def test_log_samples_are_even_over_the_decades() -> None:
    space = Space(
        (Dimension("x", FloatRange(1e-6, 1e-2, log=True)), Dimension("n", IntRange(1, 3, log=True)))
    )
    drawn = [sample(space, 0, index) for index in range(2000)]
    decades = Counter(math.floor(math.log10(float(str(config["x"])))) for config in drawn)
    assert set(decades) <= {-6, -5, -4, -3}
    assert all(abs(count - 500) < 100 for count in decades.values())
    whole = Counter(config["n"] for config in drawn)
    assert whole[1] > whole[2] > whole[3] > 200


# ------------------------------------------------------------------------------------------------ contexts


def test_contexts_are_the_ends_of_what_is_asked_for_and_what_it_depends_on() -> None:
    space = Space(
        (
            Dimension("lora.r", Choice((0, 4))),
            Dimension("epochs", IntRange(1, 90)),
            Dimension("freeze_depth", IntRange(0, 2), {"lora.r": (4,)}),
        )
    )
    assert list(contexts(space, {"freeze_depth"}, 100)) == [
        {"lora.r": 0},
        {"lora.r": 4, "freeze_depth": 0},
        {"lora.r": 4, "freeze_depth": 1},
        {"lora.r": 4, "freeze_depth": 2},
    ]
    assert list(contexts(space, {"epochs"}, 100)) == [{"epochs": 1}, {"epochs": 90}]
    assert list(contexts(space, {"lora"}, 100)) == [{"lora.r": 0}, {"lora.r": 4}]
    assert list(contexts(space, (), 100)) == [{}]


def test_of_too_many_contexts_some_are_drawn_from_all_of_them() -> None:
    """2 ** 30 of them, more than a grid may have: of 100 draws each dimension has both of its ends."""
    names = [f"d{number}" for number in range(30)]
    space = Space(tuple(Dimension(name, IntRange(1, 90)) for name in names))
    drawn = list(contexts(space, names, 100))
    assert drawn == list(contexts(space, names, 100))
    assert len(drawn) == 100
    assert all({config[name] for config in drawn} == {1, 90} for name in names)
