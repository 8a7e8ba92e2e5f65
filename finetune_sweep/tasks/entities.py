"""Entities in tagged words, and how well they are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_TAG: Final = re.compile(r"(?P<form>[BIOESLU])-(?P<label>.+)")
OUTSIDE: Final = "O"
"""The tag of a word that is of no entity."""
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ESLU")


class Span(NamedTuple):
    """Words that belong together: the first and the last one."""

    label: str
    start: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """Finds the entities of a text, as the evaluation of CoNLL-2003 does.

    Of tags such as `B-PER` and `I-PER`, an entity goes on while the label stays and none begins or ends. Of plain
    tags, neighbours with one tag are one entity; `O` is none.
    """
    found: list[Span] = []
    before, is_open = "", False
    for place, tag in enumerate(tags):
        match = _TAG.fullmatch(tag)
        form, label = (match["form"], match["label"]) if match else ("I", "" if tag == OUTSIDE else tag)
        if label and is_open and label == before and form not in _BEGINS:
            found[-1] = found[-1]._replace(end=place)
        elif label:
            found.append(Span(label, place, place))
        before, is_open = label, bool(label) and form not in _ENDS
    return found


def score(texts: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    """Returns `f1`, `precision` and `recall` over the entities of all texts; 0 without any.

    Args:
        texts: The right tags and the predicted ones, equally many.
    """
    from nervaluate.entities import Entity
    from nervaluate.strategies import StrictEvaluation

    strict = StrictEvaluation()
    correct = predicted = right = 0
    for tags, guesses in texts:
        both = [[Entity(*span) for span in spans(of)] for of in (tags, guesses)]
        result, _ = strict.evaluate(both[0], both[1], [])
        correct += result.correct
        right += len(both[0])
        predicted += len(both[1])
    precision = correct / predicted if predicted else 0.0
    recall = correct / right if right else 0.0
    f1 = 2 * correct / (predicted + right) if predicted + right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}
