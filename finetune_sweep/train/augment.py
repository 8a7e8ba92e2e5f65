"""Random changes of texts, word by word: what augmentation adds to training, and robustness is measured by.

Each augmenter is a pure function of words, a rate, and a generator; `AUGMENTERS` names them. They take their random
numbers from `Random.random` alone, whose stream is the same in every version of Python.

EDA: Wei & Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks".
AEDA: Karimi, Rossi & Prati 2021, "AEDA: An Easier Data Augmentation Technique for Text Classification".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final, TypeAlias, TypeVar

Similar: TypeAlias = Mapping[str, Sequence[str]]
"""By word, the words that can stand in its place."""
Augmenter: TypeAlias = Callable[[Sequence[str], float, Random, Similar], list[str]]
"""Words, a rate from 0 to 1, a generator and the similar words; returns new words and leaves the given ones."""
T = TypeVar("T")

MARKS: Final = (".", ";", "?", ":", "!", ",")
"""What AEDA inserts."""
NONE: Final[Similar] = {}

# Thai, Lao, Myanmar, Khmer with their marks; kana; Chinese characters, with those beyond the first plane.
_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # noqa: E501 - one class of characters
# Vowels and tones that stand above, below or behind a letter belong to it.
_MARKS: Final = "\u0e30-\u0e3a\u0e47-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u3099\u309a"
_UNIT: Final = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^\\s{_UNSPACED}]+")
_CORE: Final = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def draws(*key: str | int) -> Random:
    """A generator of its own for one purpose: `draws(seed, "augment", copy, row)`."""
    return Random("/".join(map(str, key)))


def split_words(text: str) -> list[str]:
    """The words of a text; in scripts without spaces its characters, each with its marks.

    >>> split_words("我用 Python, ok")
    ['我', '用', 'Python,', 'ok']
    """
    return _UNIT.findall(text)


def join_words(words: Sequence[str]) -> str:
    """A text of words: with spaces between them, but none beside a character of a script without spaces.

    >>> join_words(["我", "用", "Python,", "ok"])
    '我用Python, ok'
    """
    text = ""
    for word in words:
        is_apart = text and not is_unspaced(text[-1]) and not is_unspaced(word[0])
        text += f" {word}" if is_apart else word
    return text


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    return re.match(f"[{_UNSPACED}]", character) is not None


def core(word: str) -> str:
    """A word without the punctuation around it."""
    return _parts(word)[1]


def _parts(word: str) -> tuple[str, str, str]:
    found = _CORE.fullmatch(word)
    return (found[1], found[2], found[3]) if found else ("", word, "")


def _below(count: int, rng: Random) -> int:
    return int(rng.random() * count)


def _one_of(options: Sequence[T], rng: Random) -> T:
    return options[_below(len(options), rng)]


# ------------------------------------------------------------------------------------------ augmenters


def replacement(words: Sequence[str], rate: float, rng: Random, similar: Similar = NONE) -> list[str]:
    """Replaces each word with the chance `rate` by a similar one, if it has any (EDA, synonym replacement)."""
    return [_replaced(word, rng, similar) if rng.random() < rate else word for word in words]


def insertion(words: Sequence[str], rate: float, rng: Random, similar: Similar = NONE) -> list[str]:
    """For each word, with the chance `rate`, inserts a word similar to one of the text anywhere (EDA)."""
    known = [word for word in words if _options(core(word), similar)]
    inserted = list(words)
    for _ in words:
        if rng.random() < rate and known:
            word = core(_replaced(_one_of(known, rng), rng, similar))
            inserted.insert(_below(len(inserted) + 1, rng), word)
    return inserted


def swap(words: Sequence[str], rate: float, rng: Random, _similar: Similar = NONE) -> list[str]:
    """Lets each word, with the chance `rate`, change places with another one (EDA)."""
    swapped = list(words)
    for place in range(len(swapped)):
        if rng.random() < rate and len(swapped) > 1:
            other = _below(len(swapped) - 1, rng)
            other += other >= place
            swapped[place], swapped[other] = swapped[other], swapped[place]
    return swapped


def deletion(words: Sequence[str], rate: float, rng: Random, _similar: Similar = NONE) -> list[str]:
    """Leaves out each word with the chance `rate`; one word stays, drawn if none would (EDA)."""
    kept = [word for word in words if rng.random() >= rate]
    return kept or ([_one_of(words, rng)] if words else [])


def punctuation(words: Sequence[str], rate: float, rng: Random, _similar: Similar = NONE) -> list[str]:
    """Puts marks before some words: from one up to the fraction `rate` of them, and one more (AEDA).

    As in the authors' code, their number is drawn evenly from 1 to `int(rate * len(words) + 1)`, and the words
    behind them are different ones. Nothing is inserted at rate 0.
    """
    if not rate or not words:
        return list(words)
    count = min(len(words), 1 + _below(int(rate * len(words) + 1), rng))
    places = list(range(len(words)))
    chosen = {places.pop(_below(len(places), rng)) for _ in range(count)}
    marked: list[str] = []
    for place, word in enumerate(words):
        marked += [_one_of(MARKS, rng), word] if place in chosen else [word]
    return marked


def typos(words: Sequence[str], rate: float, rng: Random, _similar: Similar = NONE) -> list[str]:
    """Mistypes each letter of a Latin keyboard with the chance `rate`.

    It becomes a neighbouring key, changes places with the letter behind it, is left out, or is doubled, each as
    likely as the others. A word keeps at least one letter, and letters of other scripts stay.
    """
    return [_mistyped(word, rate, rng) for word in words]


def case(words: Sequence[str], rate: float, rng: Random, _similar: Similar = NONE) -> list[str]:
    """Writes each word with the chance `rate` in capitals, or in small letters if it is in capitals already."""
    return [
        (word.lower() if word == word.upper() else word.upper()) if rng.random() < rate else word
        for word in words
    ]


AUGMENTERS: Final[Mapping[str, Augmenter]] = {
    "replacement": replacement,
    "insertion": insertion,
    "swap": swap,
    "deletion": deletion,
    "punctuation": punctuation,
    "typos": typos,
}
"""A new augmenter is one function, one line here, one rate in `settings.Augment`, and one row in docs/methods.md."""


def change(text: str, rates: Mapping[str, float], rng: Random, similar: Similar = NONE) -> str:
    """Takes a text through the augmenters of `rates`, in the order given there."""
    words = split_words(text)
    for name, rate in rates.items():
        words = AUGMENTERS[name](words, rate, rng, similar)
    return join_words(words)


# --------------------------------------------------------------------------------------------- one word


def _options(word: str, similar: Similar) -> Sequence[str]:
    return similar.get(word) or similar.get(word.lower()) or ()


def _replaced(word: str, rng: Random, similar: Similar) -> str:
    """A similar word with the punctuation and the capitals of the given one."""
    before, plain, after = _parts(word)
    options = _options(plain, similar)
    if not options:
        return word
    new = _one_of(options, rng)
    if len(plain) > 1 and plain.isupper():
        new = new.upper()
    elif plain[:1].isupper():
        new = new[:1].upper() + new[1:]
    return f"{before}{new}{after}"


def _mistyped(word: str, rate: float, rng: Random) -> str:
    letters = list(word)
    typed: list[str] = []
    while letters:
        letter = letters.pop(0)
        keys = KEYS.get(letter.lower())
        if keys is None or rng.random() >= rate:
            typed.append(letter)
            continue
        match _below(4, rng):
            case 0:
                key = _one_of(keys, rng)
                typed.append(key.upper() if letter.isupper() else key)
            case 1 if letters:
                typed += [letters.pop(0), letter]
            case 2 if letters or typed:
                pass
            case _:
                typed += [letter, letter]
    return "".join(typed)


def _keys() -> dict[str, str]:
    """By letter, the keys around it on a QWERTY keyboard; each row stands half a key right of the one above."""
    at = {(place, row): key for row, keys in enumerate(_ROWS) for place, key in enumerate(keys)}
    around = ((-1, 0), (1, 0), (0, -1), (1, -1), (-1, 1), (0, 1))
    return {
        key: "".join(at[x + dx, y + dy] for dx, dy in around if (x + dx, y + dy) in at)
        for (x, y), key in at.items()
    }


KEYS: Final[Mapping[str, str]] = _keys()
"""The neighbours of each letter on the keyboard."""
