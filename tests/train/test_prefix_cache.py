"""The states after the frozen blocks: what they change (nothing), and how they are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from finetune_sweep.durable import MANIFEST
from finetune_sweep.errors import TrialError
from finetune_sweep.settings import Training
from finetune_sweep.tasks.text_classification import TextClassification
from finetune_sweep.train import data, hardware, prefix_cache
from finetune_sweep.train.data import sole_owner
from finetune_sweep.train.loop import evaluate
from finetune_sweep.train.packing import STATES, Body, Packed, forward_of
from finetune_sweep.train.prefix_cache import Place, Source, _bytes, blocks_to_keep, states_of, with_states
from finetune_sweep.train.state import Job
from tests.train.runs import bert, gpt2, job_for, split, trained

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Encoded

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 150


def place(folder: Path, name: str = "model", cap_bytes: int = 10**9, min_free_bytes: int = 0) -> Place:
    return Place(folder, (name, "split", 16), cap_bytes, min_free_bytes)


def source(rows: Encoded, model: PreTrainedModel | None = None, precision: str = "fp32") -> Source:
    model = model or bert()
    return Source(TextClassification(), rows, model, job_for(model).arch, precision)


def values(encoded: Encoded | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert encoded is not None
    column = encoded.columns[STATES]
    return np.array(column.values)  # type: ignore[union-attr]


def on_states(job: Job, model: PreTrainedModel, blocks: int, cache: Path) -> Job:
    splits = [
        with_states(
            Source(job.task, encoded, model, job.arch, job.precision), blocks, place(cache, str(number))
        )
        for number, encoded in enumerate((job.train, job.validation))
    ]
    assert splits[0] is not None
    assert splits[1] is not None
    return replace(job, train=splits[0], validation=splits[1], first=blocks)


# ------------------------------------------------------------------------------------------- what it changes


@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_training_on_states_is_the_training_from_the_tokens(
    build: Callable[[], PreTrainedModel], blocks: int, tmp_path: Path
) -> None:
    """With dropout: the frozen part has none, and the rest draws what it would have drawn."""
    settings = Training(learning_rate=1e-3, batch_size=8, epochs=3)
    model = build()
    job = replace(job_for(model, settings), depth=blocks)
    plain, _ = trained(job, model)
    model = build()
    cached, _ = trained(on_states(job, model, blocks, tmp_path), model)
    for left, right in zip(plain, cached, strict=True):
        assert right.train_loss == pytest.approx(left.train_loss, abs=1e-5)
        assert right.metrics["loss"] == pytest.approx(left.metrics["loss"], abs=1e-5)
        assert right.metrics["accuracy"] == left.metrics["accuracy"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_evaluation_on_states_is_the_same_to_the_last_digit(
    build: Callable[[], PreTrainedModel], blocks: int, precision: str, tmp_path: Path
) -> None:
    """So a promoted model, which has no cache, must give the metrics that its training recorded."""
    model, rows = build(), split(ROWS, seed=3)
    arch = job_for(model).arch
    kept = with_states(source(rows, model, precision), blocks, place(tmp_path))
    assert kept is not None
    plain, cached = (
        evaluate(
            forward_of(model, arch, unpadding=True, first=first),
            TextClassification(),
            encoded,
            device="cpu",
            precision="bf16" if precision == "bf16" else "fp32",
            pad_token_id=0,
        )
        for first, encoded in ((None, rows), (blocks, kept))
    )
    assert np.array_equal(plain.values, cached.values)
    assert np.array_equal(plain.losses, cached.losses)


def test_a_warm_cache_equals_a_cold_one_to_the_last_digit(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        model = bert()
        runs.append(trained(on_states(replace(job_for(model), depth=1), model, 1, tmp_path), model)[0])
    assert runs[0] == runs[1]


def test_more_blocks_are_computed_from_fewer_to_the_last_digit(tmp_path: Path) -> None:
    model, rows = bert(), split(ROWS, seed=3)
    alone = with_states(source(rows, model), 2, place(tmp_path / "alone"))
    with_states(source(rows, model), 1, place(tmp_path / "both"))
    with torch.no_grad():  # what is computed again would now come out otherwise
        model.get_parameter("bert.embeddings.word_embeddings.weight").zero_()
        model.get_parameter("bert.encoder.layer.0.output.dense.weight").zero_()
    after = with_states(source(rows, model), 2, place(tmp_path / "both"))
    assert np.array_equal(values(alone), values(after))


def test_after_the_last_block_one_state_a_text_is_kept(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    assert values(with_states(source(rows), 2, place(tmp_path))).shape == (ROWS, 32)
    assert values(with_states(source(rows), 1, place(tmp_path))).shape == (rows.lengths().sum(), 32)


def test_states_come_in_the_order_of_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    kept = with_states(source(rows), 1, place(tmp_path))
    assert kept is not None
    order = np.array([5, 0, 149])
    found = states_of(kept, order)
    column = kept.columns[STATES]
    assert found is not None
    assert np.array_equal(found.numpy(), np.concatenate([column[int(row)] for row in order]))
    assert states_of(rows, order) is None


@pytest.mark.parametrize(("depth", "blocks"), [(0, None), ("embeddings", None), (1, 1), (6, 6)])
def test_states_are_kept_where_blocks_are_frozen(depth: int | str, blocks: int | None) -> None:
    assert blocks_to_keep(depth) == blocks  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- how it is kept


def copies(folder: Path) -> set[str]:
    return {manifest.parent.parent.name for manifest in folder.glob(f"*/*/{MANIFEST}")}


def test_what_was_not_used_for_the_longest_time_makes_room(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    with_states(source(rows), 1, place(tmp_path, "first"))
    (first,) = copies(tmp_path)
    with_states(source(rows), 1, place(tmp_path, "second"))
    (second,) = copies(tmp_path) - {first}
    for age, name in enumerate((first, second)):
        os.utime(tmp_path / name / "0001" / MANIFEST, (age, age))
    with_states(source(rows), 1, place(tmp_path, "first"))
    two = sum(file.stat().st_size for file in tmp_path.rglob("*.*") if file.is_file()) * 1.2
    found = with_states(source(rows), 1, place(tmp_path, "third", cap_bytes=int(two)))
    assert found is not None
    assert first in copies(tmp_path)
    assert second not in copies(tmp_path)
    assert len(copies(tmp_path)) == 2


@pytest.mark.parametrize(("cap_bytes", "min_free_bytes"), [(1000, 0), (10**9, 10**18)])
def test_what_does_not_fit_is_not_kept(cap_bytes: int, min_free_bytes: int, tmp_path: Path) -> None:
    found = with_states(source(split(ROWS, seed=3)), 1, place(tmp_path, "x", cap_bytes, min_free_bytes))
    assert found is None
    assert not copies(tmp_path)


def test_what_cannot_be_kept_deletes_nothing(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    with_states(source(rows), 1, place(tmp_path, "first"))
    before = copies(tmp_path)
    assert with_states(source(rows), 1, place(tmp_path, "second", min_free_bytes=10**18)) is None
    assert copies(tmp_path) == before


def test_a_copy_that_is_open_is_not_deleted(tmp_path: Path) -> None:
    """Its bytes would stay on the disk; what is not open is left, too, where it would not be enough."""
    rows = split(ROWS, seed=3)
    needed = _bytes(source(rows), 1)
    small = with_states(source(rows), 2, place(tmp_path, "small"))
    del small
    opened = with_states(source(rows), 1, place(tmp_path, "first"))
    before = copies(tmp_path)
    tight = place(tmp_path, "second", cap_bytes=2 * needed - 1)
    assert with_states(source(rows), 1, tight) is None
    assert copies(tmp_path) == before
    assert len(before) == 2
    del opened
    assert with_states(source(rows), 1, tight) is not None
    assert not before & copies(tmp_path)


def test_what_does_not_fit_is_in_memory_where_a_text_is_one_state(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    kept = with_states(source(rows), 2, place(tmp_path))
    held = with_states(source(rows), 2, place(tmp_path / "full", cap_bytes=0))
    assert np.array_equal(values(kept), values(held))
    assert not copies(tmp_path / "full")


def test_where_memory_runs_out_no_copy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that were computed in halves differ in their last digits; one a text is held in memory."""
    rows = split(ROWS, seed=3)
    whole = values(with_states(source(rows), 2, place(tmp_path / "whole")))
    compute = Body.__call__

    def limited(self: Body, packed: Packed, states: torch.Tensor | None = None) -> torch.Tensor:
        if packed.rows.count > limit:
            raise torch.OutOfMemoryError
        return compute(self, packed, states)

    monkeypatch.setattr(Body, "__call__", limited)
    limit = 20
    assert with_states(source(rows), 1, place(tmp_path)) is None
    in_memory = values(with_states(source(rows), 2, place(tmp_path)))
    np.testing.assert_allclose(in_memory, whole, rtol=0, atol=1e-5)
    limit = 0
    assert with_states(source(rows), 1, place(tmp_path)) is None  # this process does not try it again
    monkeypatch.setattr(prefix_cache, "_in_parts", set())
    with pytest.raises(TrialError, match="one row at a time") as raised:
        with_states(source(rows), 1, place(tmp_path))
    assert raised.value.failure == "out_of_memory"
    limit = ROWS
    assert not list(tmp_path.glob("*/000*/"))
    assert with_states(source(rows), 1, place(tmp_path)) is not None


