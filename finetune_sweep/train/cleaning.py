"""From the rows of a source to the splits of a sweep: cleaned, cut where one is missing, and limited.

The steps, in order: drop a test split with hidden labels, clean each split, cut those that are missing, drop
leaked training rows, limit.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from finetune_sweep.errors import Problem, UserError, nearest
from finetune_sweep.tasks.contract import Box
from finetune_sweep.train.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from finetune_sweep.spec import Clean, Data, Limit, Split
    from finetune_sweep.tasks.contract import Task
    from finetune_sweep.train.cells import Cell
    from finetune_sweep.train.source import SplitName

Item = TypeVar("Item", int, str)


def make_splits(
    rows: Mapping[SplitName, Rows], data: Data, task: Task
) -> tuple[dict[SplitName, Dataset], list[str], list[str]]:
    """Takes the rows of the source to the splits.

    Returns:
        The splits, the report of cleaning, and the notes on the splits.

    Raises:
        UserError: A label is missing, a class is in validation or test alone, or too little is left.
    """
    from datasets import Dataset

    report: list[str] = []
    rows, notes = _without_hidden_test(rows)
    rows = {split: _clean(split, part, data.clean, task, report) for split, part in rows.items()}
    notes += _cut_missing(rows, data.split)
    if data.clean.drop_leaked:
        rows["train"] = _without_leaked(rows, report)
    if data.limit is not None:
        rows = {split: _limited(split, part, data.limit, report) for split, part in rows.items()}
    for split, part in rows.items():
        if len(part) < 2:
            raise UserError(f"{part.where}: {split} needs at least 2 rows after cleaning, has {len(part)}")
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    splits = {split: Dataset.from_dict(_stored(rows[split])) for split in order if split in rows}
    _check_classes(rows, task.classes(splits["train"]))
    return splits, report, notes


def _without_hidden_test(rows: Mapping[SplitName, Rows]) -> tuple[dict[SplitName, Rows], list[str]]:
    """Drops a test split without labels, or with -1 for all where that is no class of the training rows."""
    missing: set[Cell] = {"", "-1", -1.0, None}
    hidden = missing - set(rows["train"].targets)
    test = rows.get("test")
    if test is None or not set(test.targets) <= hidden:
        return dict(rows), []
    seen: dict[SplitName, Rows] = {split: part for split, part in rows.items() if split != "test"}
    return seen, [f"test: the labels of the source's {len(test)} rows are hidden, they are not used"]


def _clean(split: SplitName, rows: Rows, clean: Clean, task: Task, report: list[str]) -> Rows:
    if clean.strip:
        columns = {
            name: [value.strip() if isinstance(value, str) else value for value in values]
            for name, values in rows.columns.items()
        }
        rows = replace(rows, columns=columns)
    empty = _without_text(rows, task) if clean.drop_empty else set()
    kept = [row for row in range(len(rows)) if row not in empty]
    _note(report, split, len(rows) - len(kept), "row", "without text dropped")
    unlabelled = [row for row in kept if rows.targets[row] in {"", None}]
    if unlabelled:
        more = f", nor have {len(unlabelled) - 1} others" if unlabelled[1:] else ""
        raise UserError(
            f"{rows.where}: {rows.origins[unlabelled[0]]} of {split} has no {rows.target.name}{more}"
        )
    rows = rows.take(kept)
    if clean.drop_duplicates:
        first = {
            example: row
            for row, example in reversed(list(enumerate(zip(rows.inputs, rows.targets, strict=True))))
        }
        _note(report, split, len(rows) - len(first), "exact duplicate", "dropped")
        rows = rows.take(sorted(first.values()))
    of_text = Counter(texts for texts, _ in set(zip(rows.inputs, rows.targets, strict=True)))
    conflicting = sum(1 for count in of_text.values() if count > 1)
    _note(report, split, conflicting, "text", "with more than one label kept")
    return rows


def _without_text(rows: Rows, task: Task) -> set[int]:
    """The rows that lack an input which they cannot do without, or all inputs."""
    needed = [column.name for column in task.columns if column.required and not column.target]
    return {
        row
        for row, inputs in enumerate(rows.inputs)
        if any(_is_empty(rows.columns[name][row]) for name in needed) or all(map(_is_empty, inputs))
    }


def _is_empty(value: Cell) -> bool:
    return not value.strip() if isinstance(value, str) else value in {None, (), b""}


def _stored(rows: Rows) -> dict[str, list[object]]:
    """The columns, as a table can hold them."""
    return {name: [_plain(value) for value in values] for name, values in rows.columns.items()}


def _plain(value: Cell) -> object:
    if isinstance(value, tuple):
        return [entry._asdict() if isinstance(entry, Box) else entry for entry in value]
    return value


def _note(report: list[str], split: SplitName, count: int, what: str, done: str) -> None:
    if count:
        report.append(f"{split}: {count:,} {what}{'s' if count > 1 else ''} {done}")


def _cut_missing(rows: dict[SplitName, Rows], split: Split) -> list[str]:
    """Cuts test and validation from the training rows where the source has none; changes `rows`."""
    notes: list[str] = []
    total = len(rows["train"])
    fractions: dict[SplitName, float] = {"test": split.test, "validation": split.validation}
    for name, fraction in fractions.items():
        if name in rows or not fraction:
            continue
        train, count = rows["train"], round(total * fraction)
        if count < 2:
            raise UserError(
                f"{train.where}: split.{name} {fraction} of {total} rows is {count}, 2 are needed: raise"
                f" it, give a file of this split{', or set it to 0' if name == 'test' else ''}"
            )
        chosen = _draw(train, count, split.seed, name)
        rows[name] = train.take(chosen)
        rows["train"] = train.take(sorted(set(range(len(train))) - set(chosen)))
        way = _way(rows[name]) if split.group_by is None else f"whole groups of {split.group_by!r}"
        notes.append(f"{name}: {len(chosen):,} of {total:,} training rows, {way}, seed {split.seed}")
    if "test" not in rows:
        notes.append("test: there is none")
    if split.group_by is not None and not any("groups" in note for note in notes):
        notes.append(f"split.group_by {split.group_by!r} has no effect: the source has its own splits")
    return notes


def _way(rows: Rows) -> str:
    return "stratified by label" if rows.target.kind == "class" else "drawn at random"


def _draw(rows: Rows, count: int, seed: int, purpose: str) -> list[int]:
    """Draws rows to cut from training: a row of each class stays there; or whole groups, if told."""
    if rows.groups is None:
        return _drawn(rows, count, f"{seed}/{purpose}", spare=1)
    sizes = Counter(rows.groups)
    chosen: set[str] = set()
    taken = 0
    for group in _shuffled(sorted(sizes), f"{seed}/{purpose}"):
        if abs(taken + sizes[group] - count) < abs(taken - count):
            chosen.add(group)
            taken += sizes[group]
    if not chosen or len(chosen) == len(sizes):
        raise UserError(
            f"{rows.where}: {len(sizes)} groups of {len(rows)} rows cannot be split into {count} rows for"
            f" {purpose} and the rest: group by another column, or give a file"
        )
    return [row for row, group in enumerate(rows.groups) if group in chosen]


def _drawn(rows: Rows, count: int, key: str, spare: int) -> list[int]:
    """Draws rows, with the classes in their proportions where each row has one.

    Else they come at random; with `spare` 1, a row that is the last one with one of its classes is not drawn,
    and with 0 those that bring a new class come first.

    Returns:
        The rows in ascending order.
    """
    if rows.target.kind == "class":
        return _stratified([str(label) for label in rows.targets], count, key, spare)
    order, classes = _shuffled(range(len(rows)), key), rows.classes
    if not spare:
        seen: set[str] = set()
        fresh: set[int] = set()
        for row in order:
            if not seen.issuperset(classes[row]):
                fresh.add(row)
            seen.update(classes[row])
        return sorted(
            [*(row for row in order if row in fresh), *(row for row in order if row not in fresh)][:count]
        )
    left = Counter(name for of in classes for name in of)
    chosen: list[int] = []
    for row in order:
        of = classes[row]
        if len(chosen) < count and all(left[name] > 1 for name in of):
            chosen.append(row)
            left.subtract(of)
    return sorted(chosen)


def _stratified(labels: Sequence[str], count: int, key: str, spare: int) -> list[int]:
    """Draws `count` rows with the classes in their proportions.

    Args:
        labels: The classes, row by row.
        count: How many rows; fewer come where `spare` forbids more.
        key: What the draw depends on.
        spare: Rows of each class that must not be drawn.

    Returns:
        The rows in ascending order, at least one a class where count and spare allow it.
    """
    members: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        members[label].append(row)
    most = {label: max(0, len(rows) - spare) for label, rows in members.items()}
    shares = {label: count * len(rows) / len(labels) for label, rows in members.items()}
    least = 1 if count >= len(members) else 0
    quotas = {label: min(most[label], max(least, math.floor(share))) for label, share in shares.items()}
    while (missing := count - sum(quotas.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [
            name for name, quota in quotas.items() if (quota < most[name] if missing > 0 else quota > least)
        ]
        if not movable:
            break
        quotas[max(movable, key=lambda name: step * (shares[name] - quotas[name]))] += step
    return sorted(row for label, rows in members.items() for row in _shuffled(rows, key)[: quotas[label]])


def _shuffled(items: Sequence[Item], key: str) -> list[Item]:
    """Orders items by a hash: the same in every version of Python and numpy."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}/{item}".encode()).digest())


