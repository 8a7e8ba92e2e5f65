"""Similar words: read from a file, or found in an embedding table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.train.similar import NEAREST, neighbours, read_synonyms, whole_words


def test_a_synonym_file_is_read_by_lines(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("# ours\n\ngood: great, fine\n bad :poor\ngood: nice,\n", encoding="utf-8")
    assert read_synonyms(file) == {"good": ("great", "fine", "nice"), "bad": ("poor",)}


def test_a_wrong_synonym_file_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("good: great\nbad poor\nfair:\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_synonyms(file)
    assert str(caught.value).splitlines() == [
        f"{file}:2: must be `word: similar, similar`, got 'bad poor'",
        f"{file}:3: must be `word: similar, similar`, got 'fair:'",
    ]
    file.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no line"):
        read_synonyms(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_synonyms(tmp_path / "absent.txt")


def test_neighbours_are_the_nearest_rows_by_cosine() -> None:
    # Angles of 0, 10, 30 and 90 degrees; lengths do not count, nor does the word itself in capitals.
    degrees = {"good": 0, "Good": 1, "great": 10, "fine": 30, "bad": 90}
    vocabulary = {word: row for row, word in enumerate(degrees)}
    angles = np.deg2rad(list(degrees.values()))
    table = (np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [2], [9], [0.5], [3]]).astype(
        np.float32
    )

    found = neighbours({"good", "Great", "absent"}, vocabulary, table)

    assert found == {"good": ("great", "fine", "bad"), "great": ("Good", "good", "fine", "bad")}


def test_at_most_so_many_neighbours_are_kept() -> None:
    vocabulary = {
        f"{letter}{other}": row
        for row, (letter, other) in enumerate(zip("abcdefghij", "klmnopqrst", strict=True))
    }
    table = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    found = neighbours(set(vocabulary), vocabulary, table)
    assert {len(others) for others in found.values()} == {NEAREST}
    for word, others in found.items():
        cosines = table @ table[vocabulary[word]] / np.linalg.norm(table, axis=1)
        expected = sorted(
            (other for other in vocabulary if other != word), key=lambda o: -cosines[vocabulary[o]]
        )
        assert list(others) == expected[:NEAREST]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["[PAD]", "house", "##s", "7", "a", "猫"], {"house": 1, "猫": 5}),
        (["<s>", "Ġhouse", "s", "ing", "ĠÃ©tÃ©", "Ġ."], {"house": 1}),
        (["<pad>", "▁house", "s", "▁été", "猫", "▁."], {"house": 1, "été": 3, "猫": 4}),
    ],
)
def test_words_are_told_from_parts_of_words(tokens: list[str], words: dict[str, int]) -> None:
    assert whole_words({token: row for row, token in enumerate(tokens)}) == words
