"""The test split: read once for a champion, and for the baseline beside it; the journal knows of the intention first.

Nothing else reads it. A test set that is looked at for every new champion becomes a second validation set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_sweep.card import FinalTest
from finetune_sweep.events import Metrics, TestIntended, TestRead
from finetune_sweep.journal import Journal


@dataclass(frozen=True)
class Asked:
    """What is to be tested: a trial's weights after an epoch, on the test split with this fingerprint."""

    key: str
    epoch: int
    fingerprint: str


def read_test(journal: Journal, asked: Asked, evaluate: Callable[[], Metrics], *, again: bool) -> FinalTest:
    """Reads the test split for a champion, unless it was read before.

    Args:
        journal: Told of the intention before, and of the result after.
        asked: The champion. Without a fingerprint there is no test split.
        evaluate: Reads the split.
        again: Whether it is read although it was read for an earlier champion.
    """
    if not asked.fingerprint:
        note = "There is no test split: nothing here was measured on rows that no choice has seen."
        return FinalTest("", {}, note)
    intended = [entry.event for entry in journal.entries if isinstance(entry.event, TestIntended)]
    of_champions = {
        (event.key, event.epoch)
        for event in intended
        if event.fingerprint == asked.fingerprint and not event.is_baseline
    }
    earlier = [f"{other} at epoch {at}" for other, at in sorted(of_champions - {(asked.key, asked.epoch)})]
    note = "Read once for this model, after it had been chosen."
    if earlier:
        note += f" It was also read for {', '.join(earlier)}, so it is no longer untouched."
    if (known := _known(journal, asked)) is not None:
        return FinalTest(asked.fingerprint, known, note)
    if earlier and not again:
        note = (
            f"Not read for this model: it was read for an earlier champion ({', '.join(earlier)}), and"
            " read for every new one it becomes a second validation split. `--again` reads it anyway."
        )
        return FinalTest(asked.fingerprint, {}, note)
    return FinalTest(asked.fingerprint, _read(journal, asked, evaluate, is_baseline=False), note)


def read_baseline(journal: Journal, asked: Asked, evaluate: Callable[[], Metrics]) -> Metrics:
    """Reads the test split for the baseline of a champion for which it was read; once, like that."""
    known = _known(journal, asked)
    return known if known is not None else _read(journal, asked, evaluate, is_baseline=True)


def _known(journal: Journal, asked: Asked) -> Metrics | None:
    for read in journal.record.test_reads:
        if (read.key, read.epoch, read.fingerprint) == (asked.key, asked.epoch, asked.fingerprint):
            return read.metrics
    return None


def _read(journal: Journal, asked: Asked, evaluate: Callable[[], Metrics], *, is_baseline: bool) -> Metrics:
    journal.append(TestIntended(asked.key, asked.epoch, asked.fingerprint, is_baseline))
    metrics = evaluate()
    journal.append(TestRead(asked.key, asked.epoch, asked.fingerprint, metrics, is_baseline))
    return metrics
