"""CoNLL and CoNLL-U files: a token a line, its fields in columns, an empty line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from finetune_sweep.errors import UserError

ENDINGS: Final = (".conll", ".conllu", ".iob", ".iob2", ".bio")
PLAIN: Final = ".txt"
"""What such a file may end with, too, where the task is of words: other tasks have texts in files that end so."""
_UNIVERSAL: Final = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U, as https://universaldependencies.org/format.html names them."""
_COMMENT: Final = "# "
_WORD: Final = re.compile(r"\d+")
_NO_WORD: Final = re.compile(r"\d+[-.]\d+")
"""What CoNLL-U calls a range of words, or an empty node."""

Line = tuple[int, list[str]]
"""The number of a line, and its fields."""


def read_conll(files: Sequence[Path]) -> dict[str, list[list[str]] | list[str]]:
    """Reads sentences.

    Lines that begin with `-DOCSTART-` are skipped, and in CoNLL-U comments, ranges of words (`3-4`) and empty
    nodes (`3.1`). Fields are separated by tabs, or where a line has none by white space. In other files a comment is a
    line before the first token of a sentence that begins with `# `, unless it can be a token `#`: it has as many
    fields as a line that is no comment, and the same last one.

    Returns:
        By column, for each sentence, the field of each token. Columns are `1`, `2` and so on, in CoNLL-U also
        by name; `tokens` stands for the first one (`form`), `tags` for the last one (`upos`). `origin` says
        where each sentence begins.

    Raises:
        UserError: A file cannot be read, holds no sentence, or has a line of fewer or more fields than the first, or
            in CoNLL-U one without an id.
    """
    sentences = [(file, sentence) for file in files for sentence in _sentences(file)]
    if not sentences:
        raise UserError(f"{files[0]}: holds no sentence")
    width = len(sentences[0][1][0][1])
    for file, sentence in sentences:
        for number, fields in sentence:
            if len(fields) != width:
                raise UserError(
                    f"{file}: line {number} has {len(fields)} columns, the first has {width}: {' '.join(fields)[:60]}"
                )
    places = {str(place + 1): place for place in range(width)}
    if files[0].suffix.lower() == ".conllu":
        places |= {name: place for place, name in enumerate(_UNIVERSAL[:width])}
        places |= {"tokens": 1, "tags": min(3, width - 1)}
    else:
        places |= {"tokens": 0, "tags": width - 1}
    columns: dict[str, list[list[str]] | list[str]] = {
        name: [[fields[place] for _, fields in sentence] for _, sentence in sentences]
        for name, place in places.items()
    }
    columns["origin"] = [f"line {sentence[0][0]}" for _, sentence in sentences]
    return columns


def _sentences(file: Path) -> Iterator[list[Line]]:
    universal = file.suffix.lower() == ".conllu"
    sentence: list[Line] = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    told = [_fields(line) for line in lines if line.strip() and not line.startswith(_COMMENT)]
    tokens = {(len(fields), fields[-1]) for fields in told}
    for number, line in enumerate(lines, 1):
        fields = _fields(line)
        if not line.strip() or fields[0] == "-DOCSTART-":
            if sentence:
                yield sentence
            sentence = []
        elif universal:
            if _WORD.fullmatch(fields[0]):
                sentence.append((number, fields))
            elif not line.startswith("#") and not _NO_WORD.fullmatch(fields[0]):
                raise UserError(
                    f"{file}: line {number}: an id must be a number such as 3, 3-4 or 3.1, got {fields[0][:60]!r}"
                )
        elif sentence or not line.startswith(_COMMENT) or (len(fields), fields[-1]) in tokens:
            sentence.append((number, fields))
    if sentence:
        yield sentence


def _fields(line: str) -> list[str]:
    return line.rstrip("\r").split("\t") if "\t" in line else line.split()
