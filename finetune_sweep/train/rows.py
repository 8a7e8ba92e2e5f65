"""Rows as texts: the columns that the task has and the label of each, taken from what was read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune_sweep.errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

    from finetune_sweep.spec import Data
    from finetune_sweep.tasks.contract import Task
    from finetune_sweep.train.source import Part, SplitName


@dataclass(frozen=True)
class Rows:
    """Rows as texts, with the task's names for their columns; "" stands for what is missing."""

    where: str
    columns: Mapping[str, Sequence[str]]
    target: str
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> Sequence[str]:
        """The labels, row by row."""
        return self.columns[self.target]

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """All but the labels, row by row."""
        return list(zip(*(self.columns[name] for name in self.columns if name != self.target), strict=True))

    def take(self, rows: Sequence[int]) -> Rows:
        """Returns some of the rows, in the order given."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, groups=self.groups and [self.groups[row] for row in rows])


def check_columns(data: Data, task: Task) -> None:
    """Checks the names on the left of `columns`.

    Raises:
        UserError: The task has no such column.
    """
    known = [column.name for column in task.columns]
    for name in data.columns:
        if name not in known:
            raise UserError(
                f"data.columns: {name!r} is no column of {task.name}, which has {', '.join(known)}"
                f"{nearest(name, known)}"
            )


def read_rows(part: Part, split: SplitName, data: Data, task: Task, scratch: Path) -> Rows:
    """Reads a split, and takes the task's columns of it.

    Args:
        part: Where it lies.
        split: Which it is; labels may be missing in `test` alone.
        data: The settings, of which `columns` and `split.group_by` count.
        task: What says which columns there are.
        scratch: A folder that may be removed afterwards.

    Raises:
        UserError: It cannot be read, has no rows, lacks a column, or holds something that is no text or class.
    """
    table = part.read(scratch)
    if not len(table):
        raise UserError(f"{part.where}: has no rows")
    target = next(column.name for column in task.columns if column.kind == "class")
    columns: dict[str, list[str]] = {}
    for column in task.columns:
        name = data.columns.get(column.name, column.name)
        if name in table.column_names:
            as_text = _label_text if column.name == target else _input_text
            columns[column.name] = _column(table, name, part.where, as_text)
        elif column.name == target and split == "test":
            columns[target] = [""] * len(table)
        elif column.required:
            raise _no_column(part.where, table, name, f"say `columns: {{{column.name}: NAME}}`")
    group_by = data.split.group_by
    if group_by is None:
        return Rows(part.where, columns, target)
    if group_by not in table.column_names:
        raise _no_column(part.where, table, group_by, "split.group_by names it")
    return Rows(part.where, columns, target, groups=[str(value) for value in table[group_by]])


def _column(table: Dataset, name: str, where: str, as_text: Callable[[object, str, int], str]) -> list[str]:
    names = _class_names(table, name)
    return [
        as_text(names.get(value, value) if names else value, where, row)
        for row, value in enumerate(table[name], 1)
    ]


def _no_column(where: str, table: Dataset, name: str, remedy: str) -> UserError:
    has = list(table.column_names)
    return UserError(
        f"{where}: has no column {name!r}, it has {', '.join(has)}{nearest(name, has)}; {remedy}"
    )


def _class_names(table: Dataset, column: str) -> dict[object, str]:
    """Returns what integers stand for in a column that carries class names; -1 there is a missing label."""
    names = getattr(table.features[column], "names", None)
    return {-1: "", **dict(enumerate(names))} if names else {}


def _input_text(value: object, where: str, row: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(
        f"{where}: row {row}: the text must be text, got {type(value).__name__} {str(value)[:60]}"
    )


def _label_text(value: object, where: str, row: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integers beside missing values arrive as floats
    if isinstance(value, float) and not math.isnan(value):
        raise UserError(f"{where}: row {row}: a label must be a class, got the number {value}")
    if isinstance(value, list | dict):
        raise UserError(f"{where}: row {row}: a label must be one class, got {str(value)[:60]}")
    return _input_text(value, where, row)
