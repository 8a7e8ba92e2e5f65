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
    check_conditions,
    contains,
    endpoints,
    grid,
    grid_problems,
    parse_dimension,
    sample,
)
from finetune_sweep.yamlio import Value, parse

scalars: st.SearchStrategy[Value] = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=2)
)
choices = st.lists(scalars, min_size=1, max_size=4, unique_by=canonical).map(
    lambda items: Choice(tuple(items))
)
finite = st.floats(-1e9, 1e9)


@st.composite
def int_ranges(draw: st.DrawFn) -> IntRange:
    low = draw(st.integers(-20, 50))
    high = low + draw(st.integers(0, 40))
    kind = draw(st.sampled_from(["plain", "step", "count", "log"]))
    if kind == "plain":
        return IntRange(low, high)
    if kind == "step":
        return IntRange(low, high, step=draw(st.integers(1, max(high - low, 1))))
    count = draw(st.integers(min(2, high - low + 1), high - low + 1))
    if kind == "log":
        shift = 1 - min(low, 1)
        return IntRange(low + shift, high + shift, log=True, count=count)
    return IntRange(low, high, count=count)


@st.composite
def float_ranges(draw: st.DrawFn) -> FloatRange:
    low, high = sorted((draw(finite), draw(finite)))
    assume(low < high)
    kind = draw(st.sampled_from(["plain", "step", "count", "log"]))
    if kind == "plain":
        return FloatRange(low, high)
    if kind == "step":
        return FloatRange(low, high, step=(high - low) / draw(st.integers(1, 9)))
    count = draw(st.integers(2, 9))
    if kind == "log":
        low = draw(st.floats(1e-9, 1.0))
        return FloatRange(low, low * draw(st.floats(1.5, 1e6)), log=True, count=count)
    return FloatRange(low, high, count=count)


domains: st.SearchStrategy[Domain] = choices | int_ranges() | float_ranges()
finite_domains = choices | int_ranges().filter(lambda domain: domain.high - domain.low < 6)


@st.composite
def spaces(draw: st.DrawFn, of: st.SearchStrategy[Domain] = finite_domains) -> Space:
    """Spaces of up to four dimensions, in any order, whose conditions have no circle."""
    dimensions: list[Dimension] = []
    when: dict[str, tuple[Value, ...]]
    for name in "abcd"[: draw(st.integers(0, 4))]:
        when = {}
        if dimensions and draw(st.sampled_from([False, True])):
            parent = draw(st.sampled_from(dimensions))
            ends = endpoints(parent.domain)
            when = {parent.name: tuple(draw(st.lists(st.sampled_from(ends), min_size=1, max_size=2)))}
        dimensions.append(Dimension(name, draw(of), when))
    return Space(tuple(draw(st.permutations(dimensions))))


def all_values(domain: Domain) -> list[Value]:
    (name,) = "x"
    return [config[name] for config in grid(Space((Dimension(name, domain),)))]


def read(text: str) -> Dimension:
    document = parse(text, "space.yaml")
    assert isinstance(document.value, dict)
    ((name, value),) = document.value.items()
    return parse_dimension(name, value, document, (name,))


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    return str(caught.value)


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
    dimension = read("learning_rate: {low: 1e-6, high: 1e-3, log: true}")
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


# -------------------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("x: [5e-5, 3e-5]", Choice((5e-5, 3e-5))),
        ("x: [0, embeddings, 50%, all]", Choice((0, "embeddings", "50%", "all"))),
        ("x: [{type: constant}, {type: linear}]", Choice(({"type": "constant"}, {"type": "linear"}))),
        ("x: 3", Choice((3,))),
        ("x: ~", Choice((None,))),
        ("x: {values: [1, 2]}", Choice((1, 2))),
        ("x: {low: 1, high: 6, step: 1}", IntRange(1, 6)),
        ("x: {low: 1, high: 6}", IntRange(1, 6)),
        ("x: {low: 8, high: 64, log: true, count: 4}", IntRange(8, 64, log=True, count=4)),
        ("x: {low: 1e-6, high: 1e-3, log: true}", FloatRange(1e-6, 1e-3, log=True)),
        ("x: {low: 0, high: 1, step: 0.1}", FloatRange(0.0, 1.0, step=0.1)),
        ("x: {low: 0, high: 0.5, count: 3}", FloatRange(0.0, 0.5, count=3)),
        ("x: {low: 3, high: 3}", IntRange(3, 3)),
    ],
)
def test_what_a_file_says_is_the_domain(text: str, domain: Domain) -> None:
    dimension = read(text)
    assert dimension == Dimension("x", domain, {}, "space.yaml", 1)
    assert type(dimension.domain) is type(domain)


