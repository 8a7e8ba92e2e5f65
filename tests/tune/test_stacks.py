"""Heads that one worker trains together: how a stack goes on after a stop and after a kill."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from finetune_sweep import disk
from finetune_sweep.durable import check_folder
from finetune_sweep.events import Evaluated, Event
from finetune_sweep.layout import CHANGED_TENSORS, Layout
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.train import heads
from finetune_sweep.train.stack import Stack
from finetune_sweep.trial import WorkUnit, work_units
from finetune_sweep.tune import watch
from finetune_sweep.tune.assignment import Assignment
from tests.tune.test_worker import all_of, ends, start, write_at_every_epoch

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SPACE = "{learning_rate: [1e-2, 1e-3], epochs: [1, 3], lr_schedule: [constant, linear], freeze_depth: [all]}"


@pytest.fixture
def plan(write_sweep: WriteSweep) -> Plan:
    return make_plan(load_sweep(write_sweep(space=SPACE, extra="keep_checkpoints: 12\n")))


def told(events: Sequence[Event]) -> dict[tuple[str, int], Evaluated]:
    """All evaluations without their times; those that are told again are the same."""
    found: dict[tuple[str, int], Evaluated] = {}
    for event in events:
        if isinstance(event, Evaluated):
            timeless = replace(event, keys=(), train_seconds=0.0, eval_seconds=0.0)
            assert found.setdefault((event.unit, event.epoch), timeless) == timeless
    return found


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The members of each step from now on."""
    step, counted = heads._step_at_once, []

    def noted(stack: Stack, running: Sequence[int], *rest: object) -> bool:
        counted.append(len(running))
        return step(stack, running, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(heads, "_step_at_once", noted)
    return counted


def rest_of(unit: WorkUnit, events: Sequence[Event]) -> WorkUnit:
    """What the next run hands out: the trials that have no end yet."""
    ended = {end.key for end in ends(list(events))}
    (rest,) = work_units([trial for trial in unit.trials if trial.key not in ended])
    return rest


def killed_after(moments: Iterator[tuple[Event, ...]], epoch: int) -> list[Event]:
    """What was journalled of a training that was dropped in the epoch after this one."""
    events: list[Event] = []
    for moment in moments:
        if any(isinstance(event, Evaluated) and event.epoch > epoch for event in moment):
            break
        events += moment
    return events


def left_by(layout: Layout) -> list[Path]:
    return sorted(layout.root.glob("trials/*/resume-*"), key=lambda folder: folder.name)


@contextlib.contextmanager
def asked_to_stop(looks: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stop sign is up from this look at it on."""
    looked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(watch.StopSign, "is_up", lambda _: next(looked) >= looks)
        yield


def test_a_stack_that_is_asked_to_stop_goes_on_from_its_step(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit,) = plan.units
    whole = all_of(start(plan, Layout(tmp_path / "whole", "tiny")))
    layout, events, rest = Layout(tmp_path / "cut", "tiny"), list[Event](), unit
    steps = count_steps(monkeypatch)
    for asks in (4, 6, 15):
        with asked_to_stop(asks, monkeypatch):
            events += all_of(start(plan, layout, Assignment(rest)))
        assert left_by(layout)
        rest = rest_of(unit, events)
    events += all_of(start(plan, layout, Assignment(rest)))

    assert len(unit.members) == 6
    assert len(rest.members) == 4
    assert sum(steps) == 6 * 6 + 2 * 4 * 6  # nobody took a step twice
    assert told(events) == told(whole)
    assert {end.key: end for end in ends(events)} == {end.key: end for end in ends(whole)}
    for end in ends(whole):
        assert end.checkpoint is not None
        check_folder(layout.root / end.checkpoint)
        expected, found = (
            load_file(root / end.checkpoint / CHANGED_TENSORS)
            for root in (tmp_path / "whole" / "tiny", layout.root)
        )
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert not left_by(layout)


@pytest.mark.parametrize("damage", ["none", "flipped", "no stack"])
def test_heads_that_were_killed_go_on_from_their_newest_checkpoints_that_are_whole_and_of_a_stack(
    damage: str, plan: Plan, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = all_of(start(plan, Layout(tmp_path / "whole", "tiny")))
    write_at_every_epoch(monkeypatch)
    layout = Layout(tmp_path / "cut", "tiny")
    events = killed_after(start(plan, layout), 2)
    left = left_by(layout)
    newest = left[-1]
    match damage:
        case "flipped":
            content = bytearray((newest / "state.safetensors").read_bytes())
            content[-9] ^= 1
            (newest / "state.safetensors").write_bytes(content)
        case "no stack":
            apart = make_plan(load_sweep(write_sweep(space=SPACE), ["speed.fuse_heads=false"]))
            alone = next(unit for unit in apart.units if unit.name == newest.parent.name)
            killed_after(start(apart, Layout(tmp_path / "other", "tiny"), Assignment(alone)), 2)
            shutil.rmtree(newest.parent)
            shutil.copytree(left_by(Layout(tmp_path / "other", "tiny"))[-1], newest)
    steps = count_steps(monkeypatch)

    events += all_of(start(plan, layout, Assignment(rest_of(plan.units[0], events))))

    assert [folder.name for folder in left] == ["resume-0001-00000006"] * 4 + ["resume-0002-00000012"] * 4
    assert sum(steps) == 3 * 6 + {"none": 6, "flipped": 12, "no stack": 18}[damage]
    assert told(events) == told(whole)
    assert not left_by(layout)


def test_heads_of_several_stacks_go_on_in_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stacks were stopped at different steps; the trials that are left are one unit, and keep what each had."""
    whole = all_of(start(plan, Layout(tmp_path / "whole", "tiny")))
    (unit,) = plan.units
    layout, events = Layout(tmp_path / "cut", "tiny"), list[Event]()
    steps = count_steps(monkeypatch)
    for members, asks in ((unit.members[:3], 4), (unit.members[3:], 9)):
        (part,) = work_units([trial for member in members for trial in member.trials])
        with asked_to_stop(asks, monkeypatch):
            events += all_of(start(plan, layout, Assignment(part)))
    assert len({folder.name for folder in left_by(layout)}) == 2

    with asked_to_stop(3, monkeypatch):  # the first of them has begun to go on, the other has not
        events += all_of(start(plan, layout, Assignment(rest_of(unit, events))))
    events += all_of(start(plan, layout, Assignment(rest_of(unit, events))))

    assert sum(steps) == 6 * sum(
        member.trials[-1].epochs for member in unit.members
    )  # nobody took a step twice
    assert told(events) == told(whole)
    assert not left_by(layout)


def test_members_that_are_new_begin_beside_those_that_go_on(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an edit of the sweep file between a stop and the next run."""
    whole = all_of(start(plan, Layout(tmp_path / "whole", "tiny")))
    (unit,) = plan.units
    (fewer,) = work_units([trial for member in unit.members[2:] for trial in member.trials])
    write_at_every_epoch(monkeypatch)
    layout = Layout(tmp_path / "cut", "tiny")
    events = killed_after(start(plan, layout, Assignment(fewer)), 2)
    steps = count_steps(monkeypatch)

    events += all_of(start(plan, layout, Assignment(rest_of(unit, events))))

    known = [member for member in fewer.members if member.trials[-1].epochs == 3]
    added = sum(member.trials[-1].epochs for member in unit.members[:2])
    assert sum(steps) == 6 * (len(known) + added)
    assert told(events) == told(whole)


def test_the_plan_counts_the_disk_space_of_a_stack(plan: Plan) -> None:
    longest = replace(plan, trials=plan.units[0].members[-1].trials)
    assert disk.estimate(plan).per_worker == 6 * disk.estimate(longest).per_worker > 0
