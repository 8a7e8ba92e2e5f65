"""Each augmenter against examples worked by hand, and its rates over many words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_sweep.settings import AUGMENT_RATES, Augment
from finetune_sweep.train import augment
from finetune_sweep.train.augment import AUGMENTERS, KEYS, change, draws, join_words, split_words

FOX = ["the", "quick", "brown", "fox", "jumps"]
SIMILAR = {"quick": ("fast", "rapid"), "fox": ("dog",)}


class Scripted(Random):
    """Gives the numbers that a test has written down, and fails where one more is asked for."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0)

    def is_used_up(self) -> bool:
        return not self._numbers


def test_replacement_puts_a_similar_word_in_the_place_of_a_word() -> None:
    # the: 0.0 < 0.5, but it has none; quick: 0.4 < 0.5, then int(0.9 * 2) = 1, "rapid"; fox: 0.5 is not below.
    rng = Scripted(0.0, 0.4, 0.9, 0.9, 0.5, 0.9)
    assert augment.replacement(FOX, 0.5, rng, SIMILAR) == ["the", "rapid", "brown", "fox", "jumps"]
    assert rng.is_used_up()


@pytest.mark.parametrize(("word", "new"), [("Quick,", "Fast,"), ("(quick)", "(fast)"), ("QUICK", "FAST")])
def test_replacement_keeps_punctuation_and_capitals(word: str, new: str) -> None:
    assert augment.replacement([word], 1.0, Scripted(0.0, 0.0), SIMILAR) == [new]


def test_insertion_puts_a_word_similar_to_one_of_the_text_anywhere() -> None:
    # For "the" yes (0.1 < 0.3): of (quick, fox) int(0.6 * 2) = 1 is fox, its only word is dog, and int(0.5 * 6) = 3.
    rng = Scripted(0.1, 0.6, 0.0, 0.5, 0.9, 0.9, 0.9, 0.9)
    assert augment.insertion(FOX, 0.3, rng, SIMILAR) == ["the", "quick", "brown", "dog", "fox", "jumps"]
    assert rng.is_used_up()
    assert augment.insertion(["so", "be", "it"], 1.0, draws(0), SIMILAR) == ["so", "be", "it"]


def test_swap_lets_two_words_change_places() -> None:
    # At place 1 yes (0.0): of the four others (0, 2, 3, 4), int(0.5 * 4) = 2 is place 3.
    rng = Scripted(0.9, 0.0, 0.5, 0.9, 0.9, 0.9)
    assert augment.swap(FOX, 0.2, rng) == ["the", "fox", "brown", "quick", "jumps"]
    assert rng.is_used_up()
    assert augment.swap(["alone"], 1.0, draws(0)) == ["alone"]


def test_deletion_leaves_words_out_and_keeps_one() -> None:
    assert augment.deletion(FOX, 0.4, Scripted(0.39, 0.4, 0.1, 0.9, 0.9)) == ["quick", "fox", "jumps"]
    # All five are below 1; int(0.5 * 5) = 2 stays.
    assert augment.deletion(FOX, 1.0, Scripted(0.0, 0.0, 0.0, 0.0, 0.0, 0.5)) == ["brown"]


def test_aeda_on_a_fixed_sentence() -> None:
    # Ten words at 0.3: 1 to int(0.3 * 10 + 1) = 4 marks; 1 + int(0.5 * 4) = 3 of them. Places out of 10: int(0.0 * 10)
    # = 0 is 0; of the nine left (1 to 9) int(0.5 * 9) = 4 is 5; of the eight left (1 2 3 4 6 7 8 9) int(0.99 * 8) = 7
    # is 9. Marks: int(0.0 * 6) = 0 ".", int(0.4 * 6) = 2 "?", int(0.99 * 6) = 5 ",".
    text = "we show that long sentences are parsed well by it"
    rng = Scripted(0.5, 0.0, 0.5, 0.99, 0.0, 0.4, 0.99)
    marked = augment.punctuation(text.split(), 0.3, rng)
    assert " ".join(marked) == ". we show that long sentences ? are parsed well by , it"
    assert rng.is_used_up()


@given(st.lists(st.sampled_from(FOX), min_size=1, max_size=40), st.integers(0, 10**6))
def test_aeda_inserts_marks_and_leaves_the_words(words: list[str], seed: int) -> None:
    marked = augment.punctuation(words, 0.3, draws(seed))
    assert [word for word in marked if word not in augment.MARKS] == words
    assert 1 <= len(marked) - len(words) <= int(0.3 * len(words) + 1)


