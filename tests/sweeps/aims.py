"""What each sweep that ships is meant to reach, and what it reached."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.finalists import read_predictions
from finetune_sweep.journal import read
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import wording
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tune.loaded import Loaded, planned_data
from tests.sweeps.captions import CHOICES, Captioned, constant, shuffled

if TYPE_CHECKING:
    from finetune_sweep.events import Promoted

_SOUNDED_OUT: Final = 1000  # words on which a baseline decides which letters are silent


@dataclass(frozen=True)
class Finding:
    """What was reached.

    Args:
        metric: What was measured, and on which split.
        value: What it came to.
        bound: What was aimed at.
        least: Whether the bound is the least that was wanted, or the most.
        why: Where the bound comes from.
    """

    metric: str
    value: float
    bound: float
    least: bool
    why: str = ""

    @property
    def met(self) -> bool:
        """Whether the aim was reached."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    @property
    def aim(self) -> str:
        """The bound in words."""
        return (
            f"{'at least' if self.least else 'at most'} {self.bound:.3g}{f', {self.why}' if self.why else ''}"
        )


class Done:
    """A sweep that was run.

    Args:
        file: Its file.
        storage: Where it was kept.
    """

    def __init__(self, file: Path, storage: Path) -> None:
        sweep = load_sweep(file, options={"storage": str(storage)})
        self.layout = Layout(parse_storage(sweep.storage or ""), sweep.name)
        self.plan: Plan = make_plan(sweep)
        self.record: SweepRecord = replay(read(self.layout))

    @cached_property
    def promoted(self) -> Promoted:
        """What lies in `best/`."""
        assert self.record.promoted is not None
        return self.record.promoted

    def said(self) -> Predictions:
        """What the promoted model said of the validation rows."""
        return read_predictions(self.layout, self.promoted.key, self.promoted.epoch)


def _test(metric: str, bound: float, why: str = "") -> Callable[[Done], Finding]:
    return lambda done: Finding(f"test {metric}", done.promoted.test_metrics[metric], bound, True, why)


def _guessing(done: Done) -> Finding:
    """Of two equally frequent classes."""
    bound = 0.5 + 3 * math.sqrt(0.25 / done.plan.rows["test"])
    value = done.promoted.test_metrics["accuracy"]
    return Finding("test accuracy", value, bound, least=True, why="three standard errors above guessing")


def _chance(done: Done) -> Finding:
    bound = 3 / math.sqrt(done.plan.rows["test"])
    value = done.promoted.test_metrics["pearson"]
    return Finding("test pearson", value, bound, least=True, why="three standard errors above chance")


def _other_papers(done: Done) -> Finding:
    """The summaries of one aspect come in the order of their papers: three rows on is the same of another paper."""
    said = done.said()
    shifted = Predictions(said.values, np.roll(said.labels, 3, axis=0), said.losses)
    value, bound = (float(wording.of_rows(each, "rougeL").mean()) for each in (said, shifted))
    return Finding("validation rougeL", value, bound, least=True, why="that against another paper's summary")


def _half_of_sounding_out(done: Done) -> Finding:
    rows = {split: planned_data(done.plan).splits[split] for split in ("train", "test")}
    pairs = {
        split: [(word, phonemes.split()) for word, phonemes in zip(part["text"], part["target"], strict=True)]
        for split, part in rows.items()
    }
    bound = error_rate(sounds(pairs["train"]), pairs["test"]) / 2
    value = done.promoted.test_metrics["word_error_rate"]
    return Finding(
        "test phoneme error rate",
        value,
        bound,
        least=False,
        why="half of each letter's most frequent phoneme or none",
    )


def sounds(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """Each letter's most frequent phoneme in words with as many letters as phonemes.

    Then letters are silent, one after the other, where that makes fewer errors.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word, phonemes in pairs:
        if len(word) == len(phonemes):
            for letter, phoneme in zip(word, phonemes, strict=True):
                counts[letter][phoneme] += 1
    found = {letter: counter.most_common(1)[0][0] for letter, counter in counts.items()}
    some = pairs[:_SOUNDED_OUT]
    for letter in sorted(found):
        without = {**found, letter: ""}
        if error_rate(without, some) < error_rate(found, some):
            found = without
    return found


def error_rate(sound: Mapping[str, str], pairs: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Errors over right phonemes when each letter is said on its own."""
    errors = sum(
        wording.distance([sound[letter] for letter in word if sound.get(letter)], right)
        for word, right in pairs
    )
    return errors / sum(len(right) for _, right in pairs)


def _untuned(done: Done) -> Finding:
    """Against the model as it was pretrained, on the same rows."""
    from finetune_sweep.train.loop import evaluate

    trial = next(trial for trial in done.plan.trials if trial.key == done.promoted.key)
    job, state = Loaded(done.plan).job(trial)
    before = evaluate(
        state.forward,
        job.task,
        job.validation,
        device=job.device,
        precision=job.precision,
        pad_token_id=job.pad_token_id,
    )
    bound = 0.8 * job.task.score(before, job.classes)["perplexity"]
    value = done.promoted.metrics["perplexity"]
    return Finding("validation perplexity", value, bound, least=False, why="0.8 of the untuned model's")


def _steady(done: Done) -> Finding:
    """Boxes of a small detector from new weights: what each fifth of the training added to the one before.

    The loss is that of training; of the validation rows it rises again in the last fifth, while more boxes are found.
    """
    history = done.record.trials[done.promoted.key].evaluations
    fifths = [[history[place] for place in part] for part in np.array_split(np.arange(len(history)), 5)]
    found = [float(np.mean([each.metrics["map50"] for each in part])) for part in fifths]
    losses = [float(np.mean([each.train_loss for each in part])) for part in fifths]
    more = [after > before for before, after in itertools.pairwise(found)]
    less = [after < before for before, after in itertools.pairwise(losses)]
    return Finding(
        f"steps to a better fifth of the training (validation map50 {history[-1].metrics['map50']:.3f} at its end)",
        sum(each and other for each, other in zip(more, less, strict=True)),
        4,
        least=True,
        why="in the loss of training and in map50 of the validation rows",
    )


def _captioned(done: Done) -> Captioned:
    return Captioned(done.plan, done.layout.best, done.plan.sweep.data.max_length)


def _names(done: Done) -> Finding:
    captioned = _captioned(done)
    said, right = captioned.said(), planned_data(done.plan).splits["test"]["text"]
    one, other = constant(right, captioned.before, "rougeL"), shuffled(said, "rougeL")
    bound, why = max(
        (one, "that of the best text for all pictures"), (other, "that of other pictures' names")
    )
    value = done.promoted.test_metrics["rougeL"]
    return Finding("test rougeL", value, bound, least=True, why=why)


def _among_ten(done: Done) -> Finding:
    bound = 1 / CHOICES + 3 * math.sqrt((1 - 1 / CHOICES) / CHOICES / done.plan.rows["test"])
    why = "three standard errors above chance"
    return Finding(
        "the right one of ten names, by what the picture adds",
        _captioned(done).chosen(),
        bound,
        least=True,
        why=why,
    )


AIMS: Final[Mapping[str, Sequence[Callable[[Done], Finding]]]] = {
    "bert": (_test("accuracy", 0.8),),
    "pairs": (_guessing,),
    "places": (_chance,),
    "addresses": (_test("accuracy", 0.9, "of words"),),
    "pronunciations": (_half_of_sounding_out,),
    "summaries": (_other_papers,),
    "smollm2": (_untuned,),
    "emoji": (_names, _among_ten),
    "mnist": (_test("accuracy", 0.95),),
    "scenes": (_steady,),
}
"""By the name of the sweep, shortest first; others are longer searches for the task of the first, or need a network."""
