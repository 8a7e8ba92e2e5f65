"""What a run of the faults comes to: one row a fault."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.chains import Row

EACH_ONCE: Final = "each once"
"""The note of a line whose runs are operations, each of which is killed at once."""


@dataclass
class Line:
    """A fault: how often it was tried, how often it came in mid-work, and what was wrong."""

    fault: str
    runs: int = 0
    fired: int = 0
    violations: list[str] = field(default_factory=list)
    note: str = ""
    missed: list[str] = field(default_factory=list)
    """What must have been met and was not."""

    @property
    def is_control(self) -> bool:
        """Whether its violations are those of a sweep without protection."""
        return self.fault.startswith("control:")


def lines(rows: Iterable[Row]) -> list[Line]:
    """The rows of each fault together, in the order in which they were first tried."""
    found: dict[str, Line] = {}
    for row in rows:
        line = found.setdefault(row.fault, Line(row.fault))
        line.runs += 1
        line.fired += row.fired
        line.violations += [f"seed {row.seed}: {text}" for text in row.violations]
    return list(found.values())


def render(table: Sequence[Line]) -> str:
    """The table, with the violations below it."""
    rows: list[tuple[str, ...]] = [("fault", "runs", "fired", "not fired", "violations")]
    for line in table:
        counts = (line.runs, line.fired, line.runs - line.fired, len(line.violations))
        words = tuple(map(str, counts)) if line.runs else ("-", "-", "-", "-")
        rows.append((line.fault + (f" ({line.note})" if line.note else ""), *words))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    text = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    wrong = [
        f"{line.fault}: {violation}" for line in table if not line.is_control for violation in line.violations
    ]
    return "\n".join([*wrong, *([""] if wrong else []), text[0], "-" * len(text[0]), *text[1:]])


def failed(table: Sequence[Line]) -> list[str]:
    """Why a run proves nothing, or something bad: violations, faults that never fired, a control that holds."""
    reasons = []
    for line in table:
        if line.is_control:
            reasons += (
                [] if line.violations else [f"{line.fault}: it holds, what the documents say is out of date"]
            )
        elif line.violations:
            reasons.append(f"{line.fault}: {len(line.violations)} violations")
        elif line.missed:
            reasons.append(f"{line.fault}: {len(line.missed)} were not met: {', '.join(line.missed[:3])}")
        elif line.runs and not line.fired:
            reasons.append(f"{line.fault}: it never came in mid-work")
    return reasons
