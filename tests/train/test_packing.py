"""A batch without padding gives what the padded one gives, in every family."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import mean, stdev
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from finetune_sweep.settings import Training
from finetune_sweep.tasks.arrays import Batch
from finetune_sweep.train.architecture import Architecture, describe
from finetune_sweep.train.families import FAMILIES
from finetune_sweep.train.packing import STATES, Body, attend, forward_of, pack
from tests.train.runs import assert_same_weights, bert, job_for, trained
from tests.train.test_architecture import BLOCKS, TEXTS, tiny

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (5, 9, 1, 12, 7)


def family(model_type: str) -> tuple[PreTrainedModel, Architecture, int]:
    """A random model without dropout, its architecture, its padding token."""
    torch.manual_seed(0)
    model = tiny(model_type)
    model.eval()  # type: ignore[no-untyped-call]
    model.config.pad_token_id = 1 if FAMILIES[model_type].counts_from_padding else 0
    return model, describe(model.config.to_dict()), model.config.pad_token_id


def texts(pad_token_id: int, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, 30, mask.shape, generator=generator).where(mask, torch.tensor(pad_token_id))
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.arange(len(lengths)) % 2}


@pytest.mark.parametrize("model_type", TEXTS)
@pytest.mark.parametrize("lengths", [LENGTHS, (7, 7, 7), (4,)])
def test_logits_and_gradients_are_those_of_the_padded_batch(
    model_type: str, lengths: tuple[int, ...]
) -> None:
    model, arch, pad_token_id = family(model_type)
    batch = texts(pad_token_id, lengths)
    logits, gradients = [], []
    for unpadding in (False, True):
        model.zero_grad()
        found = forward_of(model, arch, unpadding=unpadding)(batch).logits
        nn.functional.cross_entropy(found, batch["labels"]).backward()
        logits.append(found.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert arch.can_pack
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("model_type", TEXTS)
def test_half_precision_stays_as_near_to_the_padded_batch_as_it_is_exact(model_type: str) -> None:
    model, arch, pad_token_id = family(model_type)
    batch = texts(pad_token_id)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        padded, packed = (forward_of(model, arch, unpadding=on)(batch).logits.float() for on in (False, True))
    torch.testing.assert_close(packed, padded, rtol=0.02, atol=0.002)


@pytest.mark.parametrize("model_type", TEXTS)
def test_a_text_may_hold_the_padding_token(model_type: str) -> None:
    model, arch, pad_token_id = family(model_type)
    batch = texts(pad_token_id)
    batch["input_ids"][3, 4] = batch["input_ids"][0, 4] = pad_token_id  # in the middle, and at the end
    with torch.no_grad():
        padded, packed = (forward_of(model, arch, unpadding=on)(batch).logits for on in (False, True))
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", TEXTS)
@pytest.mark.parametrize("first", range(BLOCKS + 1))
def test_a_model_goes_on_from_the_states_after_a_block(model_type: str, first: int) -> None:
    model, arch, pad_token_id = family(model_type)
    batch = texts(pad_token_id)
    packed = pack(batch, arch, pad_token_id, "cpu")
    with torch.no_grad():
        whole = forward_of(model, arch, unpadding=True)(batch).logits
        states = Body(model, arch, last=first)(packed)
        kept = states if first < BLOCKS else states.index_select(0, packed.read)
        rest = forward_of(model, arch, unpadding=True, first=first)({**batch, STATES: kept}).logits
        deeper = Body(model, arch, first=first)(packed, states)
    assert torch.equal(rest, whole)
    assert torch.equal(deeper, Body(model, arch)(packed))


@pytest.mark.parametrize("model_type", TEXTS)
def test_the_model_itself_stays_as_it_is(model_type: str) -> None:
    model, arch, pad_token_id = family(model_type)
    names, batch = list(model.state_dict()), texts(pad_token_id)
    before = forward_of(model, arch, unpadding=False)(batch).logits
    forward_of(model, arch, unpadding=True, first=1)
    forward_of(model, arch, unpadding=True)(batch)
    assert list(model.state_dict()) == names
    assert torch.equal(forward_of(model, arch, unpadding=False)(batch).logits, before)


class Causal(nn.Module):
    """A module whose tokens do not look ahead."""

    is_causal = True


def test_a_token_sees_no_farther_than_its_window() -> None:
    torch.manual_seed(0)
    packing = pack(
        texts(0, (6, 3)), describe({"model_type": "mistral", "num_hidden_layers": 1}), 0, "cpu"
    ).rows
    query, key, value = torch.randn(3, 1, 2, 9, 4)
    moved_value = value.clone()
    moved_value[:, :, 0] += 1  # the first token of the first text
    outputs = [
        attend(Causal(), query, key, v, None, packing=packing, sliding_window=2)[0]
        for v in (value, moved_value)
    ]
    moved = (outputs[0] != outputs[1]).flatten(2).any(2)[0]
    assert moved.tolist() == [True, True] + [False] * 7


def runs(*, unpadding: bool, dropout: float, seed: int) -> tuple[list[float], dict[str, Tensor]]:
    model = bert(dropout)
    settings = Training(learning_rate=1e-3, batch_size=8, epochs=3)
    job = replace(job_for(model, settings), seed=seed, unpadding=unpadding)
    evaluations, weights = trained(job, model)
    return [evaluation.metrics["loss"] for evaluation in evaluations], weights


def test_a_training_without_dropout_is_the_same_with_padding_and_without() -> None:
    (packed, weights), (padded, others) = (runs(unpadding=on, dropout=0.0, seed=0) for on in (True, False))
    assert packed == pytest.approx(padded, abs=1e-4)
    assert weights.keys() == others.keys()


def test_with_dropout_the_difference_is_within_the_noise_of_the_seed() -> None:
    """Ten seeds, each with padding and without: the mean difference is within two of its standard errors."""
    pairs = [
        [runs(unpadding=on, dropout=0.1, seed=seed)[0][-1] for on in (True, False)] for seed in range(10)
    ]
    differences = [packed - padded for packed, padded in pairs]
    assert abs(mean(differences)) <= 2 * stdev(differences) / 10**0.5
    assert any(differences)


def test_two_runs_without_padding_are_equal_to_the_last_digit() -> None:
    both = [runs(unpadding=True, dropout=0.1, seed=3) for _ in range(2)]
    assert both[0][0] == both[1][0]
    assert all(left != right for left, right in pairwise(both[0][0]))
    assert_same_weights(both[0][1], both[1][1])
