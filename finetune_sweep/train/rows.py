"""Rows in the task's own words: the columns that it has, and what is right for each, taken from what was read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune_sweep.errors import UserError, nearest
from finetune_sweep.tasks.contract import Box, Column
from finetune_sweep.train.cells import Cell, Place, cell, check_boxes
from finetune_sweep.train.source import ORIGIN, picture_column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

    from finetune_sweep.spec import Data
    from finetune_sweep.tasks.contract import Task
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
    return tuple(dict.fromkeys(entry.label if isinstance(entry, Box) else entry for entry in value))


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
    _check_pairs(part, origins, task, columns)
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
        table = _undecoded(table, name)
    return [
        cell(column.kind, value, Place(part.where, origin, part.folder, names))
        for value, origin in zip(table[name], origins, strict=True)
    ]


def _undecoded(table: Dataset, name: str) -> Dataset:
    """Leaves pictures as the bytes of their files, where `datasets` would decode them."""
    from datasets import Image

    is_picture = isinstance(table.features[name], Image)
    return table.cast_column(name, Image(decode=False)) if is_picture else table


def _check_pairs(
    part: Part, origins: Sequence[str], task: Task, columns: Mapping[str, Sequence[Cell]]
) -> None:
    """Checks cells that have to go together: a tag for each token, boxes within their picture."""
    by_kind = {column.kind: columns[column.name] for column in task.columns if column.name in columns}
    nothing: Sequence[Cell] = ()
    for tokens, tags, origin in zip(
        by_kind.get("tokens", nothing), by_kind.get("tags", nothing), origins, strict=False
    ):
        if isinstance(tokens, tuple) and isinstance(tags, tuple) and len(tokens) != len(tags):
            raise Place(part.where, origin).error(
                f"has {len(tokens)} tokens and {len(tags)} tags: {' '.join(map(str, tokens))[:60]}"
            )
    for picture, boxes, origin in zip(
        by_kind.get("image", nothing), by_kind.get("boxes", nothing), origins, strict=False
    ):
        check_boxes(boxes, picture, Place(part.where, origin))


def _no_column(where: str, table: Dataset, name: str, remedy: str) -> UserError:
    has = [column for column in table.column_names if column != ORIGIN]
    return UserError(
        f"{where}: has no column {name!r}, it has {', '.join(has)}{nearest(name, has)}; {remedy}"
    )


def _class_names(table: Dataset, column: str) -> dict[object, str]:
    """Returns what integers stand for in a column that carries class names, of cells or of lists.

    -1 there is a missing label.
    """
    feature = table.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return {-1: "", **dict(enumerate(names))} if names else {}
