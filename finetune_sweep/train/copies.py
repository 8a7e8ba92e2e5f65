"""Changed copies of the training rows, beside the rows themselves.

A copy depends on the seed, its number, its row and the settings, and on nothing else that is drawn: so the rows of a
trial are the same in every process, and those of `copies: 1` are the first ones of `copies: 2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from finetune_sweep.train.augment import NONE, Similar, change, core, draws, split_words

if TYPE_CHECKING:
    from finetune_sweep.settings import Augment

Columns: TypeAlias = Mapping[str, Sequence[object]]
"""Rows, by the names of their columns."""
Inputs: TypeAlias = tuple[str, ...]
"""The texts of a row that are changed, normalised to be compared."""

FORMAT: Final = 1
"""Of the copies; raised when an augmenter does something else."""
TRIES: Final = 10
"""A copy that must not be is drawn again so often, then left out."""


def normalised(texts: Sequence[object]) -> Inputs:
    """The texts of a row as they are compared: without white space around them, and one space between words."""
    return tuple(" ".join(str(text).split()) for text in texts)


def inputs_of(columns: Columns, names: Sequence[str]) -> list[Inputs]:
    """The compared texts, row by row."""
    return [normalised(texts) for texts in zip(*(columns[name] for name in names), strict=True)]


def words_of(columns: Columns, names: Sequence[str]) -> set[str]:
    """The words in some columns, without the punctuation around them."""
    texts = (str(text) for name in names for text in columns[name])
    return {core(word) for text in texts for word in split_words(text)}


def with_copies(
    columns: Columns,
    names: Sequence[str],
    settings: Augment,
    seed: int,
    held_out: set[Inputs],
    find_similar: Callable[[set[str]], Similar],
) -> Columns:
    """The rows, then the first copy of each, then the second, and so on.

    A copy that would be its own row unchanged, or a row of `held_out`, is drawn again, and in the end left out: there
    may be fewer.

    Args:
        columns: The training rows.
        names: The columns whose texts are changed; all others are copied, labels among them.
        settings: Rates and number of copies.
        seed: The trial's.
        held_out: The texts of validation and test rows.
        find_similar: Gives the similar words of some; asked only if a rate needs them.
    """
    needs = settings.replacement or settings.insertion
    similar = find_similar(words_of(columns, names)) if needs else NONE
    count = len(columns[names[0]])
    added: dict[str, list[object]] = {name: list(values) for name, values in columns.items()}
    for copy in range(1, settings.copies + 1):
        for row in range(count):
            original = [str(columns[name][row]) for name in names]
            texts = _copy(original, settings, (seed, copy, row), held_out, similar)
            if texts is None:
                continue
            for name, values in added.items():
                values.append(texts[names.index(name)] if name in names else columns[name][row])
    return added


def _copy(
    original: Sequence[str],
    settings: Augment,
    key: tuple[int, int, int],
    held_out: set[Inputs],
    similar: Similar,
) -> list[str] | None:
    """The texts of a copy; None if there is none that may be."""
    own = normalised(original)
    for attempt in range(TRIES):
        rng = draws("augment", *key, attempt)
        texts = [change(text, settings.rates, rng, similar) for text in original]
        found = normalised(texts)
        if found != own and found not in held_out:
            return texts
    return None
