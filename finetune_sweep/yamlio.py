"""Strict YAML: what a file says, where it says it, and everything that is wrong with it at once.

The parser is PyYAML's event layer; scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/,
chapter 10.3), so that ``5e-5`` is a number and ``on`` is text. Nothing is constructed but mappings, lists
and scalars: anchors, aliases and tags are refused, and with them alias bombs and objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import yaml
from typing_extensions import TypeAliasType

from finetune_sweep.errors import Problem, UserError, nearest

Value = TypeAliasType("Value", "bool | int | float | str | list[Value] | dict[str, Value] | None")
"""What a YAML or JSON document can hold."""

Path_ = tuple[str | int, ...]
"""Way from the top of a document to a value: keys of mappings and positions in lists, from 0."""

MAX_BYTES: Final = 250_000
MAX_DEPTH: Final = 20

_LARGEST = 2**63 - 1
"""A whole number above it fits neither a float nor a column of a database."""
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WORDS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}

_HINTS: Final[Mapping[str, str]] = {
    r"found character '\t'": "a tab cannot stand here: indent and separate with spaces",
    "that cannot start any token": "a text that begins with this character needs quotes",
    "mapping values are not allowed": (
        "a text that holds ': ' needs quotes, and each line above needs its own ': ' and the same indent"
    ),
    "could not find expected ':'": "a key needs ': ' after it",
    "expected <block end>": "the lines of one mapping or list are indented alike",
    "expected ',' or": "a bracket or a comma is missing",
    "found unexpected end of stream": "a quote is not closed",
}


@dataclass(frozen=True)
class Document:
    """One parsed file.

    Attributes:
        value: What it holds.
        file: Its name, as messages give it.
        lines: Line of every key and list item, from 1; ``()`` is the document itself. Empty if it is no file.
    """

    value: Value
    file: str
    lines: Mapping[Path_, int]

    def line(self, path: Path_) -> int | None:
        """Returns the line of ``path``, or of its nearest parent that the file holds; None without a file."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def problem(self, path: Path_, message: str) -> Problem:
        """Returns ``message`` as a problem at ``path``, with file and line."""
        return Problem(message, render_path(path), self.file, self.line(path))


