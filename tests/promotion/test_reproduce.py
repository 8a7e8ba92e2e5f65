"""A promoted model, trained again from the lock beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune_sweep import resolved, yamlio
from finetune_sweep.errors import UserError, VerificationError
from finetune_sweep.reproduce import reproduce
from tests.promotion.finished_sweep import Opened


def edit(folder: Path, **changes: yamlio.Value) -> None:
    """Changes what the lock says of the trial."""
    content = yamlio.load(folder / resolved.NAME).value
    assert isinstance(content, dict)
    trial = content["trial"]
    assert isinstance(trial, dict)
    (folder / resolved.NAME).write_text(yamlio.dump({**content, "trial": {**trial, **changes}}))


def test_the_same_machine_gives_the_same_to_the_last_digit(promoted: Opened) -> None:
    said: list[str] = []
    reproduce(promoted.layout.best, said.append)
    assert said[-1].startswith("equal to the last digit: 6 metrics and ")
    assert promoted.plan.fingerprint in said[0]


def test_one_byte_of_the_data_is_noticed(promoted: Opened, tmp_path: Path) -> None:
    best = promoted.layout.best
    content = yamlio.load(best / resolved.NAME).value
    source = Path(promoted.plan.sweep.data.source or "")
    changed = tmp_path / "rows.csv"
    changed.write_bytes(source.read_bytes().replace(b"ann saw", b"ann sam", 1))
    assert isinstance(content, dict)
    sweep = content["sweep"]
    assert isinstance(sweep, dict)
    data = sweep["data"]
    assert isinstance(data, dict)
    edited = {**content, "sweep": {**sweep, "data": {**data, "source": str(changed)}}}
    (best / resolved.NAME).write_text(yamlio.dump(edited))

    with pytest.raises(
        UserError, match=r"the data changed: the fingerprint of the \w+ rows was [0-9a-f]{64}, now"
    ):
        reproduce(best, print)


def test_other_weights_are_noticed(promoted: Opened, tmp_path: Path) -> None:
    best = promoted.layout.best
    text = (best / resolved.NAME).read_text()
    other = tmp_path / "model"
    shutil.copytree(promoted.plan.sweep.model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    (best / resolved.NAME).write_text(text.replace(promoted.plan.sweep.model, str(other)))

    with pytest.raises(UserError, match=r"the pretrained model .* changed: its fingerprint was"):
        reproduce(best, print)


def test_what_is_not_equal_is_judged_by_the_spread_from_seed_to_seed(promoted: Opened) -> None:
    best = promoted.layout.best
    recorded = dict(resolved.read_beside(best).metrics)
    edit(best, metrics={**recorded, "loss": recorded["loss"] + 0.01})
    with pytest.raises(VerificationError, match="no spread from seed to seed is known"):
        reproduce(best, print)

    edit(best, metrics={**recorded, "loss": recorded["loss"] + 0.01}, spread=0.02)
    said: list[str] = []
    reproduce(best, said.append)
    assert "loss is 0.01 away, within 2 times the spread (0.02)" in said[-1]

    edit(best, metrics={**recorded, "loss": recorded["loss"] + 0.01}, spread=0.001)
    with pytest.raises(VerificationError, match=r"loss is 0.01 away, more than 2 times the spread"):
        reproduce(best, print)


def test_a_folder_without_a_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no sweep\.lock\.yaml"):
        reproduce(tmp_path, print)
    (tmp_path / resolved.NAME).write_text("name: tiny\n")
    with pytest.raises(UserError, match="does not say how the model was trained"):
        reproduce(tmp_path, print)
