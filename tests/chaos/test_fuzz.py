"""Whatever a sweep file says: a sweep or a `UserError`, and nothing else touched. `make chaos` does more of it."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import fuzz

EXAMPLES = 60


def test_a_file_that_nobody_meant_is_a_sweep_or_a_user_error(tmp_path: Path) -> None:
    assert fuzz.fuzz(tmp_path, EXAMPLES, 1) == []


def test_a_hostile_file_touches_nothing_and_learns_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    count, wrong = fuzz.attack(folder)
    assert wrong == []
    assert count > 40
