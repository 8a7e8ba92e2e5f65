"""Words that can stand in the place of others: of a synonym file, or the nearest in a model's embedding table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.errors import Problem, UserError
from finetune_sweep.train.augment import is_unspaced

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAREST: Final = 5
"""So many words of the embedding table are taken as similar to one."""
_AT_ONCE: Final = 512
_DECIMALS: Final = 4
"""Similarities are compared by these, so that the last digits of another processor change no order."""


def read_synonyms(file: Path) -> dict[str, tuple[str, ...]]:
    """Reads lines `word: similar, similar`; empty ones and those that begin with `#` are passed over.

    Raises:
        UserError: The file cannot be read, has a line of another form, or no word at all.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    found: dict[str, tuple[str, ...]] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, colon, rest = line.partition(":")
        others = tuple(other.strip() for other in rest.split(",") if other.strip())
        if not colon or not word.strip() or not others:
            problems.append(Problem(f"must be `word: similar, similar`, got {line!r}", "", str(file), number))
            continue
        found[word.strip()] = (*found.get(word.strip(), ()), *others)
    if not found and not problems:
        problems.append(Problem("holds no line `word: similar, similar`", "", str(file)))
    if problems:
        raise UserError(problems)
    return found


def neighbours(
    words: Collection[str], vocabulary: Mapping[str, int], table: NDArray[np.float32]
) -> dict[str, tuple[str, ...]]:
    """The nearest words by the cosine of their rows in an embedding table, nearest first.

    Args:
        words: Those that are asked for; one that is no token of its own has no neighbours.
        vocabulary: The tokens of the model, and the row of each.
        table: Shape `(tokens, hidden)`.

    Returns:
        Up to `NEAREST` other words for each; not the word itself in other capitals.
    """
    known = {word: row for word, row in whole_words(vocabulary).items() if row < len(table)}
    names, rows = list(known), np.fromiter(known.values(), dtype=np.int64, count=len(known))
    asked = sorted({form for word in words for form in (word, word.lower()) if form in known})
    lengths = np.linalg.norm(table[rows], axis=1, keepdims=True)
    unit = table[rows] / np.maximum(lengths, np.finfo(np.float32).tiny)
    place = {word: index for index, word in enumerate(names)}
    found: dict[str, tuple[str, ...]] = {}
    for first in range(0, len(asked), _AT_ONCE):
        some = asked[first : first + _AT_ONCE]
        similarity = (unit[[place[word] for word in some]] @ unit.T).round(_DECIMALS)
        # Twice as many, since the word itself and its other spellings are among them.
        count = min(2 * NEAREST + 2, len(names))
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        for word, near, cosines in zip(some, nearest, similarity, strict=True):
            order = sorted(near.tolist(), key=lambda index: (-cosines[index], index))
            others = [names[index] for index in order if names[index].lower() != word.lower()]
            found[word] = tuple(others[:NEAREST])
    return {word: others for word, others in found.items() if others}


def whole_words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The tokens that are words of letters, by the word, in the order of their rows.

    WordPiece marks what continues a word (`##`); the others mark where one begins (`G` with a dot for byte-level
    tokens, a low bar for SentencePiece). Of scripts without spaces it is the single characters.
    """
    tokens = sorted(vocabulary.items(), key=lambda item: item[1])
    mark = next((m for m in ("\u0120", "\u2581") if any(token.startswith(m) for token, _ in tokens)), "")
    words: dict[str, int] = {}
    for token, row in tokens:
        word = token.removeprefix(mark)
        is_character = len(word) == 1 and is_unspaced(word)
        begins = token.startswith(mark) and len(word) > 1
        # Byte-level tokens spell other letters than ASCII in signs of their own.
        is_word = word.isalpha() and begins and (mark != "\u0120" or word.isascii())
        if is_character or is_word:
            words.setdefault(word, row)
    return words
