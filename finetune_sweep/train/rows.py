"""Rows in the task's own words: the columns that it has, and what is right for each, taken from what was read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING

from finetune_sweep.errors import UserError, nearest
from finetune_sweep.tasks.contract import Box, Column
from finetune_sweep.train.cells import Cell, Place, cell, check_boxes
from finetune_sweep.train.coco import LABELS
from finetune_sweep.train.source import FRAME, ORIGIN, picture_column, undecoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

    from finetune_sweep.spec import Data
    from finetune_sweep.tasks.contract import Kind, Task
    from finetune_sweep.train.source import Part, SplitName


@dataclass(frozen=True)
class Rows:
    """Rows with the task's names for their columns.

    Args:
        where: The file or the data set.
        columns: By name, the cells, row by row.
        target: The column that the model has to say.
        origins: Where each row stands in its file, such as `row 3`.
        groups: What must not be spread over two splits, row by row.
    """

    where: str
    columns: Mapping[str, Sequence[Cell]]
    target: Column
    origins: Sequence[str]
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def targets(self) -> Sequence[Cell]:
        """What the model has to say, row by row."""
        return self.columns[self.target.name]

    @property
    def inputs(self) -> list[tuple[Cell, ...]]:
        """What the model is given, row by row: all else, and the target as well where it goes on with a text."""
        names = [name for name in self.columns if name != self.target.name or self.target.given]
        return list(zip(*(self.columns[name] for name in names), strict=True))

    @property
    def classes(self) -> list[tuple[str, ...]]:
        """The classes among the targets, row by row; a text and a number are of none."""
        return [_classes(self.target, value) for value in self.targets]

    def take(self, rows: Sequence[int]) -> Rows:
        """Returns some of the rows, in the order given."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        origins = [self.origins[row] for row in rows]
        groups = self.groups and [self.groups[row] for row in rows]
        return replace(self, columns=columns, origins=origins, groups=groups)


def _classes(target: Column, value: Cell) -> tuple[str, ...]:
    if target.kind == "class":
        return (str(value),)
    if target.kind in {"text", "number"} or not isinstance(value, tuple):
        return ()
    counting = (entry for entry in value if not (isinstance(entry, Box) and entry.crowd))
    return tuple(dict.fromkeys(entry.label if isinstance(entry, Box) else entry for entry in counting))


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
        split: Which it is; targets may be missing in `test` alone.
        data: The settings, of which `columns` and `split.group_by` count.
        task: What says which columns there are.
        scratch: A folder that may be removed afterwards.

    Raises:
        UserError: It cannot be read, has no rows, lacks a column, or holds something that is not of its kind.
    """
    table = part.read(scratch)
    if not len(table):
        raise UserError(f"{part.where}: has no rows")
    origins = _origins(table)
    target = next(column for column in task.columns if column.target)
    columns: dict[str, list[Cell]] = {}
    for column in task.columns:
        name = str(data.columns.get(column.name, column.name))
        if column.kind == "image":
            name = picture_column(table, name)
        if name in table.column_names:
            columns[column.name] = _column(table, name, column, part, origins)
        elif column == target and split == "test":
            columns[target.name] = ["" if target.kind in {"text", "class"} else None] * len(table)
        elif column.required:
            raise _no_column(part.where, table, name, f"say `columns: {{{column.name}: NAME}}`")
    _check_tags(part, origins, task, columns)
    _check_boxes(part, table, task, columns)
    group_by = data.split.group_by
    if group_by is None:
        return Rows(part.where, columns, target, origins)
    if group_by not in table.column_names:
        raise _no_column(part.where, table, group_by, "split.group_by names it")
    return Rows(part.where, columns, target, origins, groups=[str(value) for value in table[group_by]])


def _origins(table: Dataset) -> list[str]:
    if ORIGIN in table.column_names:
        return list(table[ORIGIN])
    return [f"row {row}" for row in range(1, len(table) + 1)]


def _column(table: Dataset, name: str, column: Column, part: Part, origins: Sequence[str]) -> list[Cell]:
    names = _class_names(table, name)
    if column.kind == "image":
        table = undecoded(table, name)
    return [
        cell(column.kind, value, Place(part.where, origin, part.folder, names))
        for value, origin in zip(table[name], origins, strict=True)
    ]


def _of_kind(task: Task, columns: Mapping[str, Sequence[Cell]], kind: Kind) -> Sequence[Cell]:
    """The column of a kind; empty where the task or the file has none."""
    return next((columns[c.name] for c in task.columns if c.kind == kind and c.name in columns), ())


def _check_tags(
    part: Part, origins: Sequence[str], task: Task, columns: Mapping[str, Sequence[Cell]]
) -> None:
    """Checks that there is a tag for each token."""
    found, said = _of_kind(task, columns, "tokens"), _of_kind(task, columns, "tags")
    for tokens, tags, origin in zip(found, said, origins, strict=False):
        if isinstance(tokens, tuple) and isinstance(tags, tuple) and len(tokens) != len(tags):
            raise Place(part.where, origin).error(
                f"has {len(tokens)} tokens and {len(tags)} tags: {' '.join(map(str, tokens))[:60]}"
            )


def _check_boxes(part: Part, table: Dataset, task: Task, columns: Mapping[str, Sequence[Cell]]) -> None:
    """Checks that boxes lie within their picture."""
    pictures, found = _of_kind(task, columns, "image"), _of_kind(task, columns, "boxes")
    frames = table[FRAME] if FRAME in table.column_names else repeat(None)
    for picture, boxes, frame, origin in zip(pictures, found, frames, _origins(table), strict=False):
        check_boxes(boxes, picture, Place(part.where, origin), frame)


def _no_column(where: str, table: Dataset, name: str, remedy: str) -> UserError:
    has = [column for column in table.column_names if not column.startswith("\n")]
    return UserError(
        f"{where}: has no column {name!r}, it has {', '.join(has)}{nearest(name, has)}; {remedy}"
    )


def _of_list(feature: object) -> object:
    """What the entries of a list are; anything else as it is."""
    return getattr(feature, "feature", feature)


def _class_names(table: Dataset, column: str) -> dict[object, str]:
    """Returns what integers stand for in a column that carries class names: of cells, of lists, or of boxes.

    -1 there is a missing label.
    """
    feature = _of_list(table.features[column])
    if isinstance(feature, dict):
        feature = _of_list(next((feature[name] for name in LABELS if name in feature), None))
    names = getattr(feature, "names", None)
    return {-1: "", **dict(enumerate(names))} if names else {}
