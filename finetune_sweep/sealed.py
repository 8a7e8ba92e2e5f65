"""The test split: read once for a champion, and for the baseline beside it; the journal knows of the intention first.

Nothing else reads it. A test set that is looked at for every new champion becomes a second validation set; what
counts is the split and not the sweep, so readings by other sweeps of the storage count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finetune_sweep import siblings
from finetune_sweep.card import FinalTest
from finetune_sweep.events import Event, Metrics, TestIntended, TestRead
from finetune_sweep.journal import Journal


@dataclass(frozen=True)
class Asked:
    """What is to be tested: a trial's weights after an epoch, on the test split with this fingerprint."""

    key: str
    epoch: int
    fingerprint: str


def read_test(journal: Journal, asked: Asked, evaluate: Callable[[], Metrics], *, again: bool) -> FinalTest:
    """Reads the test split for a champion, unless it was read before, here or by another sweep of the storage.

    Args:
        journal: Told of the intention before, and of the result after.
        asked: The champion. Without a fingerprint there is no test split.
        evaluate: Reads the split.
        again: Whether it is read although it was read for an earlier champion.
    """
    if not asked.fingerprint:
        note = "There is no test split: nothing here was measured on rows that no choice has seen."
        return FinalTest("", {}, note)
    looks = _looks(journal, asked.fingerprint)
    own = [look for look in looks if (look.key, look.epoch) == (asked.key, asked.epoch)]
    earlier = list(dict.fromkeys(str(look) for look in looks if look not in own and not look.is_baseline))
    known = _known(journal, asked)
    if known is None and earlier and not again:
        note = (
            f"Not read for this model: it was read for an earlier champion ({', '.join(earlier)}), and"
            " read for every new one it becomes a second validation split. `--again` reads it anyway."
        )
        return FinalTest(asked.fingerprint, {}, note)
    note = _note(len(own) + (known is None), sorted({look.sweep for look in own if look.sweep}), earlier)
    if known is not None:
        return FinalTest(asked.fingerprint, known, note)
    return FinalTest(asked.fingerprint, _read(journal, asked, evaluate, is_baseline=False), note)


def _note(times: int, sweeps: Sequence[str], earlier: Sequence[str]) -> str:
    """What the card says of the readings for a model, by this sweep and by others, and of those for other models."""
    note = "Read once for this model, after it had been chosen."
    if times > 1:
        note = f"Read for this model after it had been chosen; begun {times} times, as it was cut off before its end."
    if sweeps:
        note += f" That was in the sweep {', '.join(sweeps)}."
    if earlier:
        note += f" It was also read for {', '.join(earlier)}, so it is no longer untouched."
    return note


def read_baseline(journal: Journal, asked: Asked, evaluate: Callable[[], Metrics]) -> Metrics:
    """Reads the test split for the baseline of a champion for which it was read; once, like that."""
    known = _known(journal, asked)
    return known if known is not None else _read(journal, asked, evaluate, is_baseline=True)


@dataclass(frozen=True)
class _Look:
    """A reading that was begun: for which weights, by which other sweep, and what it gave."""

    key: str
    epoch: int
    is_baseline: bool
    sweep: str = ""

    def __str__(self) -> str:
        return f"{self.key} at epoch {self.epoch}{f' in the sweep {self.sweep}' if self.sweep else ''}"


def _looks(journal: Journal, fingerprint: str) -> list[_Look]:
    """All readings of a test split that were begun, by this sweep and by the others of its storage, in order."""
    return [
        _Look(event.key, event.epoch, event.is_baseline, sweep)
        for sweep, event in _events(journal)
        if isinstance(event, TestIntended) and event.fingerprint == fingerprint
    ]


def _known(journal: Journal, asked: Asked) -> Metrics | None:
    for _, event in _events(journal):
        if isinstance(event, TestRead):
            found = (event.key, event.epoch, event.fingerprint)
            if found == (asked.key, asked.epoch, asked.fingerprint):
                return event.metrics
    return None


def _events(journal: Journal) -> Iterator[tuple[str, Event]]:
    """What this sweep and then the others of its storage have journalled, with the name of the other sweep."""
    yield from (("", entry.event) for entry in journal.entries)
    for sweep, entries in siblings.journals(journal.layout):
        yield from ((sweep, entry.event) for entry in entries)


def _read(journal: Journal, asked: Asked, evaluate: Callable[[], Metrics], *, is_baseline: bool) -> Metrics:
    journal.append(TestIntended(asked.key, asked.epoch, asked.fingerprint, is_baseline))
    metrics = evaluate()
    journal.append(TestRead(asked.key, asked.epoch, asked.fingerprint, metrics, is_baseline))
    return metrics
