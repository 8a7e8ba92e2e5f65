from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_sweep.errors import StorageError
from finetune_sweep.settings import EarlyStopping, Training
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.state import derive_seed
from tests.train.runs import NEW, assert_same_weights, bert, job_for, trained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_derived_seeds_are_fixed_and_differ_by_purpose() -> None:
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
    seeds = {derive_seed(seed, purpose, 1, 2) for seed in range(3) for purpose in ("order", "dropout")}
    assert len(seeds) == 6
    assert derive_seed(0, "order", 12) != derive_seed(0, "order", 1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(7, "head") == 788131736095291270


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(optimizer: str, after: int, tmp_path: Path) -> None:
    settings = Training.model_validate(
        {"learning_rate": 1e-2, "batch_size": 8, "epochs": 3, "optimizer": optimizer, "lr_schedule": "linear"}
    )
    model = bert()
    job = replace(job_for(model, settings), depth=1)
    whole = trained(job, model)

    interrupted = start(job, bert(), NEW)
    run = fit(job, interrupted)
    snapshot = [(next(run), interrupted.state_dict())[1] for _ in range(after)][-1]
    next(run, None)
    save_file(dict(snapshot.tensors), tmp_path / "snapshot.safetensors")
    torch.rand(5)

    model = bert()
    resumed = start(job, model, NEW)
    resumed.load_state_dict(replace(snapshot, tensors=load_file(tmp_path / "snapshot.safetensors")))
    rest = list(fit(job, resumed))
    assert rest == whole[0][after:]
    assert resumed.history == whole[0]
    assert_same_weights(model.state_dict(), whole[1])


def test_a_resumed_run_remembers_early_stopping() -> None:
    stopping = EarlyStopping(patience=2, monitor="loss", min_delta=100.0)
    settings = Training(learning_rate=1e-2, batch_size=8, epochs=9, early_stopping=stopping)
    model = bert()
    job = job_for(model, settings)
    whole, _ = trained(job, model)
    assert [e.stopped for e in whole] == [False, False, True]

    interrupted = start(job, bert(), NEW)
    next(fit(job, interrupted))
    resumed = start(job, bert(), NEW)
    resumed.load_state_dict(interrupted.state_dict())
    assert list(fit(job, resumed)) == whole[1:]
    finished = start(job, bert(), NEW)
    finished.load_state_dict(resumed.state_dict())
    assert list(fit(job, finished)) == []


def test_a_snapshot_holds_what_training_changes_and_nothing_else() -> None:
    model = bert()
    job = replace(job_for(model), depth=2)
    state = start(job, model, NEW)
    list(fit(job, state))
    trained_names = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", *NEW}
    expected = {f"model.{name}" for name in trained_names}
    expected |= {
        f"optimizer.{slot}.{name}" for slot in ("step", "exp_avg", "exp_avg_sq") for name in trained_names
    }
    assert set(state.state_dict().tensors) == expected


def test_a_snapshot_is_not_moved_by_further_training() -> None:
    model = bert()
    job = job_for(model)
    state = start(job, model, NEW)
    run = fit(job, state)
    next(run)
    snapshot = state.state_dict()
    copies = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    next(run)
    assert_same_weights(dict(snapshot.tensors), copies)
    assert len(snapshot.history) == 1


def test_a_snapshot_of_another_depth_is_refused() -> None:
    model = bert()
    job = job_for(model)
    snapshot = start(job, model, NEW).state_dict()
    with pytest.raises(StorageError, match=r"holds other tensors .* such as bert\.embeddings"):
        start(replace(job, depth=1), bert(), NEW).load_state_dict(snapshot)
