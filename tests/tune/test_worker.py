"""A work unit in this process: what it tells, what it stores, and how it goes on after a kill."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file

from finetune_sweep.durable import check_folder, remove_folder, write_atomic
from finetune_sweep.errors import StorageError
from finetune_sweep.events import CheckpointWritten, Evaluated, Event, TrialEnded, UnitStarted
from finetune_sweep.layout import CHANGED_TENSORS, VALIDATION_PREDICTIONS, Layout
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.train import weights
from finetune_sweep.train.state import Snapshot
from finetune_sweep.trial import WorkUnit
from finetune_sweep.tune import resume, watch
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SPACE = "{learning_rate: [1e-2], epochs: [2, 3, 5]}"


@pytest.fixture
def plan(write_sweep: WriteSweep) -> Plan:
    return make_plan(load_sweep(write_sweep(space=SPACE)))


def start(plan: Plan, layout: Layout, assignment: Assignment | None = None) -> Iterator[tuple[Event, ...]]:
    return run_unit(assignment or Assignment(plan.units[0]), plan, layout, Loaded(plan))


def results(events: list[Event]) -> list[tuple[int, float, float]]:
    return [(e.epoch, e.train_loss, e.metrics["loss"]) for e in events if isinstance(e, Evaluated)]


def ends(events: list[Event]) -> list[TrialEnded]:
    return [event for event in events if isinstance(event, TrialEnded)]


def all_of(moments: Iterator[tuple[Event, ...]]) -> list[Event]:
    return [event for moment in moments for event in moment]


def until_epoch(moments: Iterator[tuple[Event, ...]], epoch: int) -> list[Event]:
    """Takes events until an epoch has been told and the next one was asked for, then drops the training."""
    events: list[Event] = []
    for moment in moments:
        events += moment
        if any(isinstance(event, Evaluated) and event.epoch > epoch for event in moment):
            break
    return events


def write_at_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAYS", "MAY_LOSE_S"):
        monkeypatch.setattr(resume, name, 0.0)


def test_each_trial_of_a_trajectory_ends_at_its_own_epoch(plan: Plan, tmp_path: Path) -> None:
    events = all_of(start(plan, Layout(tmp_path, "tiny")))

    assert isinstance(events[0], UnitStarted)
    assert [e.epoch for e in events if isinstance(e, Evaluated)] == [1, 2, 3, 4, 5]
    assert [(end.state, end.epochs_done) for end in ends(events)] == [("finished", n) for n in (2, 3, 5)]
    keys = [len(event.keys) for event in events if isinstance(event, Evaluated)]
    assert keys == [3, 3, 2, 1, 1]


def test_what_finalists_said_of_the_rows_is_kept(plan: Plan, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "tiny")
    (*_, last) = ends(all_of(start(plan, layout, Assignment(plan.units[0], predictions=True))))
    assert last.best_epoch is not None
    folder = layout.predictions(last.key, last.best_epoch)
    check_folder(folder)
    said = Predictions.load(folder / VALIDATION_PREDICTIONS)
    assert float((said.values.argmax(axis=1) == said.labels).mean()) == last.score

    remove_folder(folder)
    all_of(start(plan, layout))
    assert not folder.exists()
    trial = next(trial for trial in plan.trials if trial.key == last.key)
    again = Assignment(WorkUnit((trial,)), rebuild=last.key, predictions=True)
    assert ends(all_of(start(plan, layout, again))) == []
    check_folder(folder)


def test_the_stored_tensors_are_those_of_the_epoch_that_counts(plan: Plan, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "tiny")
    end = ends(all_of(start(plan, layout)))[-1]

    assert end.checkpoint is not None
    assert end.checkpoint.endswith(f"epoch-{end.best_epoch:04d}")
    check_folder(layout.root / end.checkpoint)


def test_a_score_below_the_bar_is_not_stored(plan: Plan, tmp_path: Path) -> None:
    events = all_of(start(plan, Layout(tmp_path, "tiny"), Assignment(plan.units[0], bar=2.0)))

    assert [end.checkpoint for end in ends(events)] == [None] * 3
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_unit_that_was_cut_off_goes_on_as_if_it_had_not_been(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = all_of(start(plan, Layout(tmp_path / "whole", "tiny")))
    write_at_every_epoch(monkeypatch)
    layout = Layout(tmp_path / "cut", "tiny")
    until_epoch(start(plan, layout), 3)
    assert [path.name for path in sorted(layout.root.glob("trials/*/resume-*"))] == [
        "resume-0002-00000012",
        "resume-0003-00000018",
    ]

    resumed = all_of(start(plan, layout))

    assert results(resumed) == results(whole)
    assert [replace(end, checkpoint=None) for end in ends(resumed)] == [
        replace(end, checkpoint=None) for end in ends(whole)
    ]
    last = ends(whole)[-1].checkpoint
    assert last is not None
    expected = load_file(tmp_path / "whole" / "tiny" / last / CHANGED_TENSORS)
    found = load_file(layout.root / last / CHANGED_TENSORS)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert not list(layout.root.glob("trials/*/resume-*"))


@pytest.mark.parametrize(
    "settings",
    [
        "lr_schedule: constant",
        "lr_schedule: {type: wsd, decay_ratio: 0.4}",
        "lr_schedule: {type: plateau, patience: 1}, optimizer: adafactor, l2_sp: 0.1",
        "freeze_depth: all, unfreeze: {}, layerwise_lr_decay: 0.9",
        "linear_probe: {epochs: 2}, label_smoothing: 0.1",
        "freeze_depth: 1, adversarial_epsilon: 0.1, unfreeze: {}, lr_schedule: {type: wsd, decay_ratio: 0.4}",
    ],
)
def test_a_unit_that_is_asked_to_stop_stores_its_step_and_goes_on_from_it(
    settings: str, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = f"{{precision: fp32, {settings}}}"
    plan = make_plan(load_sweep(write_sweep(space=SPACE, training=training)))
    whole = all_of(start(plan, Layout(tmp_path / "whole", "tiny")))
    layout = Layout(tmp_path / "cut", "tiny")
    for steps in (4, 9, 11):
        asked = itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(watch.StopSign, "is_up", lambda _, asked=asked, steps=steps: next(asked) >= steps)
            told = all_of(start(plan, layout))
        assert len(results(told)) < len(results(whole))
        assert set(results(told)) <= set(results(whole))
        assert list(layout.root.glob("trials/*/resume-*"))

    resumed = all_of(start(plan, layout))

    assert set(results(resumed)) == set(results(whole))
    assert {end.key: replace(end, checkpoint=None) for end in ends(resumed)} == {
        end.key: replace(end, checkpoint=None) for end in ends(whole)
    }
    assert not list(layout.root.glob("trials/*/resume-*"))


def test_the_stop_sign_is_seen_where_the_driver_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_S", 0.0)
    layout = Layout(tmp_path, "tiny")
    sign = watch.StopSign(layout.stop)

    assert not sign.is_up()
    write_atomic(layout.stop, b"")
    assert sign.is_up()
    layout.stop.unlink()
    assert not sign.is_up()


def test_a_worker_that_hangs_is_ended_and_leaves_what_it_was_doing(tmp_path: Path) -> None:
    note = tmp_path / "hang.txt"
    program = (
        "import pathlib, time\n"
        "from finetune_sweep.tune.watch import Watchdog\n"
        "def stuck():\n"
        "    time.sleep(600)\n"
        "dog = Watchdog(0.2)\n"
        f"with dog.over(pathlib.Path({str(note)!r}), ['a1', 'b2']):\n"
        "    for _ in range(3):\n"
        "        time.sleep(0.12)\n"
        "        dog.beat()\n"
        "    stuck()\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)

    assert ended.returncode == 1
    missing = tmp_path / "none.txt"
    missing.write_text("a1 c3\n")
    assert "in stuck" in watch.stacks_of_hang([missing, note], {"b2", "c3"})
    assert watch.stacks_of_hang([missing, note], {"c3"}) == ""


def test_a_worker_that_works_is_left_alone_and_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "tiny")
    events = all_of(start(plan, layout))

    assert {end.state for end in ends(events)} == {"finished"}
    assert not layout.hang(plan.units[0].name).exists()


def growing(*units: tuple[str, float]) -> list[bool]:
    """Whether the worker is to be replaced after each of these units of a model, which leaves GiB of memory held."""
    held, found = 0, []
    growth = watch.Growth(lambda: held)
    for model, gib in units:
        held = int(gib * (1 << 30))
        found.append(growth.is_too_much(model))
    return found


def test_a_worker_is_to_be_replaced_when_it_holds_twice_what_it_held_after_its_first_unit() -> None:
    assert growing(("small", 0.5), ("small", 1), ("small", 1.5), ("small", 2)) == [False, False, False, True]
    assert growing(("large", 3), ("large", 6), ("large", 7)) == [False, False, True]


def test_a_larger_model_is_no_growth_and_each_model_has_its_own_measure() -> None:
    assert growing(*[("small", 0.7), ("large", 2.7)] * 3) == [False] * 6
    assert growing(("small", 0.7), ("large", 2.7), ("small", 2.0)) == [False, False, True]
    assert growing(("large", 2.7), ("small", 0.7), ("large", 5.5)) == [False, False, True]


def test_what_a_large_model_left_freed_is_given_back_before_a_worker_is_replaced() -> None:
    """A C library keeps the tensors that it was given back as long as one above them is held."""
    program = (
        "import torch\n"
        "from finetune_sweep.tune import watch\n"
        "watch._GROWTH_BYTES = 64 << 20\n"
        "torch.zeros(20 << 20, dtype=torch.uint8)  # from now on blocks of this size come from the heap\n"
        "growth = watch.Growth()\n"
        "assert not growth.is_too_much('small')\n"
        "large = [torch.ones(1 << 20, dtype=torch.uint8) for _ in range(1500)]\n"
        "above = torch.ones(1 << 20, dtype=torch.uint8)\n"
        "assert not growth.is_too_much('large')\n"
        "del large\n"
        "before = watch.resident_bytes()\n"
        "assert not growth.is_too_much('small'), watch.resident_bytes()\n"
        "assert before - watch.resident_bytes() > 1 << 30\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_memory_of_this_process_is_known() -> None:
    before = watch.resident_bytes()
    held = np.ones(100 << 20, dtype=np.uint8)

    assert watch.resident_bytes() - before >= 0.9 * held.nbytes


def test_a_mapped_file_is_no_memory_of_the_worker(tmp_path: Path) -> None:
    """Else a cache of states would look as if the worker grew."""
    np.save(tmp_path / "states.npy", np.ones(100 << 20, dtype=np.uint8))
    mapped = np.load(tmp_path / "states.npy", mmap_mode="r")
    before = watch.resident_bytes()
    assert mapped.sum(dtype=np.int64) == mapped.size
    assert watch.resident_bytes() - before < 0.1 * mapped.nbytes


@pytest.mark.parametrize(
    ("epoch_s", "write_s", "written"),
    [
        (10.0, 0.0, []),
        (50.0, 0.0, [2, 4, 6, 8]),
        (50.0, 4.0, [2, 6]),
        (300.0, 0.0, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_a_kill_costs_two_minutes_or_an_epoch_and_writing_little(
    epoch_s: float, write_s: float, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def save(_tensors: object, _file: object) -> None:
        clock[0] += write_s

    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(resume, "save_file", save)
    checkpoints = resume.Checkpoints(Layout(tmp_path, "tiny"), "unit")
    epochs = []
    for epoch in range(1, 9):
        clock[0] += epoch_s
        if checkpoints.is_due():
            epochs.append(epoch)
            checkpoints.write(Snapshot({}, epoch, epoch, 1, ()), None)
    assert epochs == written


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at_every_epoch(monkeypatch)
    layout = Layout(tmp_path, "tiny")
    until_epoch(start(plan, layout), 3)
    newest = max(layout.root.glob("trials/*/resume-*"))
    tensors = newest / "state.safetensors"
    content = bytearray(tensors.read_bytes())
    match damage:
        case "cut":
            tensors.write_bytes(content[:-7])
        case "flipped":
            content[-9] ^= 1
            tensors.write_bytes(content)
        case "emptied":
            tensors.write_bytes(b"")
        case _:
            (newest / "manifest.json").unlink()

    found = resume.Checkpoints(layout, plan.units[0].name).newest()

    assert found is not None
    assert found.snapshot.epoch == 2


def test_a_trial_is_trained_again_for_its_checkpoint_alone(plan: Plan, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "tiny")
    first = ends(all_of(start(plan, layout)))[0]
    alone = Assignment(replace(plan.units[0], trials=plan.units[0].trials[:1]), rebuild=first.key)

    events = all_of(start(plan, layout, alone))

    assert [type(event) for event in events] == [CheckpointWritten]
    assert isinstance(events[0], CheckpointWritten)
    assert first.checkpoint is not None
    rebuilt = load_file(layout.root / events[0].checkpoint / CHANGED_TENSORS)
    original = load_file(layout.root / first.checkpoint / CHANGED_TENSORS)
    assert all(rebuilt[name].equal(tensor) for name, tensor in original.items())


def test_a_training_that_diverges_ends_all_trials_that_are_open(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    text = (
        "{learning_rate: [9.9], epochs: [1, 2], optimizer: [sgd], max_grad_norm: [0.0], weight_decay: [9.9]}"
    )
    plan = make_plan(load_sweep(write_sweep(space=text, extra="seed: 1\n")))
    settings = plan.units[0].trials[-1].training.model_copy(update={"learning_rate": 1e30})
    trials = tuple(
        replace(t, training=settings.model_copy(update={"epochs": t.epochs})) for t in plan.units[0].trials
    )

    ended = ends(
        all_of(start(plan, Layout(tmp_path, "tiny"), Assignment(replace(plan.units[0], trials=trials))))
    )

    assert {end.state for end in ended} == {"diverged"}
    assert all(end.failure is not None and end.failure.kind == "diverged" for end in ended)


def test_a_storage_that_refuses_ends_the_sweep_and_no_trial(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "trials").write_text("a file where a folder has to be")

    with pytest.raises(StorageError, match="could not be written"):
        all_of(start(plan, Layout(tmp_path, "tiny")))


def test_a_model_that_changed_since_the_plan_ends_the_trials_naming_both(
    write_sweep: WriteSweep, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    plan = make_plan(load_sweep(write_sweep(space=SPACE, model=str(model))))
    config = model / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-06'))
    now = weights.fingerprint(model)

    ended = ends(all_of(start(plan, Layout(tmp_path, "tiny"))))

    assert now != plan.models[str(model)]
    assert {end.state for end in ended} == {"failed"}
    failure = ended[0].failure
    assert failure is not None
    assert failure.kind == "fault"
    assert f"its fingerprint was {plan.models[str(model)]}, now it is {now}" in failure.message


HEADS = "{learning_rate: [1e-2, 1e-3, 1e-4], weight_decay: [0, 0.1], epochs: [1, 3], freeze_depth: [all]}"


def test_heads_that_are_trained_together_are_trials_of_their_own(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    plan = make_plan(load_sweep(write_sweep(space=HEADS, extra="keep_checkpoints: 2\n")))
    layout = Layout(tmp_path, "tiny")
    (unit,) = plan.units
    events = all_of(start(plan, layout))
    alone = [all_of(start(plan, Layout(tmp_path, "one"), Assignment(member))) for member in unit.members]

    assert len(unit.members) == 6
    assert [e.unit for e in events if isinstance(e, UnitStarted)] == [member.name for member in unit.members]
    by_unit = {
        m.name: [e for e in events if isinstance(e, Evaluated) and e.unit == m.name] for m in unit.members
    }
    for member, single in zip(unit.members, alone, strict=True):
        assert results(list(by_unit[member.name])) == results(single)
        assert [e.keys for e in by_unit[member.name]] == [e.keys for e in single if isinstance(e, Evaluated)]
    expected = {end.key: replace(end, checkpoint=None) for single in alone for end in ends(single)}
    assert {end.key: replace(end, checkpoint=None) for end in ends(events)} == expected
    best = sorted(ends(events), key=lambda end: -(end.score or 0))[:2]
    for end in best:
        assert end.checkpoint is not None
        check_folder(layout.root / end.checkpoint)


def test_a_head_that_diverges_ends_alone(write_sweep: WriteSweep, tmp_path: Path) -> None:
    text = "{learning_rate: [0.1, 9.9], epochs: [2], freeze_depth: [all], optimizer: [sgd], max_grad_norm: [0.0]}"
    plan = make_plan(load_sweep(write_sweep(space=text)))
    calm, wild = plan.units[0].trials
    wild = replace(wild, training=wild.training.model_copy(update={"learning_rate": 1e30}))
    unit = replace(plan.units[0], trials=(calm, wild), together=(WorkUnit((calm,)), WorkUnit((wild,))))

    ended = ends(all_of(start(plan, Layout(tmp_path, "tiny"), Assignment(unit))))

    assert {end.key: end.state for end in ended} == {calm.key: "finished", wild.key: "diverged"}


def test_a_head_is_trained_again_for_its_checkpoint_to_the_last_digit(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    plan = make_plan(load_sweep(write_sweep(space=HEADS, extra="keep_checkpoints: 12\n")))
    layout = Layout(tmp_path, "tiny")
    end = ends(all_of(start(plan, layout)))[-1]
    assert end.checkpoint is not None
    original = load_file(layout.root / end.checkpoint / CHANGED_TENSORS)
    trial = next(trial for trial in plan.trials if trial.key == end.key)

    events = all_of(start(plan, Layout(tmp_path, "again"), Assignment(WorkUnit((trial,)), rebuild=end.key)))

    assert [type(event) for event in events] == [CheckpointWritten]
    (written,) = (event.checkpoint for event in events if isinstance(event, CheckpointWritten))
    rebuilt = load_file(tmp_path / "again" / written / CHANGED_TENSORS)
    assert all(rebuilt[name].equal(tensor) for name, tensor in original.items())


LEVERS = "{learning_rate: [1e-2, 1e-3], epochs: [1, 2], freeze_depth: [0, 1, all]}"


@pytest.mark.parametrize("switch", ["share_trajectories", "prefix_cache", "fuse_heads", "unpadding"])
def test_a_switch_of_the_sweep_file_changes_no_result(
    switch: str, write_sweep: WriteSweep, tiny_model: Path, tmp_path: Path
) -> None:
    """Without dropout, so that texts with padding need no other random numbers."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_bytes())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config | off), encoding="utf-8")
    sweep = write_sweep(space=LEVERS, model=str(model))

    def losses(name: str, *sets: str) -> tuple[int, dict[str, list[float]]]:
        plan = make_plan(load_sweep(sweep, sets))
        loaded, layout = Loaded(plan), Layout(tmp_path / name, "tiny")
        told = [
            event
            for unit in plan.units
            for event in all_of(run_unit(Assignment(unit), plan, layout, loaded))
            if isinstance(event, Evaluated)
        ]
        by_key = {t.key: [e.metrics["loss"] for e in told if t.key in e.keys] for t in plan.trials}
        return len(plan.units), by_key

    (units, spared), (more, plain) = losses("on"), losses("off", f"speed.{switch}=false")
    assert units < more  # a stack of heads needs the cache, and the cache needs unpadding
    assert spared.keys() == plain.keys()
    assert len(spared) == 12
    for key, values in plain.items():
        assert spared[key] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "ended"),
    [
        ("lr_schedule: {type: plateau, patience: 1}, learning_rate: 0.3", [2, 4, 7]),
        (
            "lr_schedule: {type: plateau, patience: 1}, early_stopping: {patience: 2, min_delta: 100.0}",
            [2, 3, 3],
        ),
        ("early_stopping: {patience: 1, min_delta: 100.0}", [2, 2, 2]),
        ("early_stopping: {patience: 2, min_delta: 100.0, monitor: metric}", [2, 3, 3]),
        ("early_stopping: {patience: 4, min_delta: 100.0}", [2, 4, 5]),
    ],
)
def test_trials_of_a_trajectory_come_to_what_each_comes_to_alone(
    settings: str, ended: list[int], write_sweep: WriteSweep, tmp_path: Path
) -> None:
    sweep = write_sweep(space="{epochs: [2, 4, 7]}", training=f"{{precision: fp32, {settings}}}")

    def trained(name: str, *sets: str) -> tuple[Plan, list[Event]]:
        plan = make_plan(load_sweep(sweep, sets))
        layout = Layout(tmp_path / name, "tiny")
        return plan, [e for unit in plan.units for e in all_of(start(plan, layout, Assignment(unit)))]

    plan, shared = trained("on")
    separate, apart = trained("off", "speed.share_trajectories=false")

    assert (len(plan.units), len(separate.units)) == (1, 3)
    assert [end.epochs_done for end in sorted(ends(shared), key=lambda end: end.epochs_done)] == ended
    assert {end.key: replace(end, checkpoint=None) for end in ends(shared)} == {
        end.key: replace(end, checkpoint=None) for end in ends(apart)
    }
    for trial in plan.trials:
        mine, alone = (
            [e for e in events if isinstance(e, Evaluated) and trial.key in e.keys]
            for events in (shared, apart)
        )
        assert [e.learning_rate for e in mine] == [e.learning_rate for e in alone]
        for one, other in zip(mine, alone, strict=True):
            assert one.metrics == pytest.approx(other.metrics, abs=1e-5)
            assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)
    if "learning_rate" in settings:
        assert len({e.learning_rate for e in shared if isinstance(e, Evaluated)}) > 2  # the plateau was met


