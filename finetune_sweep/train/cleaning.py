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
from finetune_sweep.train.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from finetune_sweep.spec import Clean, Data, Limit, Split
    from finetune_sweep.tasks.contract import Task
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
    rows = {split: _clean(split, part, data.clean, report) for split, part in rows.items()}
    notes += _cut_missing(rows, data.split)
    if data.clean.drop_leaked:
        rows["train"] = _without_leaked(rows, report)
    if data.limit is not None:
        rows = {split: _limited(split, part, data.limit, report) for split, part in rows.items()}
    for split, part in rows.items():
        if len(part) < 2:
            raise UserError(f"{part.where}: {split} needs at least 2 rows after cleaning, has {len(part)}")
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    splits = {split: Dataset.from_dict(dict(rows[split].columns)) for split in order if split in rows}
    _check_classes(rows, task.classes(splits["train"]))
    return splits, report, notes


def _without_hidden_test(rows: Mapping[SplitName, Rows]) -> tuple[dict[SplitName, Rows], list[str]]:
    """Drops a test split without labels, or with -1 for all where that is no class of the training rows."""
    hidden = {"", "-1"} - set(rows["train"].labels)
    test = rows.get("test")
    if test is None or not set(test.labels) <= hidden:
        return dict(rows), []
    seen: dict[SplitName, Rows] = {split: part for split, part in rows.items() if split != "test"}
    return seen, [f"test: the labels of the source's {len(test)} rows are hidden, they are not used"]


def _clean(split: SplitName, rows: Rows, clean: Clean, report: list[str]) -> Rows:
    if clean.strip:
        columns = {name: [value.strip() for value in values] for name, values in rows.columns.items()}
        rows = replace(rows, columns=columns)
    kept = [
        row
        for row, texts in enumerate(rows.inputs)
        if not clean.drop_empty or all(text and not text.isspace() for text in texts)
    ]
    _note(report, split, len(rows) - len(kept), "row", "without text dropped")
    unlabelled = [row for row in kept if not rows.labels[row]]
    if unlabelled:
        more = f", nor have {len(unlabelled) - 1} others" if unlabelled[1:] else ""
        raise UserError(f"{rows.where}: row {unlabelled[0] + 1} of {split} has no label{more}")
    rows = rows.take(kept)
    if clean.drop_duplicates:
        first = {
            example: row
            for row, example in reversed(list(enumerate(zip(rows.inputs, rows.labels, strict=True))))
        }
        _note(report, split, len(rows) - len(first), "exact duplicate", "dropped")
        rows = rows.take(sorted(first.values()))
    of_text = Counter(texts for texts, _ in set(zip(rows.inputs, rows.labels, strict=True)))
    conflicting = sum(1 for count in of_text.values() if count > 1)
    _note(report, split, conflicting, "text", "with more than one label kept")
    return rows


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
        way = "stratified by label" if split.group_by is None else f"whole groups of {split.group_by!r}"
        notes.append(f"{name}: {len(chosen):,} of {total:,} training rows, {way}, seed {split.seed}")
    if "test" not in rows:
        notes.append("test: there is none")
    if split.group_by is not None and not any("groups" in note for note in notes):
        notes.append(f"split.group_by {split.group_by!r} has no effect: the source has its own splits")
    return notes


def _draw(rows: Rows, count: int, seed: int, purpose: str) -> list[int]:
    """Draws rows to cut from training: a row of each class stays there; or whole groups, if told."""
    if rows.groups is None:
        return _stratified(rows.labels, count, f"{seed}/{purpose}", spare=1)
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
    return rows.take(_stratified(rows.labels, most, f"{limit.seed}/limit {split}", spare=0))


def _check_classes(rows: Mapping[SplitName, Rows], classes: Sequence[str]) -> None:
    problems = [
        Problem(
            f"{part.where}: class {label!r} is in {split} ({part.labels.count(label)} rows) and not in train,"
            f" which has {', '.join(classes[:20])}{nearest(label, classes)}"
        )
        for split, part in rows.items()
        for label in sorted(set(part.labels) - set(classes))
    ]
    if problems:
        raise UserError(problems)
