"""What a sweep comes to: keys, shared trajectories, what is left to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep import disk, outlook, plan, settings
from finetune_sweep.errors import UserError
from finetune_sweep.events import Entry, Failure, TrialEnded, TrialPlanned
from finetune_sweep.plan import Plan, make_plan, remaining
from finetune_sweep.record import SweepRecord, replay
from finetune_sweep.selection import smallest_gain
from finetune_sweep.settings import Training
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import changeable_columns
from finetune_sweep.trial import Identity, Trial, work_units

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from tests.conftest import WriteSweep


def planned(file: Path, *sets: str) -> Plan:
    return make_plan(load_sweep(file, sets, plan.check))


def keys(made: Plan) -> list[str]:
    return [trial.key for trial in made.trials]


def test_a_grid_is_complete_and_each_trial_has_its_own_key(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep())

    assert [trial.config for trial in made.trials] == [
        {"learning_rate": 1e-3, "epochs": 1},
        {"learning_rate": 1e-3, "epochs": 2},
        {"learning_rate": 1e-2, "epochs": 1},
        {"learning_rate": 1e-2, "epochs": 2},
    ]
    assert len(set(keys(made))) == 4


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_changed_only_where_the_task_has_such(task: str, write_sweep: WriteSweep) -> None:
    columns = {column.name: "x" for column in TASKS[task].columns}
    sets = (f"task={task}", f"data.columns={json.dumps(columns)}", "metric=loss")
    file = write_sweep(extra="selection: {robustness: true}\n")

    def problems(*more: str) -> list[str]:
        try:
            load_sweep(file, [*sets, *more], plan.check_words)
        except UserError as error:
            return [str(problem).replace(f"{file}:", "") for problem in error.problems]
        return []

    robust = f"11: selection.robustness: {task} has no text that may be changed: leave robustness out"
    augment = f"training.augment: {task} has no text that may be changed: leave augment out"
    can_change = bool(changeable_columns(TASKS[task]))
    assert problems() == ([] if can_change else [robust])
    both = problems("training.augment={swap: 0.1}")
    assert [line.endswith(augment) for line in both] == ([] if can_change else [True, False])


@pytest.mark.parametrize("setting", ["augment.swap", "augment.copies"])
def test_a_searched_augmentation_is_refused_where_it_stands(setting: str, write_sweep: WriteSweep) -> None:
    file = write_sweep(space=f"{{{setting}: [0, 0.5]}}" if "swap" in setting else f"{{{setting}: [0, 1]}}")
    sets = ("task=token-classification", "data.columns={}", "metric=f1", "training.augment={swap: 0.1}")
    with pytest.raises(UserError, match=rf"sweep.yaml:5: space.{setting}: token-classification has no text"):
        load_sweep(file, sets, plan.check_words)


@pytest.mark.parametrize("task", TASKS)
def test_lengths_are_searched_only_by_what_they_do_not_cut(task: str, write_sweep: WriteSweep) -> None:
    columns = {column.name: "x" for column in TASKS[task].columns}
    file = write_sweep(space="{data.max_length: [4, 8]}")
    refused = []
    for metric in TASKS[task].metrics:
        try:
            load_sweep(
                file,
                (f"task={task}", f"data.columns={json.dumps(columns)}", f"metric={metric}"),
                plan.check_words,
            )
        except UserError as error:
            (problem,) = error.problems
            assert "sweep.yaml:5: space.data.max_length: trials of different lengths" in str(problem)
            refused.append(metric)
    writes = task in {"text-to-text", "image-captioning", "causal-lm"}
    assert refused == (
        list(TASKS[task].metrics) if writes else ["loss"] if task == "token-classification" else []
    )
    load_sweep(write_sweep(), (f"task={task}", "data.columns={}", "metric=loss"), plan.check_words)


def test_a_model_is_not_fetched_for_a_file_with_a_wrong_word(write_sweep: WriteSweep) -> None:
    file = write_sweep(model="hub:nobody/nothing")
    with pytest.raises(UserError) as raised:
        planned(file, "data.columns={txt: review, label: verdict}")
    (problem,) = raised.value.problems
    assert "is no column of text-classification, got 'txt' (did you mean 'text'?)" in str(problem)


def test_the_same_file_gives_the_same_keys_and_more_values_keep_them(write_sweep: WriteSweep) -> None:
    before = keys(planned(write_sweep()))
    after = keys(planned(write_sweep(space="{learning_rate: [1e-4, 1e-3, 1e-2], epochs: [1, 2]}")))

    assert after[2:] == before


@pytest.mark.parametrize(
    "change",
    [
        "training.weight_decay=0.02",
        "training.batch_size=8",
        "training.precision=bf16",
        "training.lr_schedule=linear",
        "training.early_stopping={patience: 1}",
        "training.layerwise_lr_decay=0.9",
        "training.l2_sp=0.1",
        "training.label_smoothing=0.1",
        "training.adversarial_epsilon=0.5",
        "training.lr_schedule=plateau",
        "training.linear_probe={}",
        "seed=1",
        "data.max_length=12",
        "data.split.seed=1",
    ],
)
def test_what_can_change_a_result_changes_the_keys(change: str, write_sweep: WriteSweep) -> None:
    file = write_sweep(space="{learning_rate: [1e-3, 1e-2], epochs: [1, 4]}")

    assert not set(keys(planned(file))) & set(keys(planned(file, change)))


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "retries=7",
        "resources_per_trial.cpu=0.5",
        "training.gradient_accumulation_steps=2",
        "training.weight_decay=0.01",
        "metric=loss",
        "tracking.experiment=elsewhere",
        "training.lr_schedule={type: constant, warmup_steps: 0}",
    ],
)
def test_what_cannot_change_a_result_leaves_the_keys(change: str, write_sweep: WriteSweep) -> None:
    file = write_sweep()

    assert keys(planned(file)) == keys(planned(file, change))


def test_keys_stay_what_they_are_from_version_to_version() -> None:
    """A change here loses every trial that users have finished: raise `RECIPE_VERSION` if it is meant."""
    trial = Identity("text-classification", "model", "data", 64, Training(learning_rate=1e-4), 3, 0)

    assert trial.key() == "43b7afd8fba415d6"


def test_every_field_says_whether_it_enters_the_key() -> None:
    def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield section
        for field in section.model_fields.values():
            for nested in settings.nested_models(field.annotation):
                yield from sections(nested)

    marks = {
        f"{section.__name__}.{name}": field.json_schema_extra
        for section in sections(Sweep)
        for name, field in section.model_fields.items()
    }

    assert len(marks) > 50
    assert {
        name for name, mark in marks.items() if mark not in (settings.IN_KEY, settings.NOT_IN_KEY)
    } == set()


def test_every_field_is_documented() -> None:
    fields = {name: field for name, field in Training.model_fields.items() if not field.description}

    assert fields == {}


def test_depths_that_freeze_the_same_are_one_trial(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep(space="{freeze_depth: [1, 50%, 2, all, 100%, 0, embeddings]}"))

    assert [trial.depth for trial in made.trials] == [1, 2, 0, "embeddings"]
    assert made.merged == 3


def test_trials_that_differ_only_in_epochs_share_a_trajectory(write_sweep: WriteSweep) -> None:
    units = planned(write_sweep()).units

    assert [[trial.epochs for trial in unit.trials] for unit in units] == [[1, 2], [1, 2]]
    assert {unit.trials[0].training.learning_rate for unit in units} == {1e-3, 1e-2}
    assert [unit.name for unit in units] == [unit.trials[-1].key for unit in units]


def test_nothing_is_shared_when_the_schedule_looks_ahead(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep(training="{lr_schedule: linear}"))

    assert all(len(unit.trials) == 1 for unit in made.units)
    assert outlook.look(made, SweepRecord()).epochs_shareable == {"constant": 4, "wsd": 6}


def test_a_schedule_that_looks_back_shares_its_training(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep(space="{epochs: [1, 2, 4]}", training="{lr_schedule: plateau}"))

    assert [[trial.epochs for trial in unit.trials] for unit in made.units] == [[1, 2, 4]]
    assert not made.units[0].together
    assert outlook.look(made, SweepRecord()).epochs_shareable == {}


ALONE = [
    "layerwise_lr_decay: 0.9, unfreeze: {}",
    "l2_sp: 0.1",
    "adversarial_epsilon: 0.1",
    "unfreeze: {every_epochs: 2}",
    "linear_probe: {}, unfreeze: {}",
]


@pytest.mark.parametrize("method", ALONE)
def test_methods_share_epochs_and_stay_out_of_stacks_of_heads(method: str, write_sweep: WriteSweep) -> None:
    space = "{learning_rate: [1e-3, 1e-2], epochs: [1, 3]}"
    units = planned(write_sweep(space=space, training=f"{{freeze_depth: all, {method}}}")).units

    assert [[trial.epochs for trial in unit.trials] for unit in units] == [[1, 3], [1, 3]]
    assert not any(unit.together for unit in units)


@pytest.mark.parametrize(
    ("training", "sets"),
    [
        ("gradient_accumulation_steps: 2", ()),
        ("drop_layers: 1", ()),
        ("batch_size: 4", ("speed.fuse_heads=false",)),
    ],
)
def test_heads_that_are_no_stack_share_their_trunk(
    training: str, sets: Sequence[str], write_sweep: WriteSweep
) -> None:
    file = write_sweep(
        space="{epochs: [5, 10]}", training=f"{{freeze_depth: all, lr_schedule: wsd, {training}}}"
    )
    made = planned(file, *sets)
    (unit,) = made.units
    assert (unit.branches, unit.epochs) == (True, 11)
    assert unit.cost > 1
    assert dict(outlook.look(made, SweepRecord()).lines())["trainings"].startswith(
        "1, 11 epochs in all; one by one"
    )


def test_heads_with_smoothed_labels_are_stacked_among_themselves(write_sweep: WriteSweep) -> None:
    space = "{freeze_depth: [all], label_smoothing: [0.0, 0.1], learning_rate: [1e-3, 1e-2]}"

    assert [len(unit.members) for unit in planned(write_sweep(space=space)).units] == [2, 2]


def test_the_outlook_says_what_is_opened_when_and_what_is_kept(write_sweep: WriteSweep) -> None:
    space = "{learning_rate: [1e-3, 1e-2]}"
    made = planned(write_sweep(space=space, training="{freeze_depth: all, unfreeze: {}, epochs: 4}"))
    (row,) = outlook.look(made, SweepRecord()).trained
    assert (row.depth, row.blocks_trained, row.parameters_trained) == (2, 2, row.parameters)
    assert "freezes 2 from epoch 1, 1 from epoch 2, embeddings from epoch 3, 0 from epoch 4; its" in str(row)
    assert "computed once, at most 0.1 MB in the cache" in row.cache

    training = "{freeze_depth: 1, adversarial_epsilon: 0.1}"
    (row,) = outlook.look(planned(write_sweep(space=space, training=training)), SweepRecord()).trained
    assert "in each epoch, as the adversarial step begins before them" in row.cache


def test_the_outlook_counts_only_what_is_opened_within_the_epochs(write_sweep: WriteSweep) -> None:
    """Of 2 blocks and the embeddings, 2 epochs open one block; 4 open all, and 6 no more: one row for both."""
    training = "{freeze_depth: all, unfreeze: {}}"
    made = planned(write_sweep(space="{epochs: [2, 4, 6]}", training=training))
    short, long = outlook.look(made, SweepRecord()).trained
    assert (short.blocks_trained, long.blocks_trained) == (1, 2)
    assert short.phases == "freezes 2 from epoch 1, 1 from epoch 2"
    assert long.phases == "freezes 2 from epoch 1, 1 from epoch 2, embeddings from epoch 3, 0 from epoch 4"
    frozen = planned(write_sweep(space="{freeze_depth: [1]}"))
    assert short.parameters_trained == outlook.look(frozen, SweepRecord()).trained[0].parameters_trained
    assert long.parameters_trained == long.parameters


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("method", ["reinit_layers: 1", "shrink_perturb: 0.5"])
def test_the_outlook_says_that_altered_blocks_are_not_kept(
    method: str, depth: int, write_sweep: WriteSweep
) -> None:
    """But those that stay frozen to the end are."""
    training = f"{{linear_probe: {{}}, freeze_depth: {depth}, {method}}}"
    space = "{learning_rate: [1e-3], epochs: [2]}"
    rows = outlook.look(planned(write_sweep(training=training, space=space)), SweepRecord()).trained
    word = "computed once" if depth else "in each epoch, as what is opened later begins with other weights"
    assert [word in row.cache for row in rows] == [True]


def test_the_outlook_says_that_shared_blocks_have_one_rate(
    write_sweep: WriteSweep, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AlbertConfig, AlbertModel

    folder = tmp_path / "albert"
    shutil.copytree(tiny_model, folder)
    config = AlbertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
    AlbertModel(config).save_pretrained(folder)
    space = "{layerwise_lr_decay: [1.0, 0.9]}"
    rows = outlook.look(planned(write_sweep(model=str(folder), space=space)), SweepRecord()).trained
    said = "3 blocks in a row share their weights, and so one learning rate: that of the last of them"
    assert [row.rates for row in rows] == ["", said]


def test_random_trials_are_reproducible_and_more_of_them_keep_the_first(write_sweep: WriteSweep) -> None:
    space = "{learning_rate: {low: 1e-5, high: 1e-1, log: true}, batch_size: [4, 8, 16]}"
    few = planned(write_sweep(space=space, search="{type: random, trials: 4, seed: 3}"))
    more = planned(write_sweep(space=space, search="{type: random, trials: 9, seed: 3}"))
    other = planned(write_sweep(space=space, search="{type: random, trials: 4, seed: 4}"))

    assert keys(more)[:4] == keys(few)
    assert len(more.trials) == 9
    assert not set(keys(other)) & set(keys(few))


def test_what_is_done_is_not_planned_again_and_a_failure_is_once_a_run(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep())
    first, second, third, _ = keys(made)
    ends = (
        TrialEnded(first, "finished", score=0.5),
        TrialEnded(second, "diverged", failure=Failure("diverged", "the loss is nan")),
        TrialEnded(third, "failed", failure=Failure("fault", "a bug")),
    )
    record = replay(Entry(0.0, event) for event in (*made.events(), *ends))

    assert [trial.key for unit in remaining(made, record, {}) for trial in unit.trials] == keys(made)[2:]
    assert [t.key for unit in remaining(made, record, {third: 1}) for t in unit.trials] == keys(made)[3:]


def test_params_have_the_same_names_for_every_trial_and_none_is_empty(write_sweep: WriteSweep) -> None:
    made = planned(
        write_sweep(space="{early_stopping: [null, {patience: 1}], lr_schedule: [constant, linear]}")
    )
    params = [event.params for event in made.events() if isinstance(event, TrialPlanned)]

    assert len({frozenset(each) for each in params}) == 1
    assert all(value is not None for each in params for value in each.values())


def test_the_data_of_a_trial_must_be_there(write_sweep: WriteSweep, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        planned(write_sweep(data=str(tmp_path / "nowhere.csv")))


def test_the_outlook_counts_what_is_trained(write_sweep: WriteSweep) -> None:
    seen = outlook.look(
        planned(write_sweep(space="{freeze_depth: [0, 1, all], epochs: [1, 3]}")), SweepRecord()
    )

    assert (seen.missing, seen.trainings, seen.epochs, seen.epochs_apart) == (6, 3, 9, 12)
    assert [(row.depth, row.blocks_trained, row.blocks) for row in seen.trained] == [
        (0, 2, 2),
        (1, 1, 2),
        (2, 0, 2),
    ]
    assert seen.trained[0].parameters_trained == seen.trained[0].parameters


def test_the_outlook_counts_what_is_left_and_what_is_adapted(write_sweep: WriteSweep) -> None:
    """Of width 16: a pooler has 16 * 16 + 16 = 272 values, rank 2 for query and value of a block 2 * 2 * 32 = 128."""
    space = "{drop_layers: [0, 1], lora: [null, {r: 2}]}"
    seen = outlook.look(planned(write_sweep(space=space)), SweepRecord())
    counts = {
        (row.title, row.blocks): (row.parameters_trained, row.parameters - row.parameters_trained)
        for row in seen.trained
    }
    (whole, none), (shorter, none_too) = (
        counts[("freeze_depth 0", 2)],
        counts[("freeze_depth 0, drop_layers 1", 1)],
    )
    assert none == none_too == 0
    assert counts[("freeze_depth embeddings, lora r 2 attention", 2)] == (2 * 128 + 272, whole - 272)
    assert counts[("freeze_depth embeddings, drop_layers 1, lora r 2 attention", 1)] == (
        128 + 272,
        shorter - 272,
    )
    assert seen.disk.kept > 0


def test_the_outlook_says_that_another_head_is_padded_and_has_no_pooler(write_sweep: WriteSweep) -> None:
    """The pooler of width 16 has 272 values."""
    seen = outlook.look(planned(write_sweep(space="{pooling: [default, mean]}")), SweepRecord())
    rows = {row.title: row for row in seen.trained}
    own, other = rows["freeze_depth 0"], rows["freeze_depth 0, another head"]
    assert (own.padded, other.padded) == (False, True)
    assert own.parameters - other.parameters == 272


def test_lora_of_rank_0_is_the_trial_without_it(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep(space="{lora.r: [0, 2], lora.target_modules: [attention, all-linear]}"))
    assert (len(made.trials), made.merged) == (3, 1)
    assert made.trials[0].key == planned(write_sweep(space="{epochs: [3]}")).trials[0].key


NEXT_TO_NOTHING = "as a cache of them would spare next to nothing"
PADDED = "in each epoch, as texts are padded: unpadding is off"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=0", ["", NEXT_TO_NOTHING, "computed once, at most 0.1 MB", "computed once, at most 0.0 MB"]),
        ("speed.prefix_cache=false", ["", "", "", ""]),
        (
            "speed.unpadding=false",
            ["", PADDED, PADDED, PADDED],
        ),
        (
            "speed.prefix_cache_bytes=9000",
            ["", NEXT_TO_NOTHING, "if the result fits (at most 0.1 MB", "computed once"],
        ),
        (
            "min_free_bytes=1000000000000000",
            ["", NEXT_TO_NOTHING, "if the result fits (at most 0.1 MB, the disk", "or once a worker if"],
        ),
    ],
)
def test_the_outlook_says_what_is_kept_of_frozen_blocks(
    change: str, words: list[str], write_sweep: WriteSweep
) -> None:
    made = planned(write_sweep(space="{freeze_depth: [0, embeddings, 1, all]}"), change)
    rows = outlook.look(made, SweepRecord()).trained

    assert all(word in row.cache for word, row in zip(words, rows, strict=True))
    assert [bool(word) for word in words] == [bool(row.cache) for row in rows]


def test_under_wsd_trials_share_their_trunk(write_sweep: WriteSweep) -> None:
    """The longest trains 10 epochs; of 5 epochs the last 2 are a decay of their own."""
    made = planned(
        write_sweep(space="{epochs: [5, 10]}", training="{lr_schedule: {type: wsd, decay_ratio: 0.4}}")
    )
    apart = planned(
        write_sweep(space="{epochs: [5, 10]}", training="{lr_schedule: wsd}"),
        "speed.share_trajectories=false",
    )

    assert [[trial.epochs for trial in unit.trials] for unit in made.units] == [[5, 10]]
    assert [len(unit.members) for unit in made.units] == [2]
    assert outlook.look(made, SweepRecord()).epochs == 12
    assert [unit.epochs for unit in apart.units] == [5, 10]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_outlook_says_what_other_schedules_would_train(schedule: str, write_sweep: WriteSweep) -> None:
    made = planned(write_sweep(space="{epochs: [5, 10]}", training=f"{{lr_schedule: {schedule}}}"))
    seen = outlook.look(made, SweepRecord())

    assert (seen.epochs, seen.epochs_shareable) == (15, {"constant": 10, "wsd": 11})
    assert (
        "nothing is shared under linear or cosine; constant would train 10, wsd 11"
        in dict(seen.lines())["trainings"]
    )


def test_trials_of_the_head_alone_are_one_work_unit(write_sweep: WriteSweep) -> None:
    space = "{freeze_depth: [1, all], learning_rate: [1e-3, 1e-2], batch_size: [4, 8], epochs: [1, 2]}"
    units = planned(write_sweep(space=space)).units
    apart = planned(write_sweep(space=space), "speed.fuse_heads=false").units

    assert sorted(len(unit.trials) for unit in units) == [2, 2, 2, 2, 4, 4]
    assert [[len(member.trials) for member in unit.members] for unit in units if unit.together] == [
        [2, 2]
    ] * 2
    assert {unit.trials[0].depth for unit in units if unit.together} == {2}
    assert [len(unit.trials) for unit in apart] == [2] * 8
    assert sum(unit.epochs for unit in units) == sum(unit.epochs for unit in apart) == 16


def test_a_work_unit_of_heads_has_a_bound(write_sweep: WriteSweep) -> None:
    space = "{freeze_depth: [all], learning_rate: {low: 1e-5, high: 1e-1, log: true, count: 70}}"

    assert [len(unit.members) for unit in planned(write_sweep(space=space)).units] == [64, 6]


def test_nothing_is_shared_where_it_is_switched_off(write_sweep: WriteSweep) -> None:
    units = planned(write_sweep(), "speed.share_trajectories=false").units

    assert [len(unit.trials) for unit in units] == [1] * 4


def test_the_outlook_says_what_the_finalists_cost_and_can_show(write_sweep: WriteSweep) -> None:
    """Two trainings of 2 epochs and the baseline's 3, on 3 seeds: 21 epochs."""
    made = planned(write_sweep(extra="selection: {finalists: 5, seeds: 3}\n"))
    seen = outlook.look(made, SweepRecord())
    assert (seen.final_runs, seen.final_epochs) == (9, 21)
    assert seen.smallest_gain == smallest_gain(3, made.rows["validation"], 2)
    text = dict(seen.lines())
    assert "9 runs, at most 21 epochs; the search has 4" in text["finalists"]
    assert f"a gain of {seen.smallest_gain:.3f} in accuracy" in text["can show"]

    by_loss = outlook.look(
        planned(write_sweep(extra="selection: {finalists: 1}\n"), "metric=loss"), SweepRecord()
    )
    assert (by_loss.final_runs, by_loss.smallest_gain) == (6, None)
    assert outlook.look(planned(write_sweep()), SweepRecord()).final_runs == 0


def test_seeds_do_not_share_a_training(write_sweep: WriteSweep) -> None:
    made = planned(write_sweep())
    other = [made.trial(trial.config, seed=7) for trial in made.trials]
    assert not {trial.key for trial in other} & set(keys(made))
    assert [len(unit.trials) for unit in work_units([*made.trials, *other])] == [2, 2, 2, 2]


def test_a_unit_is_as_long_as_its_longest_trial(write_sweep: WriteSweep) -> None:
    trials: tuple[Trial, ...] = planned(write_sweep()).trials
    backwards = work_units(replace(trial) for trial in reversed(trials))

    assert [unit.epochs for unit in backwards] == [2, 2]


def test_every_optimizer_has_its_size_in_a_checkpoint_for_resuming(write_sweep: WriteSweep) -> None:
    space = "{optimizer: [adamw, sgd, adafactor], freeze_depth: [all], unfreeze.blocks: [1, 2]}"
    made = planned(write_sweep(space=space))
    apart = [disk.estimate(replace(made, trials=(trial,))).per_worker for trial in made.trials[::2]]

    assert [part / apart[1] for part in apart] == [2.0, 1.0, 1.5]
    assert disk.estimate(made).per_worker == apart[0]
