"""The benchmark measures the same sweep on all sides, and its arithmetic is right; nothing here is timed."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import AutoModelForSequenceClassification

from benchmarks import __main__ as benchmark
from benchmarks import compiled, passes, suite, table, targets
from benchmarks.gpu import GpuUse, use_of
from benchmarks.material import fixed_settings, grid_of, make
from benchmarks.measure import Figures, WrittenFiles, measure
from benchmarks.ours import LEVERS_OFF, VARIANTS, Phases
from benchmarks.passes import Result, Store, source_of
from benchmarks.peers import n3
from benchmarks.peers.hugging_face import arguments, build_model, load_rows, make_trainer
from benchmarks.peers.recipe import Outcome, Point, Recipe, Setting
from finetune_sweep import plan
from finetune_sweep.record import SweepRecord
from finetune_sweep.settings import Training
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS
from finetune_sweep.train import layers, optim, weights
from finetune_sweep.train.architecture import describe, resolve_depth
from finetune_sweep.train.data import prepare

TRIALS = {"w12": 12, "w54": 54, "w_linear": 54, "w64": 64, "noop": 200, "noop_2000": 2000, "bert": 12}
FILES = sorted((suite.ROOT / "benchmarks" / "workloads").glob("*.yaml"))
SMALL = (
    "data.columns={text: review, label: verdict}",
    "data.max_length=16",
    "data.limit={train: 16, validation: 16}",
    "space={learning_rate: [1e-3], freeze_depth: [0, 1], epochs: [1, 2]}",
)


@pytest.fixture
def overrides(tiny_model: Path, reviews: Path) -> tuple[str, ...]:
    return (f"model={tiny_model}", f"data.source={reviews}", *SMALL)


@pytest.fixture
def recipe(overrides: tuple[str, ...], tmp_path: Path) -> Recipe:
    made = make(suite.workload_file("w12"), tmp_path / "material", overrides)
    return dataclasses.replace(made, folder=str(tmp_path), bf16=False)


# ------------------------------------------------------------------------------------------ the same sweep


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_workload_loads_and_has_its_number_of_trials(file: Path) -> None:
    sweep = load_sweep(file)
    assert sweep.name == file.stem
    assert len(list(plan.configurations(sweep, SweepRecord()))) == TRIALS[file.stem]


def test_every_pass_has_its_workload_and_its_side() -> None:
    entries = (*suite.FULL, *suite.GPU)
    assert {entry.workload for entry in entries} == set(TRIALS)
    assert {entry.variant for entry in entries} == {*suite.PEERS, *VARIANTS, "noop"}
    for entry in entries:
        assert suite.workload_file(entry.workload).is_file()
        if entry.variant in VARIANTS:
            load_sweep(suite.workload_file(entry.workload), VARIANTS[entry.variant].overrides)


def test_every_target_follows_from_passes_that_are_made() -> None:
    for needed, entries in (
        (targets.TARGETS, suite.BENCH),
        ((*targets.TARGETS, *targets.FULL_TARGETS), suite.FULL),
        (targets.GPU_TARGETS, suite.GPU),
    ):
        made = {(entry.workload, entry.variant) for entry in entries}
        assert {need for target in needed for need in target.needs} <= made


def test_the_rows_of_the_peers_are_ours(recipe: Recipe, overrides: tuple[str, ...], tmp_path: Path) -> None:
    sweep = load_sweep(suite.workload_file("w12"), overrides)
    ours = prepare(sweep.data, TASKS[sweep.task], Path(), tmp_path / "cache")
    splits, _ = load_rows(recipe)
    for name in ("train", "validation"):
        assert splits[name]["text"][:] == ours.splits[name]["text"][:]
        assert [ours.classes[label] for label in splits[name]["label"]] == ours.splits[name]["label"][:]
    encoded = TASKS[sweep.task].encode(
        ours.splits["train"], load_rows(recipe)[1], ours.classes, sweep.data.max_length
    )
    tokens = encoded.columns["input_ids"]
    assert [list(ids) for ids in splits["train"]["input_ids"]] == [list(tokens[i]) for i in range(16)]


def test_the_grid_and_the_fixed_settings_of_the_peers_are_ours() -> None:
    sweep = load_sweep(suite.workload_file("w_linear"))
    assert grid_of(sweep) == {
        "learning_rate": [5e-5, 3e-5, 2e-5],
        "batch_size": [16, 32],
        "epochs": [2, 3, 4],
        "freeze_depth": [0, 3, 6],
    }
    assert fixed_settings(sweep.training) == {
        "learning_rate": 3e-5,
        "batch_size": 16,
        "epochs": 3,
        "freeze_depth": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_schedule": "linear",
        "warmup_steps": 20,
    }


@pytest.mark.parametrize("depth", [0, 1, "all"])
def test_the_peers_train_and_decay_the_same_parameters(
    recipe: Recipe, depth: int | str, tmp_path: Path
) -> None:
    config = {"learning_rate": 1e-3, "freeze_depth": depth, "epochs": 2}
    trainer = make_trainer(recipe, config, arguments(recipe, config, str(tmp_path)), load_rows(recipe))
    theirs = trainer.create_optimizer()
    model, settings = build_model(recipe, 0), Training(learning_rate=1e-3, freeze_depth=depth, batch_size=8)
    arch = describe(weights.read_config(Path(recipe.model)))
    layers.freeze(model, arch, resolve_depth(depth, arch))
    ours = optim.build_optimizer(model, settings)

    assert by_decay(trainer.model, theirs) == by_decay(model, ours)
    assert {name: theirs.defaults[name] for name in ("lr", "betas", "eps", "fused")} == {
        name: ours.defaults[name] for name in ("lr", "betas", "eps", "fused")
    }


def by_decay(model: object, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    assert isinstance(model, nn.Module)
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = {
        group["weight_decay"]: {names[p] for p in group["params"] if p in names}
        for group in optimizer.param_groups
    }
    return {decay: held for decay, held in groups.items() if held}


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_peers_take_as_many_steps_at_the_rates_of_ours_one_step_later(
    recipe: Recipe, schedule: str, tmp_path: Path
) -> None:
    """Transformers begins its warmup at 0 and loses a step to it; ours begins at a part of the rate."""
    config: dict[str, Setting] = {
        "learning_rate": 1e-3,
        "lr_schedule": schedule,
        "warmup_steps": 2,
        "epochs": 3,
    }
    trainer = make_trainer(recipe, config, arguments(recipe, config, str(tmp_path)), load_rows(recipe))
    steps = 3 * len(trainer.get_train_dataloader())
    assert steps == 3 * 16 / 8
    trainer.create_optimizer_and_scheduler(steps)
    assert trainer.lr_scheduler is not None
    assert trainer.optimizer is not None
    theirs = []
    for _ in range(steps):
        theirs.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    settings = Training.model_validate({"lr_schedule": {"type": schedule, "warmup_steps": 2}}).lr_schedule
    ours = [optim.learning_rate(settings, 1e-3, step, steps) for step in range(steps)]

    assert theirs[0] == 0.0
    if schedule == "constant":
        assert theirs[1:] == pytest.approx(ours[:-1])
    else:
        assert theirs[2:] == pytest.approx(ours[2:])


def test_the_peers_have_our_seed_batches_clipping_and_precision(recipe: Recipe) -> None:
    given = arguments(dataclasses.replace(recipe, seed=7, bf16=True), {"epochs": 4}, "out")
    assert (given["seed"], given["bf16"], given["num_train_epochs"]) == (7, True, 4)
    assert (given["per_device_train_batch_size"], given["max_grad_norm"], given["weight_decay"]) == (
        8,
        1.0,
        0.01,
    )
    assert (given["eval_strategy"], given["save_strategy"]) == ("epoch", "epoch")


def test_the_longest_training_stands_for_the_shorter_ones(recipe: Recipe) -> None:
    points = [Point(1, 0.5, 1.0), Point(2, 0.6, 0.9)]
    assert n3.longest_only(recipe).space["epochs"] == [2]
    shorter = n3.shorter_too([Outcome({"learning_rate": 1e-3, "epochs": 2}, points)], recipe)
    assert [(o.config["epochs"], len(o.history)) for o in shorter] == [(1, 1), (2, 2)]


def test_the_plain_path_trains_each_trial_alone(overrides: tuple[str, ...], tmp_path: Path) -> None:
    def units(*more: str) -> list[int]:
        options = {"cache": str(tmp_path)}
        sweep = load_sweep(suite.workload_file("w12"), (*overrides, *more), options=options)
        return [len(unit.trials) for unit in plan.make_plan(sweep).units]

    assert units() == [2, 2]
    assert units(*LEVERS_OFF) == [1, 1, 1, 1]


# ------------------------------------------------------------------------------------------ the arithmetic


def test_a_ratio_is_of_medians_with_the_widest_range() -> None:
    # medians 10 and 40; the least is 8 / 50, the most 12 / 30
    assert table.ratio([8.0, 10.0, 12.0], [30.0, 40.0, 50.0]) == table.Ratio(0.25, 0.16, 0.4)


def test_a_paired_error_is_that_of_the_differences() -> None:
    # differences 1, 3, 2: mean 2, standard deviation 1, error 1 / sqrt(3)
    found = table.paired([2.0, 5.0, 5.0], [1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.error == pytest.approx(3**-0.5)


def outcome(rate: float, *accuracies: float, loss: float = 1.0) -> Outcome:
    points = [Point(epoch, accuracy, loss) for epoch, accuracy in enumerate(accuracies, 1)]
    return Outcome({"learning_rate": rate, "epochs": len(points)}, points)


def test_trials_of_two_sides_are_compared_by_their_configuration() -> None:
    ours = [outcome(1e-3, 0.5, 0.7), outcome(2e-3, 0.4, 0.6)]
    theirs = [outcome(2e-3, 0.5, 0.4), outcome(1e-3, 0.5, 0.6)]
    # after the last epochs: 0.7 - 0.6 and 0.6 - 0.4
    assert table.accuracy_difference(ours, theirs).mean == pytest.approx(0.15)
    assert dict(table.winner(ours))["learning_rate"] == "0.001"
    with pytest.raises(ValueError, match="not the same trials"):
        table.accuracy_difference(ours, theirs[:1])


def test_trials_that_are_one_training_are_one_pair() -> None:
    def side(*accuracies: float) -> list[Outcome]:
        return [outcome(1e-3, 0.5, a) for a in accuracies[:1]] + [
            outcome(rate, *([0.5] * epochs), a)
            for rate, epochs, a in ((1e-3, 2, accuracies[1]), (2e-3, 1, accuracies[2]))
        ]

    # the first two differ in epochs alone: 0.1 and 0.3, so 0.2; the third 0
    found = table.accuracy_difference(side(0.6, 0.8, 0.5), side(0.5, 0.5, 0.5))
    assert found.mean == pytest.approx(0.1)
    assert found.error == pytest.approx(0.1)


def test_the_largest_difference_of_a_loss_is_found() -> None:
    ours = [outcome(1e-3, 0.5, 0.7), outcome(2e-3, 0.4, loss=0.75)]
    plain = [outcome(1e-3, 0.5, 0.7), outcome(2e-3, 0.4, loss=0.5)]
    assert table.largest_loss_difference(ours, plain) == 0.25


def result(name: str, wall_s: float, others: float = 0.1, phases: Phases | None = None) -> Result:
    figures = Figures(wall_s, 2 * wall_s, others, 0, 0, 0, 0)
    return Result(name, "", "", "", figures, [outcome(1e-3, 0.5)], phases)


def row(ours: Sequence[Result], theirs: Sequence[Result], bound: float = 0.25) -> table.Row:
    target = targets.wall("w54", "wall", "ours", "n0", bound, "0.18")
    return target.row({("w54", "ours"): ours, ("w54", "n0"): theirs})


def test_a_target_is_met_missed_not_run_or_not_told() -> None:
    ours, theirs = [result("a", 10.0), result("b", 12.0)], [result("c", 50.0)]
    assert row(ours, theirs) == table.Row(
        "w54", "wall", "0.22 (0.2 to 0.24)", "0.22 (0.2 to 0.24)", "at most 0.25", "0.18", "ok"
    )
    assert row(ours, theirs, 0.2).verdict == "missed"
    assert row(ours, []).verdict == "not run"
    busy = row(ours, [result("c", 50.0, others=0.31)])
    assert (busy.verdict, busy.value) == ("no ratio: busy machine", "")
    assert row([result("a", 10.0, others=0.5), result("b", 12.0)], theirs).value == "0.24 (0.24 to 0.24)"


def in_phases(ended: Sequence[float], **parts: float) -> Phases:
    return Phases(
        train_s=parts.get("train_s", 100.0),
        eval_s=0.0,
        started=0.0,
        ended=list(ended),
        delivered=max(ended) + 5,
        exit_code=0,
        durable_s={"journal": 1.0, "resume": 0.5, "results": 0.5},
    )


@pytest.mark.parametrize(
    ("value", "variants", "expected"),
    [
        # 10 s with one slot, 5 with two
        (targets.two_slots, {"ours-one-slot": [4.0, 10.0], "ours": [3.0, 5.0]}, 2.0),
        # 10 s alone, 25 beside: 0.4 of the speed, of a half 0.8
        (targets.beside_a_hog, {"ours-two-threads": [10.0], "ours-hog": [25.0]}, 0.8),
        # 1 + 0.5 + 0.5 s of 100
        (targets.durable_writes("w12").value, {"ours": [1.0]}, 0.02),
    ],
)
def test_what_follows_from_a_journal(
    value: Callable[[table.Results], tuple[float, str, str]],
    variants: dict[str, list[float]],
    expected: float,
) -> None:
    results = {
        ("w12", name): [result(name, 1.0, phases=in_phases(ended))] for name, ended in variants.items()
    }
    assert value(results)[0] == pytest.approx(expected)


def test_the_overhead_of_a_trial_against_n0_is_with_and_without_the_start() -> None:
    """Ours: 20 trials, one a second, all in MLflow 5 s later, 30 s in all; N0: 3 trials, 10 s apart, 40 s in all."""
    trials = [outcome(number / 100, 0.5) for number in range(20)]
    mine = result("noop", 30.0, phases=in_phases([float(n) for n in range(20)]))
    theirs = dataclasses.replace(result("n0", 40.0), ended=[10.0, 20.0, 30.0])
    results = {
        ("noop", "noop"): [dataclasses.replace(mine, trials=trials)],
        ("noop", "n0-noop"): [theirs],
    }
    assert targets.overhead_of_a_trial(results)[0] == 1.5
    assert targets.overhead_against_n0(results)[0] == pytest.approx((19 + 5) / 20 / 10)
    assert targets.overhead_with_the_start(results)[0] == pytest.approx(1.5 / (10 + 10 / 20))


def test_bytes_are_compared_as_times_are() -> None:
    mine, theirs = (result(name, 1.0) for name in ("a", "b"))
    sides = (
        dataclasses.replace(each, figures=dataclasses.replace(each.figures, peak_bytes=peak))
        for each, peak in ((mine, 3_000), (theirs, 2_000))
    )
    results = dict(zip((("w12", "ours"), ("w12", "n0")), ([side] for side in sides), strict=True))
    found = targets.size("peak_bytes", "w12", "ours", "n0").row(results)
    assert (found.what, found.value, found.verdict) == (
        "peak memory, ours against n0",
        "1.5 (1.5 to 1.5)",
        "",
    )


def test_the_last_trials_are_compared_with_the_first() -> None:
    # 400 trials: the first 200 end each second, the others every two
    ended = [float(n) for n in range(200)] + [199.0 + 2 * n for n in range(1, 201)]
    results = {("noop_2000", "noop"): [result("noop", 1.0, phases=in_phases(ended))]}
    assert targets.last_against_first(results)[0] == pytest.approx(2.0)


def test_the_sides_take_turns() -> None:
    entries = (
        suite.Entry("w", "a", 2),
        suite.Entry("w", "b", 2),
        suite.Entry("v", "c", 1),
        suite.Entry("w", "d", 1),
    )
    assert [each.name for each in suite.in_turns(entries)] == [
        "w.a.1",
        "w.b.1",
        "w.d.1",
        "w.a.2",
        "w.b.2",
        "v.c.1",
    ]


def test_losses_of_heads_alone_may_differ_more_than_others() -> None:
    def trials(loss: float, head_loss: float) -> list[Outcome]:
        return [
            Outcome({"freeze_depth": depth}, [Point(1, 0.5, each)])
            for depth, each in ((0, loss), (3, 0.5), (6, head_loss))
        ]

    target = targets.equals_packed("w54")
    for other, part in ((trials(0.5, 0.5), 0.0), (trials(0.50002, 0.5), 2.0), (trials(0.5, 0.50005), 0.5)):
        sides = (("ours-fp32", trials(0.5, 0.5)), ("packed-fp32", other))
        results = {
            ("w54", side): [dataclasses.replace(result(side, 1.0), trials=found)] for side, found in sides
        }
        assert target.value(results)[0] == pytest.approx(part)


def test_an_accuracy_that_differs_is_not_the_same_metric() -> None:
    results = {
        ("w54", side): [dataclasses.replace(result(side, 1.0), trials=[outcome(1e-3, accuracy)])]
        for side, accuracy in (("ours-fp32", 0.5), ("packed-fp32", 0.51))
    }
    part, shown, _ = targets.equals_packed("w54").value(results)
    assert part == math.inf
    assert shown.endswith("1 accuracies differ")
    results["w54", "plain-fp32"] = results.pop(("w54", "packed-fp32"))
    assert "1 of 1 accuracies differ, losses by up to 0; " in targets.near_plain("w54").value(results)[1]


def test_what_an_earlier_source_gave_is_found_only_when_asked_for(tmp_path: Path) -> None:
    which = suite.Pass("w12", "n0", 1)
    now = source_of(which)
    stored = (("00000001", "2026-01-01 00:00"), ("00000002", "2026-01-02 00:00"))
    for source, started in stored:
        made = dataclasses.replace(
            result(which.name, 1.0), source=source, started=started, machine=passes.machine()
        )
        (tmp_path / f"{which.name}.{source}.1.json").write_bytes(TypeAdapter(Result).dump_json(made))
    found = Store(tmp_path / "work", tmp_path, any_source=True).result(which)
    assert found is not None
    assert found.source == "00000002"
    assert now != found.source
    assert Store(tmp_path / "work", tmp_path).result(which) is None
    with pytest.raises(SystemExit):
        benchmark.main(["--any-source"])


def test_a_noisy_pass_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    which = suite.Pass("w12", "n0", 1)

    def stored(number: int, others: float) -> None:
        made = dataclasses.replace(
            result(which.name, 1.0, others=others), source=source_of(which), machine=passes.machine()
        )
        file = tmp_path / f"{which.name}.{made.source}.{number}.json"
        file.write_bytes(TypeAdapter(Result).dump_json(made))

    for number in (1, 2):
        stored(number, 0.5)
    assert not Store(tmp_path / "work", tmp_path).is_done(which)
    stored(3, 0.1)
    assert Store(tmp_path / "work", tmp_path).is_done(which)


def test_one_training_has_no_error_and_no_verdict() -> None:
    found = table.accuracy_difference([outcome(1e-3, 0.5)], [outcome(1e-3, 0.4)])
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.error)


# ------------------------------------------------------------------------------------------------ measuring


def test_a_model_is_timed_step_by_step(tiny_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    made = compiled.batches(model.config, 4, "cpu")
    assert {batch["input_ids"].shape == batch["attention_mask"].shape for batch in made} == {True}
    assert len({batch["input_ids"].shape for batch in made}) > 1
    found = compiled.step_seconds(model, made, "cpu", compiled=False)
    assert len(found) == compiled.WARM_STEPS + compiled.STEPS
    assert min(found) > 0


def test_the_use_of_a_gpu_is_counted_from_its_first_kernel_to_its_last() -> None:
    lines = ["0, 10", "50, 2000", "0, 3000", "100, 2000", "0, 10", "10"]
    assert use_of(lines) == GpuUse(utilisation=0.5, busy_s=0.75, peak_bytes=3000 * 2**20)
    assert use_of(["0, 10", "No devices were found"]) is None


BUSY = "import time\nend = time.process_time() + 1.5\nwhile time.process_time() < end: pass"
PARENT = """
import os, subprocess, sys, time
subprocess.run([sys.executable, "-c", sys.argv[1]])
open("a.bin", "wb").write(bytes(1000))
time.sleep(1.2)
os.remove("a.bin")
time.sleep(1.2)
sys.exit(3)
"""


def test_a_measured_command_includes_its_children_and_what_it_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [sys.executable, "-c", PARENT, BUSY]
    figures = measure(line, dict(os.environ), tmp_path)
    assert figures.exit_code == 3
    assert figures.checkpoint_bytes == 1000
    assert figures.cpu_s >= 0.5  # of the grandchild's 1.5 s
    assert figures.peak_bytes > 1_000_000


def test_a_checkpoint_counts_once_while_it_grows_or_moves_and_again_when_written_anew(
    tmp_path: Path,
) -> None:
    files, file = WrittenFiles(tmp_path), tmp_path / "a.safetensors"
    for size in (10, 30):
        file.write_bytes(bytes(size))
        files.look()
    assert files.total == 30
    file = file.rename(tmp_path / "b.safetensors")
    files.look()
    assert files.total == 30
    file.write_bytes(bytes(20))
    files.look()
    assert files.total == 50
    moving = file.rename(tmp_path.parent / file.name)  # between two folders, as far as a look can tell
    files.look()
    moving.rename(file)
    files.look()
    assert files.total == 50
    file.unlink()
    for _ in range(2):
        files.look()
    assert (files.total, files.present) == (50, {})


# ------------------------------------------------------------------------------------------------- end to end


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["n1", "ours"])
def test_a_pass_is_run_stored_and_found_again(
    variant: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    store, which = Store(tmp_path, overrides=overrides, attempts=1), suite.Pass("w12", variant, 1)
    made = store.run(which)
    assert [len(trial.history) for trial in made.trials] == [1, 2, 1, 2]
    assert made.figures.checkpoint_bytes > 0
    assert (made.phases is not None) == (variant == "ours")
    assert store.is_done(which)
    assert store.result(which) == made


@pytest.mark.slow
def test_trials_that_do_nothing_are_journalled_and_reach_mlflow(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    own = [text for text in overrides if not text.startswith("space")]
    made = Store(tmp_path, overrides=(*own, "search.trials=10"), attempts=1).run(
        suite.Pass("noop", "noop", 1)
    )
    assert len(made.trials) == 10
    assert made.phases is not None
    assert (made.phases.exit_code, made.phases.train_s, len(made.phases.ended)) == (0, 0.0, 10)