def test_the_room_of_a_copy_is_taken_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = split(ROWS, seed=3)
    taken = []

    def look(*_: object) -> None:
        (file,) = tmp_path.glob("*/.0001.*.tmp/*.npy")
        taken.append(file.stat().st_blocks * 512)
        raise KeyboardInterrupt

    monkeypatch.setattr(Body, "__call__", look)
    with pytest.raises(KeyboardInterrupt):
        with_states(source(rows), 1, place(tmp_path))
    assert taken[0] >= _bytes(source(rows), 1)


def test_a_copy_that_another_process_makes_counts_and_what_a_killed_one_left_makes_room(
    tmp_path: Path,
) -> None:
    rows = split(ROWS, seed=3)
    needed = _bytes(source(rows), 1)
    half_made = tmp_path / "other" / ".0001.1.tmp"
    half_made.mkdir(parents=True)
    (half_made / "states.values.npy").write_bytes(bytes(needed))
    tight = place(tmp_path, cap_bytes=2 * needed - 1)
    with sole_owner(half_made.with_name("0001")):
        assert with_states(source(rows), 1, tight) is None
        assert half_made.exists()
    assert with_states(source(rows), 1, tight) is not None
    assert not half_made.exists()


def test_copies_of_another_processor_or_of_other_threads_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order differ in their last digits, and a promoted model is verified to the last digit."""
    rows = split(ROWS, seed=3)
    with_states(source(rows), 1, place(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with_states(source(rows), 1, place(tmp_path))
    monkeypatch.setattr(hardware, "processor", lambda: "another one")
    with_states(source(rows), 1, place(tmp_path))
    assert len(list(tmp_path.glob(f"*/0001/{MANIFEST}"))) == 3


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    before = values(with_states(source(rows), 1, place(tmp_path)))
    (file,) = tmp_path.rglob("states.values.npy")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    assert np.array_equal(values(with_states(source(rows), 1, place(tmp_path))), before)


def test_a_process_hashes_a_copy_once_until_its_file_changes(tmp_path: Path) -> None:
    rows = split(ROWS, seed=3)
    before = values(with_states(source(rows), 1, place(tmp_path)))
    (file,) = tmp_path.rglob("states.values.npy")
    written = file.stat().st_mtime_ns
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(written, written))  # as if nobody had written
    assert not np.array_equal(values(with_states(source(rows), 1, place(tmp_path))), before)
    os.utime(file)
    assert np.array_equal(values(with_states(source(rows), 1, place(tmp_path))), before)


def test_states_of_another_encoding_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = split(ROWS, seed=3)
    with_states(source(rows), 1, place(tmp_path))
    monkeypatch.setattr(data, "FORMAT", data.FORMAT + 1)
    with_states(source(rows), 1, place(tmp_path))
    assert len(copies(tmp_path)) == 2


MAKE = """
import os, signal, sys
from pathlib import Path
import torch
from finetune_sweep.train.prefix_cache import with_states
from tests.train.runs import split
from tests.train.test_prefix_cache import ROWS, place, source, values

