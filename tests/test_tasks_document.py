from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_tasks_is_that_of_the_code(tmp_path: Path) -> None:
    made = tmp_path / "tasks.md"
    subprocess.run([sys.executable, ROOT / "docs/generate_tasks.py", made], check=True)
    assert made.read_text() == (ROOT / "docs/tasks.md").read_text(), "run `make docs`"
