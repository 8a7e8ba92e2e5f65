"""What holds on the CPU holds on a GPU: skipped on machines without one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from finetune_sweep.events import UnitStarted
from finetune_sweep.journal import read
from finetune_sweep.settings import Training
from finetune_sweep.train import loop
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.stack import Stack
from tests.commands import command, layout, trials
from tests.train.runs import NEW, assert_same_weights, bert, job_for, split, trained
from tests.train.test_heads import DIFFERENT, assert_near, jobs_of, together
from tests.train.test_prefix_cache import on_states

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune_sweep.train.state import Evaluation, Job
    from tests.conftest import WriteSweep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = Training(learning_rate=1e-3, batch_size=8, epochs=3)


def job_on_gpu(precision: Literal["fp32", "bf16"] = "fp32") -> Job:
    return replace(job_for(bert(), SETTINGS), device="cuda", precision=precision)


def assert_close(left: list[Evaluation], right: list[Evaluation], abs_: float) -> None:
    for one, other in zip(left, right, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=abs_)
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=abs_)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_repeats_to_the_last_digit(precision: Literal["fp32", "bf16"]) -> None:
    (first, weights), (second, others) = (trained(job_on_gpu(precision), bert()) for _ in range(2))
    assert first == second
    assert_same_weights(weights, others)


def test_without_dropout_a_gpu_comes_to_what_the_cpu_comes_to() -> None:
    job = job_on_gpu()
    on_gpu, _ = trained(job, bert(0.0))
    on_cpu, _ = trained(replace(job, device="cpu"), bert(0.0))
    assert_close(on_cpu, on_gpu, 1e-4)


def test_without_dropout_padding_changes_nothing() -> None:
    packed, padded = (trained(replace(job_on_gpu(), unpadding=on), bert(0.0))[0] for on in (True, False))
    assert_close(packed, padded, 1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_training_on_states_is_the_training_from_the_tokens(blocks: int, tmp_path: Path) -> None:
    job = replace(job_on_gpu(), depth=blocks)
    plain, _ = trained(job, bert())
    model = bert().to("cuda")  # type: ignore[arg-type]  # transformers types only torch.device
    cached, _ = trained(on_states(job, model, blocks, tmp_path), model)
    assert_close(plain, cached, 1e-5)


def test_heads_that_are_trained_together_come_to_what_each_comes_to_alone(tmp_path: Path) -> None:
    jobs = [replace(job, device="cuda") for job in jobs_of(bert, DIFFERENT, tmp_path)]
    found, state = together(jobs, bert())
    assert isinstance(state, Stack)
    for index, job in enumerate(jobs):
        assert_near(list(fit(job, start(job, bert(), NEW))), found[index])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_one_before(precision: Literal["fp32", "bf16"]) -> None:
    job = job_on_gpu(precision)
    state = start(job, bert(), NEW)
    loop._train(job.at(1), state, 1, lambda: False)  # what happens once happens here
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop._train(job.at(1), state, 2, lambda: False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 2


def test_a_training_goes_on_from_a_snapshot_as_if_it_had_not_stopped() -> None:
    job = job_on_gpu()
    whole = list(fit(job, start(job, bert(), NEW)))
    interrupted = start(job, bert(), NEW)
    next(fit(job, interrupted))
    resumed = start(job, bert(), NEW)
    resumed.load_state_dict(interrupted.state_dict())
    assert list(fit(job, resumed)) == whole[1:]


@pytest.fixture
def all_memory() -> Iterator[None]:
    """Gives back what a test has taken away."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("all_memory")
def test_where_memory_runs_out_the_batch_is_computed_in_parts() -> None:
    """Real memory: the process is given three fifths of what the whole batch takes."""
    rows = 8192
    settings = SETTINGS.model_copy(update={"batch_size": rows, "epochs": 1})
    job = replace(job_on_gpu(), settings=settings, train=split(rows, seed=1))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole, _ = trained(job, bert(0.0))
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / torch.cuda.get_device_properties(0).total_memory)

    parts, _ = trained(job, bert(0.0))

    assert (whole[0].micro_batch, parts[0].micro_batch < rows) == (rows, True)
    assert_close(whole, parts, 1e-4)


def test_a_sweep_shares_one_gpu_among_its_workers(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(
        space="{learning_rate: [1e-3, 1e-2], freeze_depth: [0, 1, all], epochs: [1, 2]}",
        training="{}",
        extra="resources_per_trial: {cpu: 1, gpu: 0.25}\n",
    )

    result = command("run", sweep, cwd=sweep.parent)

    assert result.code == 0, result.err
    assert {trial["state"] for trial in trials(sweep).values()} == {"finished"}
    workers = [e.event.worker for e in read(layout(sweep)) if isinstance(e.event, UnitStarted)]
    assert {(worker.device, worker.cuda_visible_devices) for worker in workers} == {("cuda", "0")}
    AutoModelForSequenceClassification.from_pretrained(layout(sweep).root / "best")
