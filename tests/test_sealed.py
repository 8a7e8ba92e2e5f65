"""The seal of the test rows: what was begun counts, whichever sweep of the storage began it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_sweep.events import TestRead
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.lock import SweepLock
from finetune_sweep.sealed import Asked, read_test

ROWS = "sha256 of the test rows"


@contextlib.contextmanager
def journal_of(storage: Path, sweep: str) -> Iterator[Journal]:
    layout = Layout(storage, sweep)
    with SweepLock(layout) as lock, contextlib.closing(Journal(layout, lock.owner)) as journal:
        yield journal


def looked() -> dict[str, float]:
    return {"accuracy": 0.75}


def never() -> dict[str, float]:
    raise AssertionError("the test rows were read")


def cut_off() -> dict[str, float]:
    raise KeyboardInterrupt


def test_a_reading_that_was_begun_twice_is_not_told_as_one(tmp_path: Path) -> None:
    with journal_of(tmp_path, "first") as journal:
        asked = Asked("aaaa", 2, ROWS)
        with pytest.raises(KeyboardInterrupt):
            read_test(journal, asked, cut_off, again=False)

        test = read_test(journal, asked, looked, again=False)
        assert test.metrics == looked()
        assert "begun 2 times" in test.note
        assert read_test(journal, asked, never, again=False) == test


def test_the_seal_is_that_of_the_rows_and_not_of_the_sweep(tmp_path: Path) -> None:
    with journal_of(tmp_path, "first") as journal:
        read_test(journal, Asked("aaaa", 2, ROWS), looked, again=False)
    with journal_of(tmp_path, "second") as journal:
        same = read_test(journal, Asked("aaaa", 2, ROWS), never, again=False)
        assert same.metrics == looked()
        assert same.note.endswith("That was in the sweep first.")

        other = Asked("bbbb", 1, ROWS)
        refused = read_test(journal, other, never, again=False)
        assert refused.metrics == {}
        assert "earlier champion (aaaa at epoch 2 in the sweep first)" in refused.note
        assert read_test(journal, Asked("bbbb", 1, "of other rows"), looked, again=False).metrics == looked()

        read_test(journal, other, looked, again=True)
        assert [e.event.key for e in journal.entries if isinstance(e.event, TestRead)] == ["bbbb", "bbbb"]
