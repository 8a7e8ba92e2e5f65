from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from finetune_sweep.train.architecture import Architecture, Depth, describe
from finetune_sweep.train.layers import changed_tensors, freeze, initialize_new, train_mode

NEW = ("classifier.bias", "classifier.weight")


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=16,
        )
    )


def gpt2() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return GPT2ForSequenceClassification(config)


def arch_of(model: PreTrainedModel) -> Architecture:
    return describe(model.config.to_dict())


@pytest.mark.parametrize(
    ("depth", "frozen"),
    [
        (0, ()),
        ("embeddings", ("bert.embeddings.",)),
        (1, ("bert.embeddings.", "bert.encoder.layer.0.")),
        (2, ("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1.")),
    ],
)
def test_freezes_exactly_the_parameters_below_the_depth(depth: Depth, frozen: tuple[str, ...]) -> None:
    model = bert()
    freeze(model, arch_of(model), depth)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen)), name


def test_freezing_less_afterwards_opens_what_was_frozen_and_drops_gradients() -> None:
    model = bert()
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    freeze(model, arch_of(model), 2)
    freeze(model, arch_of(model), 0)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_no_graph_is_recorded_for_the_frozen_prefix() -> None:
    model = bert()
    freeze(model, arch_of(model), 1)
    train_mode(model, arch_of(model), 1)
    states = model(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, True]


@pytest.mark.parametrize("build", [bert, gpt2])
def test_dropout_is_off_in_the_frozen_part_and_on_above_it(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    train_mode(model, arch_of(model), 1)
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.manual_seed(1)
    first = model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.manual_seed(2)
    second = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True, False]


def test_training_mode_of_everything_when_nothing_is_frozen() -> None:
    model = bert()
    nn.Module.eval(model)
    train_mode(model, arch_of(model), 0)
    assert all(module.training for module in model.modules())


def test_dropout_before_the_head_stays_on_when_all_blocks_are_frozen() -> None:
    model = bert()
    train_mode(model, arch_of(model), 2)
    assert model.dropout.training
    assert not any(module.training for module in model.get_submodule("bert.encoder.layer.1").modules())


def test_changed_tensors_are_the_live_trained_parameters() -> None:
    model = bert()
    changed = changed_tensors(model, arch_of(model), 2)
    assert sorted(changed) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert changed["classifier.weight"].data_ptr() == model.classifier.weight.data_ptr()
    assert set(changed_tensors(model, arch_of(model), 0)) == {name for name, _ in model.named_parameters()}


def test_running_statistics_are_changed_tensors_unless_frozen() -> None:
    arch = Architecture("bert", blocks=1, name="with norms")
    model = nn.ModuleDict(
        {"embeddings": nn.ModuleDict({"norm": nn.BatchNorm1d(2)}), "classifier": nn.BatchNorm1d(2)}
    )
    statistics = {"classifier.running_mean", "classifier.running_var", "classifier.num_batches_tracked"}
    assert set(changed_tensors(model, arch, 1)) == {"classifier.weight", "classifier.bias", *statistics}
    assert "embeddings.norm.running_mean" in changed_tensors(model, arch, 0)


def test_new_parameters_depend_on_the_seed_alone_and_nothing_else_changes() -> None:
    model = bert()
    before = copy.deepcopy(model.state_dict())
    initialize_new(model, NEW, seed=1)
    first = model.classifier.weight.detach().clone()
    torch.rand(7)
    nn.init.ones_(model.classifier.bias)
    initialize_new(model, NEW, seed=1)
    assert torch.equal(model.classifier.weight, first)
    assert not model.classifier.bias.any()
    for name, tensor in model.state_dict().items():
        assert name in NEW or torch.equal(tensor, before[name]), name
    initialize_new(model, NEW, seed=2)
    assert not torch.equal(model.classifier.weight, first)


def test_new_parameters_are_drawn_as_the_model_draws_its_own() -> None:
    model = bert()
    model.config.initializer_range = 0.5
    initialize_new(model, ["bert.encoder.layer.1.output.dense.weight"], seed=3)
    assert model.get_parameter("bert.encoder.layer.1.output.dense.weight").std().item() == pytest.approx(
        0.5, rel=0.1
    )
    assert model.get_parameter("bert.encoder.layer.0.output.dense.weight").std().item() == pytest.approx(
        0.02, rel=0.1
    )


def test_drawing_leaves_the_random_state_of_the_process() -> None:
    model = bert()
    before = torch.get_rng_state()
    initialize_new(model, NEW, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
