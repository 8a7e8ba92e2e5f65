"""Augmentation in a sweep: what a trial trains on, what it is called, and that nothing else changes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.events import Evaluated, TrialEnded
from finetune_sweep.layout import Layout
from finetune_sweep.outlook import look
from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.record import SweepRecord
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks.arrays import Encoded, Ragged
from finetune_sweep.tasks.processors import load_tokenizer
from finetune_sweep.train import weights
from finetune_sweep.trial import Trial
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SPACE = "{augment.copies: [0, 1, 2], learning_rate: [1e-2], epochs: [1]}"
TRAINING = "{precision: fp32, augment: {replacement: 0.3, swap: 0.2, punctuation: 0.3}}"


@pytest.fixture
def plan(write_sweep: WriteSweep) -> Plan:
    return make_plan(load_sweep(write_sweep(space=SPACE, training=TRAINING), check=check))


def texts(encoded: Encoded) -> list[tuple[int, ...]]:
    ids = encoded.columns["input_ids"]
    return [tuple(np.asarray(ids[row]).tolist()) for row in range(len(encoded))]


def labels(encoded: Encoded) -> list[int]:
    column = encoded.columns["labels"]
    assert not isinstance(column, Ragged)
    return [int(label) for label in column]


def trained_on(loaded: Loaded, trial: Trial) -> Encoded:
    folder = loaded.pretrained(trial.model).folder
    return loaded.encoded(loaded.training_rows(trial), folder, trial.max_length)


def keys(plan: Plan) -> list[str]:
    return [trial.key for trial in plan.trials]


def test_a_trial_trains_on_its_rows_and_their_copies(plan: Plan) -> None:
    loaded = Loaded(plan)
    none, once, twice = (loaded.job(trial)[0] for trial in plan.trials)

    count = plan.rows["train"]
    assert [len(job.train) for job in (none, once, twice)] == [count, 2 * count, 3 * count]
    assert texts(twice.train)[: 2 * count] == texts(once.train)
    assert texts(once.train)[:count] == texts(none.train)
    assert labels(twice.train) == labels(none.train) * 3
    assert not set(texts(none.train)) & set(texts(twice.train)[count:])
    for job in (once, twice):
        assert texts(job.validation) == texts(none.validation)
        assert not set(texts(job.validation)) & set(texts(job.train))


def test_replacement_takes_words_near_in_the_embedding_table_of_the_model(plan: Plan) -> None:
    loaded = Loaded(plan)
    trial = plan.trials[1]
    pretrained = loaded.pretrained(trial.model)
    tokenizer = load_tokenizer(pretrained.folder)
    table = pretrained.embedding_table().numpy()
    assert table.shape == (len(tokenizer), 16)
    augment = trial.training.augment
    assert augment is not None
    similar = loaded._similar(trial.model, augment, {"good"})
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word not in {"good", "a"}]
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    rows = tokenizer.get_vocab()
    nearest = sorted(words, key=lambda word: -float(unit[rows[word]] @ unit[rows["good"]]))
    assert list(similar["good"]) == nearest[:5]


def test_what_a_trial_trains_on_is_kept_and_the_same_in_another_process(plan: Plan) -> None:
    trial = plan.trials[2]
    first = texts(trained_on(Loaded(plan), trial))
    cache = Path(plan.sweep.cache or "")
    stored = sorted(str(path) for path in (cache / "tokens").iterdir())
    assert texts(trained_on(Loaded(plan), trial)) == first
    assert sorted(str(path) for path in (cache / "tokens").iterdir()) == stored
    program = (
        "import sys, pathlib\n"
        "from finetune_sweep.plan import make_plan\n"
        "from finetune_sweep.sweepfile import load_sweep\n"
        "from finetune_sweep.tune.loaded import Loaded\n"
        "from tests.tune.test_augmented import texts, trained_on\n"
        "sweep = load_sweep(pathlib.Path(sys.argv[1]), [f'cache={sys.argv[2]}'])\n"
        "plan = make_plan(sweep)\n"
        "print(texts(trained_on(Loaded(plan), plan.trials[2])))"
    )
    file = cache.parent / "sweep.yaml"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(file), str(cache.parent / "elsewhere")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.strip() == str(first)


def test_the_settings_enter_the_key_and_the_data_do_not_change(plan: Plan, write_sweep: WriteSweep) -> None:
    plain = make_plan(load_sweep(write_sweep(space="{learning_rate: [1e-2], epochs: [1]}")))
    assert plan.fingerprint == plain.fingerprint
    assert len(set(keys(plan))) == 3
    # No copies is the same trial as no augmentation.
    assert keys(plan)[0] == keys(plain)[0]
    assert [trial.params()["augment.copies"] for trial in plan.trials] == ["none", 1, 2]
    other = TRAINING.replace("swap: 0.2", "swap: 0.3")
    changed = make_plan(load_sweep(write_sweep(space=SPACE, training=other)))
    assert keys(changed)[0] == keys(plan)[0]
    assert not set(keys(changed)[1:]) & set(keys(plan)[1:])


def test_other_seeds_have_other_copies(plan: Plan) -> None:
    loaded, trial = Loaded(plan), plan.trials[1]
    other = trained_on(loaded, replace(trial, seed=1))
    assert texts(other)[: plan.rows["train"]] == texts(trained_on(loaded, trial))[: plan.rows["train"]]
    assert texts(other) != texts(trained_on(loaded, trial))


def test_a_unit_costs_its_copies(plan: Plan) -> None:
    assert [unit.cost for unit in plan.units] == [1.0, 2.0, 3.0]
    assert ("", "up to 2 changed copies of each training row (augment)") in look(plan, SweepRecord()).lines()


def test_a_sweep_over_copies_runs(plan: Plan, tmp_path: Path) -> None:
    layout, loaded = Layout(tmp_path, "tiny"), Loaded(plan)
    steps = {}
    for unit in plan.units:
        events = [event for moment in run_unit(Assignment(unit), plan, layout, loaded) for event in moment]
        (ended,) = (event for event in events if isinstance(event, TrialEnded))
        assert ended.state == "finished"
        (steps[unit.name],) = (event.step for event in events if isinstance(event, Evaluated))
    count = plan.rows["train"]
    assert list(steps.values()) == [-(-count * passes // 16) for passes in (1, 2, 3)]


def test_a_worker_has_no_more_states_on_the_disk_than_it_may(write_sweep: WriteSweep, tmp_path: Path) -> None:
    """Each trial has training rows of its own; those of the last one can be deleted once they are not open."""
    sweep = write_sweep(
        space="{augment.typos: [0.1, 0.2, 0.3], freeze_depth: [1], epochs: [1]}", training="{precision: fp32}"
    )
    whole = make_plan(load_sweep(sweep, check=check))
    Loaded(whole).job(whole.trials[0])
    folder = Path(whole.sweep.cache or "") / "states"

    def kept() -> dict[Path, int]:
        return {file: file.stat().st_size for file in folder.glob("*/*/*.npy")}

    def opened() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]

    cap = sum(kept().values()) * 3 // 2
    plan = make_plan(load_sweep(sweep, [f"speed.prefix_cache_bytes={cap}"], check))
    loaded, seen = Loaded(plan), set[Path]()
    for unit in plan.units:
        assert list(run_unit(Assignment(unit), plan, Layout(tmp_path, "tiny"), loaded))
        assert opened()
        assert not [line for line in opened() if "(deleted)" in line]  # what is gone takes no room any more
        assert sum(kept().values()) <= cap
        seen |= {file.parent for file in kept()}
    assert len(seen) == 4  # of each trial, and of the validation rows
    assert len({file.parent for file in kept()}) == 2


# ---------------------------------------------------------------------------------------- synonyms, spaces


def first_folder(plan: Plan) -> Path:
    return weights.locate(plan.sweep.model, Path(), Path(plan.sweep.cache or ""))


def with_synonyms(write_sweep: WriteSweep, tmp_path: Path, lines: str) -> Plan:
    (tmp_path / "synonyms.txt").write_text(lines, encoding="utf-8")
    training = "{augment: {replacement: 1.0, synonyms: synonyms.txt}}"
    return make_plan(load_sweep(write_sweep(space="{epochs: [1]}", training=training), check=check))


def test_synonyms_of_a_file_enter_the_key_by_their_content(write_sweep: WriteSweep, tmp_path: Path) -> None:
    first = with_synonyms(write_sweep, tmp_path, "good: great\nbad: poor\n")
    rows = trained_on(Loaded(first), first.trials[0])
    vocabulary = load_tokenizer(weights.locate(first.sweep.model, Path(), tmp_path)).get_vocab()
    new = {vocabulary["good"]: vocabulary["great"], vocabulary["bad"]: vocabulary["poor"]}
    count = first.rows["train"]
    replaced = [tuple(new.get(token, token) for token in text) for text in texts(rows)[:count]]
    held_out = texts(Loaded(first).encoded("validation", first_folder(first), 16))
    held_out += texts(Loaded(first).encoded("test", first_folder(first), 16))
    expected = [
        text
        for text, before in zip(replaced, texts(rows), strict=False)
        if text != before and text not in held_out
    ]
    assert texts(rows)[count:] == expected
    assert len(expected) < sum(text != before for text, before in zip(replaced, texts(rows), strict=False))

    second = with_synonyms(write_sweep, tmp_path, "good: poor\nbad: great\n")
    assert keys(second) != keys(first)
    assert texts(trained_on(Loaded(second), second.trials[0])) != texts(rows)


def test_a_synonym_file_that_cannot_be_read_is_told_at_once(write_sweep: WriteSweep, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"synonyms\.txt:1: must be `word: similar, similar`, got 'good'"):
        with_synonyms(write_sweep, tmp_path, "good\n")


def trials(write_sweep: WriteSweep, space: str, training: str = "{}") -> tuple[tuple[Trial, ...], int]:
    plan = make_plan(load_sweep(write_sweep(space=space, training=training), check=check))
    return plan.trials, plan.merged


def test_cells_in_which_nothing_is_added_are_one_trial(write_sweep: WriteSweep) -> None:
    found, merged = trials(write_sweep, "{augment.swap: [0.0, 0.1], augment.copies: [0, 1, 2]}")
    # Without a swap no copy differs, without a copy nothing is swapped: 4 of 6 cells are the plain training.
    assert (len(found), merged) == (3, 3)
    assert [trial.training.passes for trial in found] == [1, 2, 3]


def test_augmentation_is_searched_as_a_whole_too(write_sweep: WriteSweep) -> None:
    found, _ = trials(write_sweep, "{augment: [null, {punctuation: 0.3}, {deletion: 0.1, copies: 2}]}")
    assert [trial.training.passes for trial in found] == [1, 2, 3]


def test_copies_without_any_rate_are_told(write_sweep: WriteSweep) -> None:
    with pytest.raises(UserError, match="copies 2 without a rate repeats each row unchanged"):
        trials(write_sweep, "{augment.copies: [2]}")
    with pytest.raises(UserError, match=r"training\.augment: copies 0 adds no row"):
        trials(write_sweep, "{epochs: [1]}", "{augment: {swap: 0.1, copies: 0}}")