def test_typos_are_neighbouring_keys_exchanged_lost_and_doubled_letters() -> None:
    # Each letter: the chance, which of four. S: 0 and the key int(0.0 * 6) = "a"; o: 1, with the m; e: 2; -: none.
    rng = Scripted(0.0, 0.1, 0.0, 0.0, 0.3, 0.0, 0.6, 0.9)
    assert augment.typos(["Some-", "1"], 0.5, rng) == ["Amo-", "1"]
    assert augment.typos(["go"], 0.5, Scripted(0.0, 0.8, 0.9)) == ["ggo"]
    # The last letter of a word has none behind it, and the only one is not left out: both are doubled.
    assert augment.typos(["a"], 0.5, Scripted(0.0, 0.3)) == ["aa"]
    assert augment.typos(["a"], 0.5, Scripted(0.0, 0.6)) == ["aa"]
    assert augment.typos(["很", "7"], 1.0, Scripted()) == ["很", "7"]


def test_the_keys_around_a_key() -> None:
    assert set(KEYS["s"]) == set("adwezx")
    assert set(KEYS["q"]) == set("wa")
    assert set(KEYS["m"]) == set("njk")
    assert all(key in KEYS[other] for key, others in KEYS.items() for other in others)


def test_case_writes_words_in_capitals_or_back() -> None:
    assert augment.case(["So", "GPU", "far"], 0.5, Scripted(0.0, 0.0, 0.9)) == ["SO", "gpu", "far"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  Long sentences,  fail. ", ["Long", "sentences,", "fail."]),
        ("我喜欢猫。", ["我", "喜", "欢", "猫", "。"]),
        ("用Python写", ["用", "Python", "写"]),
        ("ありがとう", ["あ", "り", "が", "と", "う"]),
        ("น้ำดี", ["น้ำ", "ดี"]),
        ("고양이가 좋다", ["고양이가", "좋다"]),
        ("", []),
    ],
)
def test_texts_are_words_or_characters_by_their_script(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert join_words(words) == " ".join(text.split())


def test_chinese_is_changed_by_characters() -> None:
    assert change("我喜欢猫", {"swap": 1.0}, draws(3)) != "我喜欢猫"
    assert sorted(change("我喜欢猫", {"swap": 1.0}, draws(3))) == sorted("我喜欢猫")
    assert len(change("我喜欢猫", {"deletion": 0.5}, draws(1))) < 4


def _changed(words: Iterable[str], others: Iterable[str]) -> int:
    return sum(word != other for word, other in zip(words, others, strict=True))


def test_rates_are_met_over_many_words() -> None:
    # 20,000 words at 0.1: a standard deviation of 42; bounds are five of them.
    words, many = [f"w{n}" for n in range(20_000)], {f"w{n}": ("x",) for n in range(20_000)}
    low, high = 2000 - 212, 2000 + 212
    assert low <= _changed(augment.replacement(words, 0.1, draws("a"), many), words) <= high
    assert low <= len(augment.insertion(words, 0.1, draws("b"), many)) - len(words) <= high
    assert low <= len(words) - len(augment.deletion(words, 0.1, draws("c"))) <= high
    # Each swap moves two words.
    assert 2 * low * 0.9 <= _changed(augment.swap(words, 0.1, draws("d")), words) <= 2 * high
    # One letter a word; neither doubled nor lost letters give the word again.
    letters = ["k"] * 20_000
    assert low <= _changed(augment.typos(letters, 0.1, draws("e")), letters) <= high


@pytest.mark.parametrize("name", AUGMENTERS)
def test_at_rate_0_nothing_changes_and_the_words_given_stay(name: str) -> None:
    words = list(FOX)
    assert AUGMENTERS[name](words, 0.0, draws(0), SIMILAR) == FOX
    AUGMENTERS[name](words, 1.0, draws(0), SIMILAR)
    assert words == FOX
    assert AUGMENTERS[name]([], 1.0, draws(0), SIMILAR) == []


def test_every_rate_of_the_settings_has_its_augmenter() -> None:
    assert tuple(AUGMENTERS) == AUGMENT_RATES
    rates = [name for name, field in Augment.model_fields.items() if field.annotation is float]
    assert tuple(rates) == AUGMENT_RATES
    assert not any(get_args(Augment.model_fields[name].annotation) for name in rates)


def test_another_process_draws_the_same() -> None:
    rates = {"swap": 0.5, "typos": 0.3, "punctuation": 0.3}
    program = (
        "from finetune_sweep.train.augment import change, draws\n"
        f"print(change({' '.join(FOX)!r}, {rates!r}, draws(1, 'augment', 2)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ran.stdout.rstrip("\n") == change(" ".join(FOX), rates, draws(1, "augment", 2))
    # Pinned, so that no version of Python draws otherwise.
    assert change(" ".join(FOX), rates, draws(1, "augment", 2)) == ", brronw fox jums quck , hd"