def count(*_):
    batches.append(1)
    if sys.argv[2] == "dies" and len(batches) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
batches, origin = [], source(split(ROWS, seed=3))
origin.model.get_submodule("bert.embeddings").register_forward_hook(count)
found = values(with_states(origin, 1, place(Path(sys.argv[1]))))
print(len(batches), float(found.sum()))
"""


def making(folder: Path, *, dies: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, str(folder), "dies" if dies else "lives"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_builder_that_is_killed_leaves_nothing_broken(tmp_path: Path) -> None:
    with making(tmp_path, dies=True) as killed:
        killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not copies(tmp_path)
    assert list(tmp_path.rglob("*.tmp"))
    whole = values(with_states(source(split(ROWS, seed=3)), 1, place(tmp_path / "other")))
    assert np.array_equal(values(with_states(source(split(ROWS, seed=3)), 1, place(tmp_path))), whole)
    assert not list(tmp_path.rglob("*.tmp"))


def test_of_two_processes_one_computes_and_both_have_it(tmp_path: Path) -> None:
    with making(tmp_path) as left, making(tmp_path) as right:
        found = [process.communicate(timeout=120)[0].split() for process in (left, right)]
    assert sorted(int(count) for count, _ in found) == [0, 3]
    assert found[0][1] == found[1][1]
