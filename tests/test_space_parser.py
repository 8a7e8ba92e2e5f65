from __future__ import annotations

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.space import Choice, Dimension, Domain, FloatRange, IntRange
from finetune_sweep.space_parser import parse_dimension
from finetune_sweep.yamlio import parse


def read(text: str) -> Dimension:
    document = parse(text, "space.yaml")
    assert isinstance(document.value, dict)
    ((name, value),) = document.value.items()
    return parse_dimension(name, value, document, (name,))


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    return str(caught.value)


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
        ("{low: 1, high: 9999999999999999}", "a whole number within 2^53"),
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