def _without_leaked(rows: Mapping[SplitName, Rows], report: list[str]) -> Rows:
    train = rows["train"]
    held_out = {texts for split, part in rows.items() if split != "train" for texts in part.inputs}
    kept = [row for row, texts in enumerate(train.inputs) if texts not in held_out]
    _note(report, "train", len(train) - len(kept), "row", "dropped, the text stands in validation or test")
    if "test" in rows:
        both = set(rows["validation"].inputs) & set(rows["test"].inputs)
        _note(report, "validation", len(both), "text", "kept that test has too")
    return train.take(kept)


def _limited(split: SplitName, rows: Rows, limit: Limit, report: list[str]) -> Rows:
    most: int | None = getattr(limit, split)
    if most is None or most >= len(rows):
        return rows
    report.append(f"{split}: limited to {most:,} of {len(rows):,} rows, seed {limit.seed}")
    return rows.take(_drawn(rows, most, f"{limit.seed}/limit {split}", spare=0))


def _check_classes(rows: Mapping[SplitName, Rows], classes: Sequence[str]) -> None:
    known, problems = set(classes), []
    for split, part in rows.items():
        places: dict[str, list[str]] = {}
        for origin, of in zip(part.origins, part.classes, strict=True):
            for name in of:
                if name not in known:
                    places.setdefault(name, []).append(origin)
        problems += [
            Problem(
                f"{part.where}: {origins[0]}: class {name!r} is in {split} ({len(origins)} rows) and not in train,"
                f" which has {', '.join(classes[:20])}{nearest(name, classes)}"
            )
            for name, origins in sorted(places.items())
        ]
    if problems:
        raise UserError(problems)
