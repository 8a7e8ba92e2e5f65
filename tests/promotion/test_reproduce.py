"""A promoted model, trained again from the lock beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_sweep import resolved, yamlio
from finetune_sweep.errors import UserError, VerificationError
from finetune_sweep.reproduce import reproduce
from finetune_sweep.trial import can_fuse
from tests.promotion.finished_sweep import Opened, Trained, here, hold, train

DATA = "source: ./rows.csv\n  split: {validation: 0.2}"


def edit(folder: Path, section: str = "trial", **changes: yamlio.Value) -> None:
    """Changes what the lock says of the trial, or of the machine that trained it."""
    content = yamlio.load(folder / resolved.NAME).value
    assert isinstance(content, dict)
    before = content[section]
    assert isinstance(before, dict)
    (folder / resolved.NAME).write_text(yamlio.dump({**content, section: {**before, **changes}}))


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def head_only(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A sweep of heads, which are trained as a stack, with the best of them promoted."""
    training = f"{{freeze_depth: all, batch_size: 4, precision: {request.param}}}"
    trained = train(tmp_path_factory.mktemp("heads"), DATA, training=training)
    with hold(trained) as opened:
        opened.promote(here)
    return trained


def test_a_head_that_was_trained_in_a_stack_is_trained_so_again(head_only: Trained) -> None:
    assert all(can_fuse(trial, head_only.plan.sweep.speed) for trial in head_only.plan.trials)
    assert len(head_only.plan.units) == 1
    said: list[str] = []
    reproduce(head_only.layout.best, said.append)
    assert said[-1].startswith("equal to the last digit: 6 metrics and ")


def test_only_fp32_has_to_give_the_same_on_the_same_machine(head_only: Trained, tmp_path: Path) -> None:
    best = tmp_path / "best"
    shutil.copytree(head_only.layout.best, best)
    recorded = dict(resolved.read_beside(best).metrics)
    edit(best, metrics={**recorded, "loss": recorded["loss"] + 0.01}, spread=0.02)
    said: list[str] = []
    if head_only.plan.trials[0].training.precision == "fp32":
        with pytest.raises(
            VerificationError, match=r"hardware and the versions are those of the lock, and fp32"
        ):
            reproduce(best, said.append)
        return
    reproduce(best, said.append)
    assert "; bf16 is not exact; loss is 0.01 away from what was recorded, within 2 times" in said[-1]


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


def test_what_another_machine_gives_is_judged_by_the_spread_from_seed_to_seed(promoted: Opened) -> None:
    best = promoted.layout.best
    recorded = dict(resolved.read_beside(best).metrics)
    edit(best, "machine", processor="another one")
    edit(best, metrics={**recorded, "loss": recorded["loss"] + 0.01})
    with pytest.raises(
        VerificationError, match=r"processor was 'another one', now '.*; no spread from seed to seed is known"
    ):
        reproduce(best, print)

    edit(best, spread=0.02)
    said: list[str] = []
    reproduce(best, said.append)
    assert "loss is 0.01 away from what was recorded, within 2 times the spread (0.02)" in said[-1]

    edit(best, spread=0.001)
    with pytest.raises(
        VerificationError, match=r"loss is 0.01 away from what was recorded, more than 2 times"
    ):
        reproduce(best, print)

    edit(best, mean=recorded["loss"] + 0.001)
    reproduce(best, said.append)
    assert "loss is 0.001 away from the mean over fresh seeds, within 2 times the spread (0.001)" in said[-1]


def test_the_machine_of_a_driver_is_not_taken_for_that_of_a_worker(promoted: Opened, tmp_path: Path) -> None:
    best = promoted.layout.best
    lock = resolved.read_beside(best)
    assert lock.machine["torch"]
    worker = promoted.ranking[0].worker
    assert worker is not None
    trial = next(trial for trial in promoted.plan.trials if trial.key == lock.key)
    elsewhere = replace(worker, host="node-7")
    champion = resolved.Champion(trial, lock.epoch, lock.metrics, elsewhere, lock.fingerprints, None, 0.02)
    resolved.write_beside(tmp_path, promoted.layout, champion)
    shutil.copy(tmp_path / resolved.NAME, best)
    edit(best, metrics={**lock.metrics, "loss": lock.metrics["loss"] + 0.01})
    said: list[str] = []
    reproduce(best, said.append)
    assert "what trained it is not known (node-7); loss is 0.01 away from what was recorded" in said[-1]


def test_a_folder_without_a_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no sweep\.lock\.yaml"):
        reproduce(tmp_path, print)
    (tmp_path / resolved.NAME).write_text("name: tiny\n")
    with pytest.raises(UserError, match="does not say how the model was trained"):
        reproduce(tmp_path, print)
