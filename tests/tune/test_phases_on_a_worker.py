"""Unfreezing and probes in a whole work unit: what comes from the cache, and that the checkpoint is the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_sweep.assembly import assemble, evaluate_folder
from finetune_sweep.events import Evaluated, TrialEnded
from finetune_sweep.layout import Layout
from finetune_sweep.plan import Plan, check, make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.train import strategies
from finetune_sweep.train.loop import fit
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit
from tests.train.runs import example_of_the_guide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_sweep.events import Event
    from tests.conftest import WriteSweep

PHASED = {
    "unfreezing": "freeze_depth: all, unfreeze: {}",
    "probe": "linear_probe: {epochs: 2}",
    "both": "freeze_depth: 1, linear_probe: {}, unfreeze: {to_depth: embeddings}",
    "a probe on erased blocks": "linear_probe: {epochs: 2}, reinit_layers: 1, l2_sp: 0.1",
    "a probe on weakened blocks": "linear_probe: {epochs: 2}, shrink_perturb: 0.5, l2_sp: 0.1",
    "a probe before adapters": "linear_probe: {epochs: 2}, lora: {r: 2}, layerwise_lr_decay: 0.9",
    "unfreezing what is left": "drop_layers: 1, freeze_depth: all, unfreeze: {}, layerwise_lr_decay: 0.9",
    "unfreezing erased blocks": "freeze_depth: all, unfreeze: {}, reinit_layers: 1",
    "unfreezing adapted blocks": "freeze_depth: all, unfreeze: {}, lora: {r: 2}, l2_sp: 0.1",
    "unfreezing below another head": "pooling: mean, freeze_depth: all, unfreeze: {}, adversarial_epsilon: 0.1",
}


def planned(write_sweep: WriteSweep, settings: str, *sets: str) -> Plan:
    file = write_sweep(
        space="{learning_rate: [1e-2]}", training=f"{{precision: fp32, epochs: 4, {settings}}}"
    )
    return make_plan(load_sweep(file, sets, check))


def trained(plan: Plan, folder: Path) -> Sequence[Event]:
    moments = run_unit(Assignment(plan.units[0]), plan, Layout(folder, "tiny"), Loaded(plan))
    return [event for moment in moments for event in moment]


def test_each_phase_is_read_from_states_where_there_are_any(write_sweep: WriteSweep) -> None:
    def firsts(settings: str, *sets: str) -> list[tuple[int, object, int | None]]:
        plan = planned(write_sweep, settings, *sets)
        job, _ = Loaded(plan).job(plan.trials[0])
        return [(stage.first_epoch, stage.depth, stage.first) for stage in job.stages]

    opening = PHASED["unfreezing"]
    assert firsts(opening) == [(1, 2, 2), (2, 1, 1), (3, "embeddings", None), (4, 0, None)]
    assert firsts(PHASED["probe"]) == [(1, 2, 2), (3, 0, None)]
    assert firsts("freeze_depth: 1") == []
    # The states after the erased block would be those of the pretrained one.
    erased = "freeze_depth: all, unfreeze: {to_depth: 1}, reinit_layers: 1"
    assert firsts(erased) == [(1, 2, 1), (2, 1, 1)]
    without = [(1, 2, None), (2, 1, None), (3, "embeddings", None), (4, 0, None)]
    assert firsts(opening, "speed.prefix_cache=false") == without
    assert firsts(f"{opening}, adversarial_epsilon: 0.1") == without
    assert firsts(opening, "training.epochs=2") == [(1, 2, 2), (2, 1, 1)]


@pytest.mark.parametrize("settings", PHASED.values(), ids=PHASED)
def test_the_cache_leaves_the_results_and_the_checkpoint_is_the_model(
    settings: str, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    plan = planned(write_sweep, settings)
    events = trained(plan, tmp_path / "cached")
    plain = trained(planned(write_sweep, settings, "speed.prefix_cache=false"), tmp_path / "plain")
    losses = [[e.metrics["loss"] for e in told if isinstance(e, Evaluated)] for told in (events, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)

    (end,) = [event for event in events if isinstance(event, TrialEnded)]
    assert end.checkpoint is not None
    folder = tmp_path / "whole"
    folder.mkdir()
    assemble(folder, plan, plan.trials[0], tmp_path / "cached" / "tiny" / end.checkpoint)
    found = evaluate_folder(folder, plan, plan.trials[0], "validation", 1)
    assert found.metrics["loss"] == losses[0][(end.best_epoch or 0) - 1]


def test_the_cache_leaves_the_results_of_a_strategy_that_is_added_by_the_guide(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, lines = example_of_the_guide()
    monkeypatch.setattr(strategies, "STRATEGIES", {**strategies.STRATEGIES, **lines})
    losses = []
    for change in ("seed=0", "speed.prefix_cache=false"):
        plan = planned(write_sweep, "linear_probe: {epochs: 1}", change)
        (trial,) = plan.trials
        training = noisy.model_validate({**trial.training.model_dump(), "noise": 1.0})
        losses.append([e.train_loss for e in fit(*Loaded(plan).job(replace(trial, training=training)))])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
