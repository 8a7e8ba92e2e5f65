"""Reads a Dockerfile, as far as the one of the project goes: one stage, no heredocs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile, continued lines joined.

    Args:
        name: `RUN`, `COPY` ...
        flags: What stands before the value, without the dashes: `mount=type=cache,target=...`.
        value: The rest.
    """

    name: str
    flags: tuple[str, ...]
    value: str


def read(file: Path) -> list[Instruction]:
    """The instructions of a Dockerfile, in its order."""
    lines = [
        line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [_instruction(line) for line in joined.splitlines() if line.strip()]


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" ")
    flags = []
    while match := re.match(r"\s*--(\S+)\s+", rest):
        flags.append(match[1])
        rest = rest[match.end() :]
    return Instruction(name.upper(), tuple(flags), rest.strip())


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces `$NAME`, `${NAME}` and `${NAME:-default}`.

    Raises:
        KeyError: If a variable without a default has no value.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        return variables[name] if default is None else variables.get(name) or default

    return _VARIABLE.sub(value, text)


def arguments(value: str) -> list[str]:
    """The words of a CMD or an ENTRYPOINT: a JSON list, or a line for the shell."""
    return list(json.loads(value)) if value.startswith("[") else ["/bin/sh", "-c", value]
