"""Small sources of rows, and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_sweep.spec import Data
from finetune_sweep.tasks import TASKS
from finetune_sweep.train.data import Prepared, prepare

TASK = TASKS["text-classification"]
Example = dict[str, object]


def examples(count: int, first: int = 0) -> list[Example]:
    """Distinct texts of two classes, one of three rows being "pos"."""
    return [
        {"text": f"text {row}", "label": "neg" if row % 3 else "pos"} for row in range(first, first + count)
    ]


def write_jsonl(file: Path, rows: list[Example]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prepared(tmp_path: Path, data: Data) -> Prepared:
    return prepare(data, TASK, tmp_path, tmp_path / "cache")


def three_files(tmp_path: Path, **rows: list[Example]) -> Data:
    for split, part in rows.items():
        write_jsonl(tmp_path / f"{split}.jsonl", part)
    return Data(files={split: f"{split}.jsonl" for split in rows})


def sizes(of: Prepared) -> dict[str, int]:
    return {split: len(rows) for split, rows in of.splits.items()}