def test_a_condition_stands_beside_values_and_beside_ranges() -> None:
    assert read("x: {values: [1], when: {freeze_depth: [0, embeddings], y: 2}}").when == {
        "freeze_depth": (0, "embeddings"),
        "y": (2,),
    }
    assert read("x: {low: 1, high: 2, when: {y: null}}").when == {"y": (None,)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{low: 5, high: 3}", "x.low: `low <= high` must hold, but got (low=5, high=3)"),
        ("{low: 0, high: 1.0, log: true}", "a log range needs `low > 0`, but got (low=0.0, high=1.0)"),
        ("{low: 1}", "got no high"),
        ("{}", "got no low and no high"),
        ("[]", "a choice needs at least one value, got []"),
        ("[16, 32, 16.0]", "x[2]: the value 16 is repeated"),
        ("[.nan]", "x[0]: a value must be finite, got nan"),
        ("{values: 3}", "x.values: `values` must be a list, got the number 3"),
        ("{values: [1], low: 2}", "x.low: `low` belongs to a range, `values` to a choice"),
        ("{low: a, high: true}", "x.low: `low` must be a number, got the text 'a'"),
        ("{low: 1, high: .inf}", "x.high: `high` must be finite"),
        ("{low: 1, high: 99999999999999999999}", "a whole number within 2^53"),
        ("{low: 1, high: 2, log: on}", "x.log: `log` must be true or false, got the text 'on'"),
        ("{low: 1, high: 2, count: 1}", "`count` must be at least 2, for both ends of the range, got 1"),
        ("{low: 1, high: 2, count: 2.5}", "`count` must be a whole number of at least 2, got the number 2.5"),
        ("{low: 1, high: 2.0, count: 9999999}", "`count` must be at most 1,000,000, got 9999999"),
        ("{low: 1, high: 3, count: 9}", "1 to 3 are 3 whole numbers, but got (count=9)"),
        ("{low: 1, high: 3, step: 0}", "`step > 0` must hold, but got (step=0)"),
        ("{low: 1, high: 3, step: 5}", "`step <= high - low` must hold, but got (low=1, high=3, step=5)"),
        ("{low: 1, high: 9, step: 2, count: 3}", "a range has `step` or `count`, but got (step=2, count=3)"),
        ("{low: 1, high: 9.5, step: 1, log: true}", "a log range has no `step`, got 1: set `count`"),
        ("{lower: 1, upper: 3}", "x.lower: unknown key 'lower' (did you mean 'low'?)"),
        ("{min: 1, max: 3}", "x.max: unknown key 'max' (did you mean 'high'?)"),
        ("{low: 1, high: 3, q: 1}", "unknown key 'q' (did you mean 'step'?)"),
        ("{low: 1, high: 3, quantized: 1}", "unknown key 'quantized' (did you mean 'step'?)"),
        ("{choice: [1]}", "unknown key 'choice' (did you mean 'values'?)"),
        ("{categorical: [1]}", "unknown key 'categorical' (did you mean 'values'?)"),
        ("{low: 1, high: 3, distribution: loguniform}", "`log: true` for a log scale"),
        ("{low: 1, high: 3, log: true, base: 10}", "a log scale has no base here"),
        ("{low: 1, high: 3, stepp: 1}", "unknown key 'stepp' (did you mean 'step'?)"),
        ("{warmup_steps: 20}", "a choice of mappings is a list of them"),
        ("{values: [1], when: 3}", "x.when: `when` must be a mapping such as"),
        ("{values: [1], when: {y: []}}", "x.when.y: a condition needs at least one value, got []"),
    ],
)
def test_each_fault_says_the_value_and_what_would_be_right(text: str, words: str) -> None:
    message = complaint(f"# a space\nx: {text}\n")
    assert words in message
    assert all(line.startswith("space.yaml:2: x") for line in message.splitlines())


def test_all_faults_of_a_dimension_are_reported_at_once() -> None:
    message = complaint("x:\n  lower: 1\n  high: a\n  when: 3\n")
    assert [line.split(": ")[0] for line in message.splitlines()] == ["space.yaml:2", "space.yaml:4"]
