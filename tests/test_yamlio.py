from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.yamlio import (
    MAX_BYTES,
    MAX_DEPTH,
    Value,
    dump,
    load,
    parse,
    parse_scalar,
    render_path,
)

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | st.text()
)
values: st.SearchStrategy[Value] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, "sweep.yaml")
    return str(caught.value)


def load_complaint(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(file)
    assert len(caught.value.problems) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-5", 5e-5),
        ("1e-5", 1e-5),
        ("+.5E3", 500.0),
        ("1.", 1.0),
        ("-12", -12),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("-.inf", -math.inf),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2001-01-01", "2001-01-01"),
        ("50%", "50%"),
        ("'5e-5'", "5e-5"),
        ("<<", "<<"),
        ("example:minilm-l6", "example:minilm-l6"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, expected: Value) -> None:
    value = parse_scalar(text)
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_number() -> None:
    value = parse_scalar(".nan")
    assert isinstance(value, float)
    assert math.isnan(value)


@settings(deadline=None)
@given(values)
def test_what_is_dumped_is_read_back(value: Value) -> None:
    assert parse(dump(value), "").value == value


@settings(deadline=None)
@given(values)
def test_what_is_dumped_means_the_same_to_yaml_1_1(value: Value) -> None:
    assert yaml.safe_load(dump(value)) == value


def test_dump_keeps_the_order_and_writes_short_lists_on_a_line() -> None:
    assert dump({"space": {"epochs": [2, 3]}, "name": "a"}) == "space:\n  epochs: [2, 3]\nname: a\n"


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-#[]{}&*!|>'\"%@`?,\n\t 01.~<"), max_size=40))
def test_any_text_is_a_document_or_a_user_error(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        parse(text, "sweep.yaml")
    except UserError as error:
        problems = error.problems
    assert all(problem.file == "sweep.yaml" and problem.line for problem in problems)


def test_every_part_has_its_line() -> None:
    document = parse("# a sweep\nname: a\ndata:\n  columns:\n    - x\n    - {y: 1}\n", "sweep.yaml")
    assert document.line(()) == 2
    assert document.line(("data", "columns")) == 4
    assert document.line(("data", "columns", 1, "y")) == 6
    assert document.line(("data", "columns", 1, "absent", 3)) == 6
    problem = document.problem(("data", "columns", 1, "y"), "must be text, got 1")
    assert str(problem) == "sweep.yaml:6: data.columns[1].y: must be text, got 1"


def test_paths_are_rendered_as_a_user_writes_them() -> None:
    assert render_path(("a", "b", 0, "c")) == "a.b[0].c"
    assert render_path((2, "a")) == "[2].a"
    assert render_path(()) == ""


def test_all_problems_are_reported_at_once_in_order() -> None:
    text = "a: 1\nb: !!python/name:os.system x\na: 2\nc: &anchor 3\nd: *anchor\n1: x\ne: [\n"
    lines = complaint(text).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4", "6", "8"]
    assert "b: the tag 'tag:yaml.org,2002:python/name:os.system' is refused" in lines[0]
    assert "a: the key 'a' is repeated (first on line 1)" in lines[1]
    assert "anchors and aliases are refused, got '&anchor' and 1 more" in lines[2]
    assert "a key must be text, got the number 1: put it in quotes, '1'" in lines[3]
    assert "this is not YAML" in lines[4]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n\tb: 1\n", 2, "a tab cannot stand here"),
        ("a: b: c\n", 1, "a text that holds ': ' needs quotes"),
        ("epochs 3\nseed: 1\n", 2, "each line above needs its own ': '"),
        ("a:\n  b: 1\n c: 2\n", 3, "indented alike"),
        ("a: [1, 2\nb: 3\n", 2, "(begun on line 1)"),
        ("a: 'x\n\n", 3, "a quote is not closed"),
        ("a: @b\n", 1, "needs quotes"),
        ("a: {{x}}\n", 1, "a key must be text, got a mapping"),
        ("a: 1\n---\nb: 2\n", 2, "a second document"),
        ("a: b\nc: \x07\n", 2, "control character U+0007"),
        ("a: 1\nb: 1e999\n", 2, "b: the number 1e999 is too large"),
        (f"a: {'9' * 5000}\n", 1, "is too large"),
        (f"a: {{low: 1e-5, high: 1{'0' * 400}}}\n", 1, "is too large"),
        (f"a: 0x{'f' * 5000}\n", 1, "is too large"),
        ("a: 9223372036854775808\n", 1, "a: the number 9223372036854775808 is too large"),
        ("a: !custom 1\n", 1, "the tag '!custom' is refused"),
        ("b: *unknown\n", 1, "got '*unknown': write the value out"),
    ],
)
def test_each_fault_is_named_with_its_line_and_the_right_thing(text: str, line: int, words: str) -> None:
    message = complaint(text)
    assert message.startswith(f"sweep.yaml:{line}: ")
    assert words in message
    assert len(message.splitlines()) == 1


