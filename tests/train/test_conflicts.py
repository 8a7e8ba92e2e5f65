"""Which settings of layers a model cannot have together, over all epochs of a training, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep import plan
from finetune_sweep.errors import UserError
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.settings import Training
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.train.architecture import Architecture, Depth
from finetune_sweep.train.conflicts import check, frozen_to_the_end

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

BERT = Architecture("bert", 6, "small")
ALL = {"freeze_depth": "all", "unfreeze": {}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0),
        ({"freeze_depth": 2, "epochs": 9}, 2),
        ({**ALL, "epochs": 1}, 6),
        ({**ALL, "epochs": 4}, 3),
        ({**ALL, "epochs": 7}, "embeddings"),
        ({**ALL, "epochs": 8}, 0),
        ({**ALL, "epochs": 8, "lora": {"r": 2}}, "embeddings"),
        ({**ALL, "unfreeze": {"to_depth": 4}, "epochs": 8}, 4),
        ({"linear_probe": {"epochs": 2}, "epochs": 2}, 6),
        ({"linear_probe": {"epochs": 2}, "epochs": 3}, 0),
    ],
)
def test_what_stays_frozen_is_what_the_last_epoch_freezes(
    settings: dict[str, object], expected: Depth
) -> None:
    assert frozen_to_the_end(Training.model_validate(settings), BERT) == expected


def test_blocks_with_common_weights_are_open_as_soon_as_one_is() -> None:
    albert = Architecture("albert", 6, "small", shared=3)
    found = frozen_to_the_end(Training.model_validate({**ALL, "epochs": 2}), albert)
    assert found == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({**ALL, "reinit_layers": 1, "epochs": 8}, ""),
        ({**ALL, "reinit_layers": 3, "epochs": 4}, ""),
        (
            {**ALL, "reinit_layers": 4, "epochs": 4},
            r"the first 3 stay frozen through all 4 epochs .* write 0 to 3",
        ),
        ({"freeze_depth": 3, "reinit_layers": 4}, "the first 3 are frozen"),
        (
            {"linear_probe": {"epochs": 3}, "reinit_layers": 1, "epochs": 3},
            "the first 6 stay frozen through all 3",
        ),
        ({**ALL, "lora": {"r": 4}, "epochs": 2}, ""),
        ({**ALL, "lora": {"r": 4}, "epochs": 1}, "as the first 6 stay frozen through all 1 epochs"),
        ({"freeze_depth": "all", "lora": {"r": 4}}, "as freeze_depth is all and reinit_layers 0"),
        ({**ALL, "shrink_perturb": 0.5, "reinit_pooler": True, "epochs": 2}, ""),
        (
            {**ALL, "shrink_perturb": 0.5, "reinit_pooler": True, "epochs": 1},
            "that it could weaken, as the first 6",
        ),
    ],
)
def test_what_is_opened_later_can_be_erased_weakened_and_adapted(
    settings: dict[str, object], expected: str
) -> None:
    training = Training.model_validate(settings)
    if not expected:
        check(training, BERT, ["pooler.dense.weight"])
        return
    with pytest.raises(UserError, match=expected):
        check(training, BERT, ["pooler.dense.weight"])


def test_short_trainings_of_a_space_are_held_against_what_they_open(write_sweep: WriteSweep) -> None:
    """Of two blocks the second is opened in epoch 2."""
    training = "{freeze_depth: all, unfreeze: {}}"
    space = "{{epochs: {}, reinit_layers: [0, 1]}}"
    load_sweep(write_sweep(space=space.format("[2, 4]"), training=training), check=plan.check)
    refused = write_sweep(space=space.format("[1, 4]"), training=training)
    with pytest.raises(UserError, match=r"space\.reinit_layers: .* \(beside epochs 1; `when: \{epochs"):
        load_sweep(refused, check=plan.check)


@pytest.mark.parametrize(
    ("setting", "value", "right"),
    [
        ("reinit_layers", "1", "write 0"),
        ("reinit_pooler", "true", "write false"),
        ("shrink_perturb", "0.5", "write 1"),
        ("lora", "{r: 2}", "leave lora out"),
        ("freeze_depth", "1", "write 0"),
        ("freeze_depth", "embeddings", "write 0"),
    ],
)
def test_a_model_with_new_weights_has_nothing_that_was_pretrained(
    setting: str, value: str, right: str, write_sweep: WriteSweep, tiny_model: Path
) -> None:
    scratch = f"scratch:{_bare(tiny_model)}"
    expected = rf":\d+: training\.{setting}: {setting} .*: bare starts from new weights, .*; {right}$"
    with pytest.raises(UserError, match=expected):
        load_sweep(write_sweep(model=scratch, training=f"{{{setting}: {value}}}"), check=plan.check)
    load_sweep(
        write_sweep(training=f"{{{setting}: {value}}}"), check=plan.check
    )  # the same model, pretrained


def test_a_model_with_new_weights_can_be_opened_and_cut_and_be_one_of_several(
    write_sweep: WriteSweep, tiny_model: Path
) -> None:
    scratch = f"scratch:{_bare(tiny_model)}"
    settings = "freeze_depth: all, unfreeze: {}, epochs: 4, drop_layers: 1, layerwise_lr_decay: 0.9"
    file = write_sweep(model=scratch, space="{learning_rate: [1e-3]}", training=f"{{{settings}}}")
    load_sweep(file, check=plan.check)
    models = f"model: ['{scratch}', '{tiny_model}']"
    with pytest.raises(UserError, match=r"space\.freeze_depth: .* \(beside model scratch:.*`when: \{model: "):
        load_sweep(write_sweep(space=f"{{{models}, freeze_depth: [0, 1]}}"), check=plan.check)
    apart = f"freeze_depth: {{values: [0, 1], when: {{model: ['{tiny_model}']}}}}"
    load_sweep(write_sweep(space=f"{{{models}, {apart}}}"), check=plan.check)


def test_a_configuration_that_no_check_has_seen_is_not_trained(write_sweep: WriteSweep) -> None:
    """As one of a space with more cells than are looked at; here it is planned without a check."""

    def made(space: str) -> Plan:
        return make_plan(load_sweep(write_sweep(space=space, search="{type: random, trials: 1}")))

    expected = (
        r"sweep\.yaml:\d+: space\.reinit_layers: reinit_layers 2: tiny has 2 blocks, of which the first 1"
    )
    with pytest.raises(UserError, match=expected):
        made("{freeze_depth: [1], reinit_layers: [2]}")
    found = made("{freeze_depth: [0, 1], reinit_layers: [0]}")
    with pytest.raises(UserError, match=expected):
        found.searched({"freeze_depth": 1, "reinit_layers": 2})


def _bare(model: Path) -> Path:
    """The model's folder without its weights."""
    folder = model.parent / "bare"
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder
