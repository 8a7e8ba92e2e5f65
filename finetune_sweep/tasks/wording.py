"""How near a text that a model wrote is to the right one.

Texts are stored as the numbers of their characters, row by row, so that they are kept and joined as any prediction is.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.tasks.arrays import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Predictions
    from finetune_sweep.tasks.contract import Mode

_OWN: Final = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Han, Hiragana and Katakana, which are written without spaces: each character counts as a word."""
_MARKED: Final = range(0x300, 0x20000)
"""Where Unicode has the marks that are written with a letter, such as the vowels of Devanagari."""
_VARIANTS: Final = range(0xFE00, 0xFE10)
"""Marks that choose how a sign looks, as after a digit in an emoji."""

NEARNESS: Final[Mapping[str, Mode]] = {
    "rouge1": "max",
    "rouge2": "max",
    "rougeL": "max",
    "exact_match": "max",
    "word_error_rate": "min",
    "character_error_rate": "min",
}
"""The metrics of `of_rows`."""


def codes(texts: Sequence[str]) -> NDArray[np.int32]:
    """Returns the number of each character, shape `(texts, longest)`, filled with `IGNORED` on the right."""
    longest = max(map(len, texts), default=0)
    filled = np.full((len(texts), longest), IGNORED, dtype=np.int32)
    for row, text in enumerate(texts):
        filled[row, : len(text)] = [ord(character) for character in text]
    return filled


def texts_of(filled: NDArray[np.generic]) -> list[str]:
    """Returns the texts that `codes` was given."""
    numbers = np.asarray(filled, dtype=np.int64)
    return ["".join(map(chr, row[row != IGNORED])) for row in numbers]


def of_rows(predictions: Predictions, metric: str) -> NDArray[np.float64]:
    """Returns what each row adds to a metric, which is their mean, shape `(rows,)`.

    rouge1, rouge2, rougeL: F1 over words, pairs of words, and the longest common subsequence of words (Lin 2004), in
        lower case, without punctuation and without stemming. Words are letters, digits and underscores with their
        marks; of Chinese and Japanese, each character is one. Scripts of other languages without spaces, such as
        Thai, are not cut into words.
    exact_match: 1 where the texts are the same but for white space.
    word_error_rate, character_error_rate: Insertions, deletions and substitutions over the words, or characters, of the
        right texts of all rows (Levenshtein 1966). Words are what stands between white space: of phonemes, it is the
        phoneme error rate. It can be above 1.

    Args:
        predictions: Values and labels as `codes` makes them.
        metric: One of `NEARNESS`.
    """
    pairs = zip(texts_of(predictions.values), texts_of(predictions.labels), strict=True)
    match metric:
        case "exact_match":
            found = [float(said.split() == right.split()) for said, right in pairs]
        case "word_error_rate":
            return _error_rates([(said.split(), right.split()) for said, right in pairs])
        case "character_error_rate":
            return _error_rates([(list(" ".join(s.split())), list(" ".join(r.split()))) for s, r in pairs])
        case _:
            found = [_ROUGE[metric](_words(said), _words(right)) for said, right in pairs]
    return np.array(found, dtype=np.float64)


def _words(text: str) -> list[str]:
    return _word().findall(text.lower())


@functools.cache
def _word() -> re.Pattern[str]:
    marks = "".join(
        chr(number)
        for number in _MARKED
        if unicodedata.category(chr(number)) in {"Mn", "Mc"} and number not in _VARIANTS
    )
    letter = rf"[^\W{_OWN}]"
    return re.compile(rf"(?=\w)[{_OWN}][{marks}]*|{letter}(?:{letter}|[{marks}])*")


def _rouge_n(size: int) -> Callable[[Sequence[str], Sequence[str]], float]:
    def score(said: Sequence[str], right: Sequence[str]) -> float:
        grams = [
            Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))
            for words in (said, right)
        ]
        return _f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())

    return score


def _rouge_l(said: Sequence[str], right: Sequence[str]) -> float:
    before = [0] * (len(right) + 1)
    for word in said:
        row = [0]
        for place, other in enumerate(right, 1):
            row.append(before[place - 1] + 1 if word == other else max(before[place], row[-1]))
        before = row
    return _f1(before[-1], len(said), len(right))


_ROUGE: Final = {"rouge1": _rouge_n(1), "rouge2": _rouge_n(2), "rougeL": _rouge_l}


def _f1(common: int, said: int, right: int) -> float:
    return 2 * common / (said + right) if common else 0.0


def _error_rates(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> NDArray[np.float64]:
    """The errors of each row, so scaled that their mean is all errors over the length of all right texts."""
    errors = np.array([distance(said, right) for said, right in pairs], dtype=np.float64)
    length = sum(len(right) for _, right in pairs)
    return errors * len(pairs) / max(1, length)


def distance(said: Sequence[str], right: Sequence[str]) -> int:
    """Returns the fewest insertions, deletions and substitutions that make one sequence of the other."""
    numbers = {entry: number for number, entry in enumerate({*said, *right})}
    goal = np.array([numbers[entry] for entry in right], dtype=np.int64)
    steps = np.arange(len(right) + 1)
    row = steps
    for place, entry in enumerate(said, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (goal != numbers[entry]))
        # What is inserted after a place costs one each: the running minimum of the rest, without those.
        row = np.minimum.accumulate(np.concatenate(([place], best)) - steps) + steps
    return int(row[-1])