def render_path(path: Path_) -> str:
    """Returns a path as text.

    >>> render_path(("data", "columns", 0, "name"))
    'data.columns[0].name'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def load(file: Path) -> Document:
    """Reads a YAML file whose top level is a mapping.

    Args:
        file: UTF-8 text of at most ``MAX_BYTES``, nested at most ``MAX_DEPTH`` deep.

    Returns:
        What it holds, with the line of every part; ``value`` is a mapping.

    Raises:
        UserError: It cannot be read, is no such file, or is not strict YAML; all problems that were found.
    """
    document = parse(_read(file), str(file))
    if document.value is None:
        raise UserError(Problem("the file is empty: it must hold `key: value` lines", file=document.file))
    if not isinstance(document.value, dict):
        message = f"the top level must be a mapping (`key: value` lines), got {kind(document.value)}"
        raise UserError(document.problem((), message))
    return document


def parse(text: str, file: str) -> Document:
    """Parses one document of strict YAML, whatever its top level is.

    Args:
        text: The document.
        file: The name that messages give.

    Raises:
        UserError: All problems that were found, in the order of the file.
    """
    return _Builder(text, file).document()


def parse_scalar(text: str) -> Value:
    """Parses one YAML value as given on the command line: a scalar, ``[a, list]`` or ``{a: mapping}``.

    Raises:
        UserError: It is not one value of these.

    >>> parse_scalar("[5e-5, on, {low: 1}]")
    [5e-05, 'on', {'low': 1}]
    """
    try:
        return _Builder(text, "", flow_only=True).document().value
    except UserError as error:
        first = error.problems[0]
        raise UserError(replace(first, message=f"{first.message}, in {text!r}", line=None)) from None


def dump(value: Value) -> str:
    """Returns ``value`` as YAML that ``parse`` reads back the same, and so do readers of YAML 1.1."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def kind(value: Value) -> str:
    """Names the kind of a value for a message: ``a list``, ``the text 'adam'``, ``the number 3``."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {_shorten(value)!r}"
        case list():
            return "a list"
    return "a mapping"


def _read(file: Path) -> str:
    name = str(file)
    try:
        if file.is_dir():
            raise UserError(Problem("this is a folder: give a YAML file", file=name))
        if not file.exists():
            raise UserError(Problem(f"there is no such file{_nearby(file)}", file=name))
        if not file.is_file():
            raise UserError(Problem("this is a device or a pipe: give a YAML file", file=name))
        size = file.stat().st_size
        content = file.read_bytes() if size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(Problem(f"the file cannot be read: {reason}", file=name)) from None
    if size > MAX_BYTES:
        message = f"the file has {size:,} bytes, at most {MAX_BYTES:,} are read: is it a data file?"
        raise UserError(Problem(message, file=name))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"the file must be UTF-8, got byte 0x{content[error.start]:02x}: save it as UTF-8"
        raise UserError(Problem(message, file=name, line=line)) from None


def _nearby(file: Path) -> str:
    if not file.parent.is_dir():
        return f", nor a folder '{file.parent}'"
    return nearest(file.name, (other.name for other in file.parent.iterdir() if other.is_file()))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass
class _Builder:
    """Turns the events of one document into values, lines and problems; recursion is bounded by the depth."""

    text: str
    file: str
    flow_only: bool = False
    lines: dict[Path_, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    references: list[tuple[str, int]] = field(default_factory=list)

    def document(self) -> Document:
        """Builds everything, and raises all problems together."""
        value: Value = None
        try:
            value = self._stream(yaml.parse(self.text, Loader=yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            self._note_syntax(error)
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            self._note(
                f"the control character U+{ord(self.text[error.position]):04X} is not YAML: remove it", line
            )
        except _TooDeepError as error:
            self._note(f"nested more than {MAX_DEPTH} deep: no setting needs that", error.line)
        self._note_references()
        if self.problems:
            raise UserError(sorted(self.problems, key=lambda problem: problem.line or 0))
        return Document(value, self.file, self.lines)

    def _stream(self, events: Iterator[yaml.Event]) -> Value:
        value: Value = None
        seen = False
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    self._note("a second document ('---') begins: a file holds one", _line(event))
                    break
                seen = True
                start = next(events)
                self.lines[()] = _line(start)
                value = self._node(start, events, ())
        return value

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: Path_) -> Value:
        self._check_properties(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.AliasEvent):
            return None
        if len(path) >= MAX_DEPTH:
            raise _TooDeepError(_line(event))
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path)
        return self._mapping(events, path)

    def _sequence(self, events: Iterator[yaml.Event], path: Path_) -> list[Value]:
        items: list[Value] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            item = (*path, len(items))
            self.lines.setdefault(item, _line(event))
            items.append(self._node(event, events, item))
        return items

    def _mapping(self, events: Iterator[yaml.Event], path: Path_) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, events, path)
            inner = (*path, key)
            if key in entries:
                first = self.lines[inner]
                message = f"the key '{_shorten(key)}' is repeated (first on line {first}): keep one of them"
                self._note(message, _line(event), inner)
            self.lines.setdefault(inner, _line(event))
            value = self._node(next(events), events, inner)
            entries.setdefault(key, value)
        return entries

    def _key(self, event: yaml.Event, events: Iterator[yaml.Event], path: Path_) -> str:
        key = self._node(event, events, (*path, "?"))
        if isinstance(key, str):
            return key
        text = event.value if isinstance(event, yaml.ScalarEvent) else ""
        if not isinstance(event, yaml.AliasEvent):
            advice = f": put it in quotes, '{text}'" if text else ""
            self._note(f"a key must be text, got {kind(key)}{advice}", _line(event), path)
        return text or f"?{len(self.problems)}"

    def _scalar(self, event: yaml.ScalarEvent, path: Path_) -> Value:
        if not event.implicit[0]:
            return str(event.value)
        try:
            return _resolve(event.value)
        except (ValueError, OverflowError):
            self._note(f"the number {_shorten(event.value)} is too large", _line(event), path)
            return None

    def _check_properties(self, event: yaml.Event, path: Path_) -> None:
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            self.references.append((f"{sign}{anchor}", _line(event)))
        tag = getattr(event, "tag", None)
        if tag is not None:
            advice = "write the value itself; quotes make it text"
            self._note(f"the tag '{_shorten(tag)}' is refused: {advice}", _line(event), path)
        if self.flow_only and getattr(event, "flow_style", None) is False:
            self._note("a list is written [a, b], a mapping {a: b}, and a text that holds ': ' in quotes", 1)

    def _note(self, message: str, line: int, path: Path_ = ()) -> None:
        self.problems.append(Problem(message, render_path(path), self.file, line))

    def _note_references(self) -> None:
        if self.references:
            name, line = self.references[0]
            more = f" and {len(self.references) - 1} more" if len(self.references) > 1 else ""
            self._note(f"anchors and aliases are refused, got '{name}'{more}: write the value out", line)

    def _note_syntax(self, error: yaml.MarkedYAMLError) -> None:
        found = str(error.problem or error)
        hint = next((right for wrong, right in _HINTS.items() if wrong in found), "")
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        lines = self.text.splitlines()
        got = _shorten(lines[line - 1].strip()) if line <= len(lines) else ""
        begun = error.context_mark.line + 1 if error.context_mark else line
        parts = (
            f"this is not YAML: {found}",
            f", got {got!r}" if got else "",
            f" (begun on line {begun})" if begun != line else "",
            f": {hint}" if hint else "",
        )
        self._note("".join(parts), line)


class _TooDeepError(Exception):
    """The document is nested too deep; ends the parsing at once, as what follows costs time."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _resolve(text: str) -> Value:
    """Resolves a plain scalar by the core schema; ValueError or OverflowError for a number out of range."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        whole = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if abs(whole) > _LARGEST:
            raise OverflowError(text)
        return whole
    if not _FLOAT.fullmatch(text):
        return text
    named = text.lower().lstrip("+-") in (".inf", ".nan")
    number = float(text.replace(".", "", 1) if named else text)
    if not named and number in (float("inf"), float("-inf")):
        raise OverflowError(text)
    return number


class _Dumper(yaml.SafeDumper):
    """Writes lists of scalars on one line, never aliases, and quotes what either YAML would misread."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True

    def write_list(self, data: list[Value]) -> yaml.Node:
        """Represents a list."""
        flat = not any(isinstance(item, list | dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)

    def write_text(self, data: str) -> yaml.Node:
        """Represents a text; PyYAML loses some line separators outside double quotes."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(list, _Dumper.write_list)
_Dumper.add_representer(str, _Dumper.write_text)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(rf"^(?:{_INT.pattern})$"), list("-+0123456789")
)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+.0123456789")
)
