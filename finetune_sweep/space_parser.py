"""One dimension of a space as a sweep file writes it, and what there is to say where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from finetune_sweep.errors import Problem, UserError, nearest
from finetune_sweep.space import LARGEST_INT, Choice, Dimension, Domain, FloatRange, IntRange, canonical
from finetune_sweep.space_cells import MAX_CELLS
from finetune_sweep.yamlio import Document, Path_, Value, kind

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
        elif not math.isfinite(number) or (isinstance(number, int) and abs(number) > LARGEST_INT):
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
