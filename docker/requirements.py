"""Prints what a pyproject.toml asks for, one requirement a line: `requirements.py PYPROJECT [EXTRA ...]`.

The image installs this before it has the code, so that a change of the code leaves the large layers alone.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(pyproject: str, *extras: str) -> None:
    """Prints the dependencies and those of the extras.

    Raises:
        KeyError: If the project has no such extra.
    """
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    sys.stdout.writelines(f"{requirement}\n" for group in groups for requirement in group)


if __name__ == "__main__":
    main(*sys.argv[1:])
