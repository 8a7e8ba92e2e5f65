from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import TASKS
from finetune_sweep.train.architecture import describe
from finetune_sweep.train.weights import fingerprint, locate, read_config
from tests.tasks.models import tiny_vit, tiny_yolos


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tiny_vit(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_configuration_becomes_a_model_that_is_always_the_same(source: Path, tmp_path: Path) -> None:
    made = [locate("scratch:./vit", tmp_path, tmp_path / cache) for cache in ("one", "one", "two")]
    assert made[0] == made[1] != made[2]
    assert fingerprint(made[0]) == fingerprint(made[2])
    model, new = TASKS["image-classification"].build_model(made[0], ("a", "b"))
    assert new == ("classifier.bias", "classifier.weight")
    assert describe(read_config(made[0])).blocks == len(
        [n for n, _ in model.named_parameters() if "fc1.w" in n]
    )
    assert (source / "config.json").is_file()


def test_another_configuration_is_another_model(source: Path, tmp_path: Path) -> None:
    before = locate("scratch:./vit", tmp_path, tmp_path / "cache")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    after = locate("scratch:./vit", tmp_path, tmp_path / "cache")
    assert fingerprint(before) != fingerprint(after)


def test_a_folder_with_weights_is_not_a_configuration(tmp_path: Path) -> None:
    tiny_vit(tmp_path / "vit")
    with pytest.raises(UserError, match="holds weights; write the folder without 'scratch:'"):
        locate("scratch:./vit", tmp_path, tmp_path / "cache")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scratch:.*/vit: must be a folder with config\.json, it has none"):
        locate("scratch:./vit", tmp_path, tmp_path / "cache")


def test_tokens_and_places_are_not_all_the_same(tmp_path: Path) -> None:
    (tiny_yolos(tmp_path / "yolos") / "model.safetensors").unlink()
    made = locate("scratch:./yolos", tmp_path, tmp_path / "cache")
    model, new = TASKS["object-detection"].build_model(made, ("a", "b"))
    drawn = {name: p for name, p in model.named_parameters() if "tokens" in name or "positions" in name}
    assert drawn
    assert not drawn.keys() & set(new)
    assert all(parameter[0].unique(dim=0).shape == parameter[0].shape for parameter in drawn.values())
