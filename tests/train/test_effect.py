"""Which settings could have no effect, what is said of them, and which cells of a space are then one trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep import plan
from finetune_sweep.errors import UserError
from finetune_sweep.plan import make_plan
from finetune_sweep.settings import Training
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.train.architecture import Architecture
from finetune_sweep.train.effect import Subject, idle

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SUBJECT = Subject(
    task="text-classification",
    model="small",
    depth=0,
    opened=0,
    arch=Architecture("bert", 2, "small"),
    has_classes=True,
    has_words=True,
    has_pretrained=True,
)
HEAD = replace(SUBJECT, depth=2, opened=2)


@pytest.mark.parametrize(
    ("settings", "subject", "expected"),
    [
        ({}, HEAD, []),
        ({"layerwise_lr_decay": 0.9}, SUBJECT, []),
        ({"layerwise_lr_decay": 0.9}, replace(SUBJECT, depth=1, opened=1), []),
        ({"layerwise_lr_decay": 0.9}, HEAD, ["layerwise_lr_decay"]),
        ({"l2_sp": 0.1}, HEAD, []),
        ({"l2_sp": 0.1}, replace(HEAD, has_pretrained=False), ["l2_sp"]),
        ({"label_smoothing": 0.1}, replace(SUBJECT, has_classes=False), ["label_smoothing"]),
        ({"label_smoothing": 0.1}, SUBJECT, []),
        ({"adversarial_epsilon": 0.1}, replace(SUBJECT, has_words=False), ["adversarial_epsilon"]),
        ({"early_stopping": {"patience": 1}, "epochs": 3}, SUBJECT, []),
        ({"early_stopping": {"patience": 2}, "epochs": 3}, SUBJECT, ["early_stopping.patience"]),
        (
            {"early_stopping": {"patience": 1}, "epochs": 3, "linear_probe": {}},
            SUBJECT,
            ["early_stopping.patience"],
        ),
        ({"lr_schedule": "plateau", "epochs": 3}, SUBJECT, []),
        ({"lr_schedule": "plateau", "epochs": 2}, SUBJECT, ["lr_schedule.patience"]),
        (
            {"lr_schedule": "plateau", "early_stopping": {"patience": 1}, "epochs": 9},
            SUBJECT,
            ["lr_schedule.patience"],
        ),
        ({"lr_schedule": "plateau", "early_stopping": {"patience": 2}, "epochs": 9}, SUBJECT, []),
        ({"unfreeze": {}}, replace(SUBJECT, depth=2), []),
        ({"unfreeze": {}, "layerwise_lr_decay": 0.9, "linear_probe": {}}, replace(HEAD, opened=0), []),
        ({"unfreeze": {}}, SUBJECT, ["unfreeze"]),
        ({"unfreeze": {"every_epochs": 3}}, replace(SUBJECT, depth=2), ["unfreeze.every_epochs"]),
        ({"linear_probe": {}}, HEAD, ["linear_probe"]),
        ({"linear_probe": {"epochs": 3}}, SUBJECT, ["linear_probe.epochs"]),
        ({"linear_probe": {"epochs": 2}}, SUBJECT, []),
    ],
)
def test_a_setting_without_effect_is_found(
    settings: dict[str, object], subject: Subject, expected: list[str]
) -> None:
    found = idle(Training.model_validate(settings), subject)
    assert [each.setting for each in found] == expected


def load(file: Path, *sets: str) -> plan.Plan:
    return make_plan(load_sweep(file, sets, plan.check))


def test_cells_without_effect_are_the_trial_without_the_setting(write_sweep: WriteSweep) -> None:
    """Of the head alone nothing decays: four cells are three trials."""
    made = load(write_sweep(space="{freeze_depth: [0, all], layerwise_lr_decay: [1.0, 0.5]}"))
    assert [trial.config for trial in made.trials] == [
        {"freeze_depth": 0, "layerwise_lr_decay": 1.0},
        {"freeze_depth": 0, "layerwise_lr_decay": 0.5},
        {"freeze_depth": "all", "layerwise_lr_decay": 1.0},
    ]
    assert made.merged == 1
    plain = load(write_sweep(space="{freeze_depth: [0, all]}"))
    assert {trial.key for trial in plain.trials} < {trial.key for trial in made.trials}


def test_a_fixed_setting_that_one_cell_obeys_is_no_error(write_sweep: WriteSweep) -> None:
    file = write_sweep(space="{freeze_depth: [1, all]}", training="{layerwise_lr_decay: 0.5}")
    decays = [trial.training.layerwise_lr_decay for trial in load(file).trials]
    assert decays == [0.5, 1.0]


def test_patience_is_held_against_the_longest_training_and_stays_for_shared_ones(
    write_sweep: WriteSweep,
) -> None:
    made = load(write_sweep(space="{epochs: [1, 2, 4]}", training="{early_stopping: {patience: 2}}"))
    assert [len(unit.trials) for unit in made.units] == [3]
    with pytest.raises(UserError, match=r"sweep\.yaml:\d+: training\.early_stopping\.patience: 2 cannot end"):
        load(write_sweep(space="{epochs: [1, 2, 3]}", training="{early_stopping: {patience: 2}}"))


def test_conditions_of_the_space_are_heeded(write_sweep: WriteSweep) -> None:
    only = "{freeze_depth: [0, all], layerwise_lr_decay: {values: [0.5], when: {freeze_depth: [all]}}}"
    with pytest.raises(UserError, match=r"space\.layerwise_lr_decay: 0\.5 changes no rate"):
        load(write_sweep(space=only))
    load(write_sweep(space=only.replace("[all]", "[0]")))


def test_unfreezing_what_is_not_frozen_is_no_unfreezing(write_sweep: WriteSweep) -> None:
    made = load(
        write_sweep(space="{freeze_depth: [0, 1, all]}", training="{unfreeze: {to_depth: embeddings}}")
    )
    assert [(trial.depth, trial.opened) for trial in made.trials] == [
        (0, 0),
        (1, "embeddings"),
        (2, "embeddings"),
    ]
    assert made.trials[0].key == load(write_sweep(space="{freeze_depth: [0]}", training="{}")).trials[0].key
    assert [trial.head_only for trial in made.trials] == [False, False, False]


def test_a_depth_that_unfreezing_cannot_have_is_told_with_its_line(write_sweep: WriteSweep) -> None:
    file = write_sweep(space="{epochs: [4]}", training="{freeze_depth: all, unfreeze: {to_depth: 9}}")
    with pytest.raises(
        UserError, match=r"sweep\.yaml:\d+: training\.unfreeze\.to_depth: .* has 2 blocks"
    ) as told:
        load(file)
    assert "freeze_depth:" not in str(told.value)


def test_l2_sp_needs_something_that_was_pretrained(write_sweep: WriteSweep, tiny_model: Path) -> None:
    """The pooler of the tiny model is part of its head, and was pretrained."""
    assert load(write_sweep(training="{freeze_depth: all, l2_sp: 0.1}")).trials[0].training.l2_sp == 0.1
    new = write_sweep(model=f"scratch:{_without_weights(tiny_model)}", training="{l2_sp: 0.1}")
    with pytest.raises(UserError, match=r"training\.l2_sp: 0\.1 pulls nothing: all is new"):
        load(new)


def test_l2_sp_pulls_what_lora_trains_whole_and_no_new_head(write_sweep: WriteSweep) -> None:
    """Of a BERT that is its pooler, if neither another head nor new weights have taken its place."""
    adapted = "lora: {r: 2}, l2_sp: 0.1"
    assert load(write_sweep(training=f"{{{adapted}}}")).trials[0].training.l2_sp == 0.1
    for other in ("head: mlp", "reinit_pooler: true"):
        with pytest.raises(
            UserError, match=r"l2_sp: 0\.1 pulls nothing: lora trains new matrices .* is new;"
        ):
            load(write_sweep(training=f"{{{adapted}, {other}}}"))
    with pytest.raises(UserError, match=r"training\.l2_sp: 0\.1 pulls nothing: all is new"):
        load(write_sweep(training="{freeze_depth: embeddings, reinit_layers: 2, pooling: mean, l2_sp: 0.1}"))
    with pytest.raises(UserError, match=r"training\.l2_sp: 0\.1 pulls nothing: at freeze_depth 2 only"):
        load(write_sweep(training="{freeze_depth: all, head: mlp, l2_sp: 0.1}"))


def test_a_large_space_is_looked_at_as_well(write_sweep: WriteSweep) -> None:
    """Of 8 ** 4 * 2 = 8,192 cells; what waits for the validation loss depends on the epochs alone, which are fixed."""
    eight = [round(0.1 * step, 1) for step in range(1, 9)]
    names = ("l2_sp", "layerwise_lr_decay", "label_smoothing", "adversarial_epsilon")
    space = "".join(f"{name}: {eight}, " for name in names)
    waiting = "{epochs: 3, early_stopping: {patience: 9}, lr_schedule: {type: plateau, patience: 8}}"
    file = write_sweep(
        space=f"{{{space} freeze_depth: [0, 1]}}", search="{type: random, trials: 2}", training=waiting
    )
    with pytest.raises(UserError) as caught:
        load_sweep(file, check=plan.check)
    assert [problem.path for problem in caught.value.problems] == [
        "training.early_stopping.patience",
        "training.lr_schedule.patience",
    ]
    load_sweep(file, ["training.epochs=30"], plan.check)


def test_values_that_mean_the_same_are_one_trial(write_sweep: WriteSweep) -> None:
    def counted(space: str, training: str = "{}") -> tuple[int, int]:
        made = load(write_sweep(space=space, training=training))
        return len(made.trials), made.merged

    assert counted("{pooling: [mean], head: [default, linear]}") == (1, 1)
    assert counted("{pooling: [default, cls]}", "{head: linear}") == (1, 1)
    assert counted("{pooling: [cls, mean], head: [linear, mlp]}") == (4, 0)
    opening = "{freeze_depth: all, epochs: 4}"  # of two blocks and the embeddings
    assert counted("{unfreeze.blocks: [1, 2, 3, 4, 9]}", opening) == (3, 2)


def test_a_value_alone_keeps_the_name_of_its_trial(write_sweep: WriteSweep) -> None:
    """What is merged is named as the plainer one of its spellings is without the other."""
    both = load(write_sweep(space="{pooling: [mean], head: [linear]}")).trials[0]
    alone = load(write_sweep(space="{pooling: [mean]}")).trials[0]
    assert (both.key, both.training.head) == (alone.key, "default")
    three = "{freeze_depth: all, epochs: 4}"
    many, enough = (
        load(write_sweep(space=f"{{unfreeze.blocks: [{count}]}}", training=three)) for count in (9, 3)
    )
    assert many.trials[0].key == enough.trials[0].key


def test_what_is_waited_for_too_long_is_still_the_beginning_of_a_longer_training(
    write_sweep: WriteSweep,
) -> None:
    made = load(write_sweep(space="{epochs: [2, 9]}", training="{early_stopping: {patience: 4}}"))
    assert [len(unit.trials) for unit in made.units] == [2]


def _without_weights(model: Path) -> Path:
    folder = model.parent / "bare"
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder
