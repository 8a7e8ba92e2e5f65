"""What the sweeps are held against: which of them are, and the baseline of sounding out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS, wording
from finetune_sweep.tasks.arrays import Predictions
from tests.sweeps.aims import AIMS, Finding, error_rate, sounds
from tests.sweeps.captions import constant, first_of, lowered, shuffled

SWEEPS = Path(__file__).resolve().parent.parent.parent / "sweeps"


def test_a_sweep_of_every_task_that_has_one_is_run() -> None:
    files = [file for file in SWEEPS.glob("*.yaml") if not file.stem.endswith("_hub")]
    assert set(AIMS) <= {file.stem for file in files}
    with_a_sweep = {load_sweep(file).task for file in files}
    assert {load_sweep(SWEEPS / f"{name}.yaml").task for name in AIMS} == with_a_sweep
    assert with_a_sweep <= set(TASKS)


def test_letters_have_their_most_frequent_phoneme_and_are_silent_where_that_is_better() -> None:
    pairs = [("bat", ["B", "AE", "T"]), ("tab", ["T", "AE", "B"]), ("bate", ["B", "EY", "T"])]
    pairs += [("abe", ["EY", "B"]), ("ate", ["EY", "T"]), ("bet", ["B", "EH", "T"])]
    found = sounds(pairs)
    assert found == {"b": "B", "a": "AE", "t": "T", "e": ""}
    # AE for EY in three words, and the EH of the last one is not said.
    assert error_rate(found, pairs) == pytest.approx(4 / 16)


def test_an_aim_says_which_way_is_better() -> None:
    assert Finding("test accuracy", 0.9, 0.9, least=True).met
    assert not Finding("test error", 0.3, 0.2, least=False, why="half").met
    assert Finding("test error", 0.3, 0.2, least=False, why="half").aim == "at most 0.2, half"


def test_a_captioner_is_held_against_one_text_for_all_and_the_texts_of_others() -> None:
    right = ["peru flag", "chad flag", "red heart"]
    # "flag" is one of the two words of two names: 2 * 1 / (1 + 2) each.
    assert constant(right, ["mali flag", "heart"], "rougeL") == pytest.approx(2 * (2 / 3) / 3)
    codes = wording.codes(right)
    perfect = Predictions(codes, codes, np.zeros(3, dtype=np.float32))
    # Of the six wrong pairs, two have one of two words in common.
    assert shuffled(perfect, "rougeL") == pytest.approx(2 * 0.5 / 6)


def test_the_right_one_of_ten_has_less_loss_than_all_others() -> None:
    losses = np.array([[1.0, 2.0, 3.0, 1.0], [2.0, 1.0, 4.0, 1.0], [3.0, 3.0, 5.0, 2.0]], dtype=np.float32)
    assert first_of(losses) == 0.5


def test_a_text_that_is_likely_with_any_picture_is_not_chosen_for_that() -> None:
    # Rows are pictures 0 to 2; the text of row 2 costs little with all of them, its own picture lowers each by 1.
    own, other = np.array([4.0, 5.0, 1.0]), np.array([5.0, 6.0, 2.0])
    losses = np.array([own, other[[1, 2, 0]], other[[2, 0, 1]]], dtype=np.float32)
    assert first_of(losses) == pytest.approx(1 / 3)
    found = lowered(losses)
    assert found == pytest.approx(np.array([[-2 / 3] * 3, [1 / 3] * 3, [1 / 3] * 3]), abs=1e-6)
    assert first_of(found) == 1
