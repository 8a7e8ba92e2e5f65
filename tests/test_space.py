from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from finetune_sweep.space import (
    Choice,
    Dimension,
    Domain,
    FloatRange,
    IntRange,
    Space,
    canonical,
    check_conditions,
    contains,
    endpoints,
)
from finetune_sweep.yamlio import Value
from tests.domains import domains, spaces

# ------------------------------------------------------------------------------------ contains and endpoints


@settings(deadline=None)
@given(domains)
def test_the_endpoints_are_in_the_domain_and_nothing_lies_beyond(domain: Domain) -> None:
    ends = endpoints(domain)
    assert all(contains(domain, end) for end in ends)
    if isinstance(domain, Choice):
        assert ends == domain.values
    else:
        low, high = ends
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        assert domain.low == low <= high <= domain.high
        assert not contains(domain, low - 1)
        assert not contains(domain, high + (domain.step or 1) * 1.5)


@pytest.mark.parametrize("value", [None, True, "1", [1], {}, math.nan, math.inf, -math.inf])
def test_a_range_holds_only_numbers(value: Value) -> None:
    assert not contains(IntRange(0, 2), value)
    assert not contains(FloatRange(0.0, 2.0), value)
    assert not contains(FloatRange(0.0, 2.0, step=0.5), value)


def test_contains_knows_steps_and_equal_numbers() -> None:
    assert contains(IntRange(1, 6, step=2), 3.0)
    assert not contains(IntRange(1, 6, step=2), 2)
    assert not contains(IntRange(1, 6), 2.5)
    assert contains(FloatRange(0.1, 1.0, step=0.1), 0.3)
    assert not contains(FloatRange(0.1, 1.0, step=0.1), 0.35)
    assert contains(Choice((0, "all")), 0.0)
    assert not contains(Choice((0, "all")), False)


def test_canonical_texts_are_equal_for_equal_values() -> None:
    assert canonical({"b": 1, "a": [0.0, -0.0]}) == canonical({"a": [0, 0], "b": 1.0}) == '{"a":[0,0],"b":1}'
    assert canonical(1) != canonical(True)
    assert canonical("1") != canonical(1)


# ----------------------------------------------------------------------------------------------- conditions


def test_a_space_puts_parents_first_and_else_keeps_the_order() -> None:
    space = Space(
        (
            Dimension("c", Choice((1,)), {"a": (1,)}),
            Dimension("b", Choice((1,))),
            Dimension("a", Choice((1,))),
        )
    )
    assert [dimension.name for dimension in space.dimensions] == ["b", "a", "c"]


def test_names_of_dimensions_differ() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Space((Dimension("a", Choice((1,))), Dimension("a", Choice((2,)))))


def test_all_faults_of_conditions_are_found() -> None:
    space = Space(
        (
            Dimension("freeze_depth", Choice((0, "all"))),
            Dimension("epochs", IntRange(1, 3)),
            Dimension("a", Choice((1,)), {"freeze_dept": (0,)}, "space.yaml", 3),
            Dimension("b", Choice((1,)), {"freeze_depth": (0, 7), "epochs": (4,)}),
            Dimension("c", Choice((1,)), {"d": (1,)}),
            Dimension("d", Choice((1,)), {"c": (1,)}),
        )
    )
    assert [str(problem) for problem in check_conditions(space)] == [
        "space.yaml:3: a.when.freeze_dept: 'freeze_dept' is not searched (did you mean 'freeze_depth'?)",
        'b.when.freeze_depth: freeze_depth never has the value 7: it is one of [0,"all"]',
        "b.when.epochs: epochs never has the value 4: it is the range 1 to 3",
        "c.when: the conditions of c, d wait for each other: remove one",
    ]


@settings(deadline=None)
@given(spaces())
def test_good_conditions_have_no_problems(space: Space) -> None:
    assert check_conditions(space) == []
