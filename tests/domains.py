"""Domains and spaces that property tests draw, and the values of a domain."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st

from finetune_sweep.space import Choice, Dimension, Domain, FloatRange, IntRange, Space, canonical, endpoints
from finetune_sweep.space_cells import grid
from finetune_sweep.yamlio import Value

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