BRANCHES = "{learning_rate: [1e-2], epochs: [2, 3, 5], lr_schedule: [{type: wsd, decay_ratio: 0.4}]}"


def by_trial(events: list[Event], plan: Plan) -> dict[str, list[tuple[int, float, float]]]:
    told = [event for event in events if isinstance(event, Evaluated)]
    return {t.key: results([e for e in told if t.key in e.keys]) for t in plan.trials}


def test_finalists_whose_best_epoch_is_one_of_their_trunk_keep_what_it_said(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    """At such a rate no answer changes, and the first of equal epochs counts, which all three have in common."""
    plan = make_plan(load_sweep(write_sweep(space=BRANCHES.replace("1e-2", "1e-9"))))
    (unit,) = plan.units
    layout = Layout(tmp_path, "tiny")
    told = ends(all_of(start(plan, layout, Assignment(unit, predictions=True))))
    assert [(end.epochs_done, end.best_epoch) for end in told] == [(2, 1), (3, 1), (5, 1)]
    for end in told:
        folder = layout.predictions(end.key, 1)
        check_folder(folder)
        said = Predictions.load(folder / VALIDATION_PREDICTIONS)
        assert float((said.values.argmax(axis=1) == said.labels).mean()) == end.score


def test_what_a_finalist_said_is_made_again_though_a_checkpoint_is_from_a_later_epoch(
    write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(load_sweep(write_sweep(space="{learning_rate: [1e-9], epochs: [4]}")))
    (trial,) = plan.trials
    layout = Layout(tmp_path, "tiny")
    write_at_every_epoch(monkeypatch)
    again = Assignment(WorkUnit((trial,)), rebuild=trial.key, predictions=True)
    cut = start(plan, layout, again)
    for _ in range(3):
        next(cut)
    del cut
    assert list(layout.root.glob("trials/*/resume-*"))

    all_of(start(plan, layout, again))

    check_folder(layout.predictions(trial.key, 1))


@pytest.mark.parametrize("cut", [0, 1, 2, 4])
def test_trials_with_a_trunk_in_common_come_to_what_each_comes_to_alone_also_after_a_cut(
    cut: int, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(load_sweep(write_sweep(space=BRANCHES)))
    (unit,) = plan.units
    alone = [all_of(start(plan, Layout(tmp_path, "one"), Assignment(member))) for member in unit.members]
    expected = {end.key: replace(end, checkpoint=None) for single in alone for end in ends(single)}
    layout = Layout(tmp_path, "tiny")
    write_at_every_epoch(monkeypatch)
    if cut:
        until_epoch(start(plan, layout), cut)

    events = all_of(start(plan, layout))

    assert [len(member.trials) for member in unit.members] == [1, 1, 1]
    assert by_trial(events, plan) == {m.name: results(a) for m, a in zip(unit.members, alone, strict=True)}
    assert {end.key: replace(end, checkpoint=None) for end in ends(events)} == expected
    for end, single in zip(sorted(ends(events), key=lambda e: e.epochs_done), alone, strict=True):
        (other,) = ends(single)
        assert end.checkpoint is not None
        assert other.checkpoint is not None
        found, same = (
            load_file(root / path / CHANGED_TENSORS)
            for root, path in ((layout.root, end.checkpoint), (tmp_path / "one", other.checkpoint))
        )
        assert all(found[name].equal(tensor) for name, tensor in same.items())
    assert not list(layout.root.glob("trials/*/resume-*"))


@pytest.mark.parametrize("wild", [0, 1])
def test_a_decay_that_diverges_ends_its_trial_and_the_others_of_the_trunk_go_on(
    wild: int, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    """The longest trains the trunk, so that the rate of another counts in its decay alone."""
    plan = make_plan(load_sweep(write_sweep(space=BRANCHES)))
    alone = [all_of(start(plan, Layout(tmp_path, "one"), Assignment(m))) for m in plan.units[0].members]
    trials = list(plan.trials)
    training = trials[wild].training.model_copy(update={"learning_rate": 1e30})
    trials[wild] = replace(trials[wild], training=training)
    unit = WorkUnit(tuple(trials), tuple(WorkUnit((trial,)) for trial in trials))
    layout = Layout(tmp_path, "tiny")

    events = all_of(start(plan, layout, Assignment(unit)))

    assert len(ends(events)) == 3
    keys = [trial.key for trial in trials]
    for number, end in enumerate(sorted(ends(events), key=lambda end: keys.index(end.key))):
        if number == wild:
            assert end.state == "diverged"
            assert end.failure is not None
            assert end.failure.kind == "diverged"
            continue
        (expected,) = ends(alone[number])
        assert replace(end, checkpoint=None) == replace(expected, checkpoint=None)
        assert by_trial(events, plan)[end.key] == results(alone[number])
        assert end.checkpoint is not None
        assert expected.checkpoint is not None
        found = load_file(layout.root / end.checkpoint / CHANGED_TENSORS)
        same = load_file(tmp_path / "one" / expected.checkpoint / CHANGED_TENSORS)
        assert all(found[name].equal(tensor) for name, tensor in same.items())
    assert not list(layout.root.glob("trials/*/resume-*"))