def test_an_alias_bomb_is_one_problem() -> None:
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    message = complaint("\n".join(["a0: &a0 [x]", *rows]))
    assert message.splitlines() == [message]
    assert "sweep.yaml:1: anchors and aliases are refused, got '&a0' and 121 more" in message


@pytest.mark.parametrize("bomb", ["[" * 300_000, "{a: " * 200_000, "- " * 300_000, "? " * 300_000])
def test_a_depth_bomb_is_one_problem(bomb: str) -> None:
    message = complaint(bomb)
    assert message == f"sweep.yaml:1: nested more than {MAX_DEPTH} deep: no setting needs that"


def test_the_deepest_allowed_document_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    value = parse(text, "").value
    assert parse(dump(value), "").value == value
    assert "nested" in complaint(f"[{text}]")


def test_a_good_file_loads(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("\ufeffname: café  # a note\ndata: {limit: 5}\n", encoding="utf-8")
    document = load(file)
    assert document.value == {"name": "café", "data": {"limit": 5}}
    assert document.file == str(file)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "bert.yaml").write_text("a: 1\n")
    assert "there is no such file (did you mean 'bert.yaml'?)" in load_complaint(tmp_path / "brt.yaml")
    assert f"nor a folder '{tmp_path / 'none'}'" in load_complaint(tmp_path / "none" / "bert.yaml")


def test_a_folder_a_device_and_a_bad_name_are_refused(tmp_path: Path) -> None:
    assert "this is a folder" in load_complaint(tmp_path)
    assert "a device or a pipe" in load_complaint(Path("/dev/zero"))
    assert "cannot be read: File name too long" in load_complaint(tmp_path / ("x" * 5000))
    assert load_complaint(tmp_path / "a\0b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("a: 1\n")
    file.chmod(0)
    assert "cannot be read: Permission denied" in load_complaint(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n- b\n", ":1: the top level must be a mapping (`key: value` lines), got a list"),
        (b"just words\n", "got the text 'just words'"),
        (b"x:1\n", "got the text 'x:1'"),
        (b"a: 1\nb: caf\xe9\n", ":2: the file must be UTF-8, got byte 0xe9"),
        ("a: 1\n".encode("utf-16"), ":1: the file must be UTF-8, got byte 0xff"),
        (b"a: " + b"x" * 5_000_000, f"the file has 5,000,003 bytes, at most {MAX_BYTES:,} are read"),
    ],
)
def test_a_file_that_is_no_mapping_in_utf_8_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(content)
    message = load_complaint(file)
    assert message.startswith(str(file))
    assert words in message


def test_a_value_of_the_command_line_is_a_scalar_a_list_or_a_mapping() -> None:
    assert parse_scalar("[5e-5, {low: 1}]") == [5e-5, {"low": 1}]


@pytest.mark.parametrize("text", ["a: b", "- a", "[1, 2", "a: b: c", "a: &x 1"])
def test_anything_else_on_the_command_line_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_scalar(text)
    assert f"in {text!r}" in str(caught.value)
    assert all(problem.line is None for problem in caught.value.problems)
