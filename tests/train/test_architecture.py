"""Where embeddings, blocks and head lie, checked against tiny models of every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.train.architecture import (
    FAMILIES,
    Architecture,
    describe,
    is_frozen,
    resolve_depth,
    trained_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCKS = 3
_BERT_SIZES = {
    "num_hidden_layers": BLOCKS,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
_LLAMA_SIZES = _BERT_SIZES | {"num_key_value_heads": 1, "head_dim": 4}
_ROBERTA_SIZES = _BERT_SIZES | {"pad_token_id": 1}
SIZES: Mapping[str, Mapping[str, int | list[int]]] = {
    "bert": _BERT_SIZES,
    "roberta": _ROBERTA_SIZES,
    "xlm-roberta": _ROBERTA_SIZES,
    "camembert": _ROBERTA_SIZES,
    "distilbert": {
        "n_layers": BLOCKS,
        "dim": 8,
        "n_heads": 2,
        "hidden_dim": 16,
        "max_position_embeddings": 16,
    },
    "electra": _BERT_SIZES | {"embedding_size": 4},
    "gpt2": {
        "n_layer": BLOCKS,
        "n_embd": 8,
        "n_head": 2,
        "n_positions": 16,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
    "llama": _LLAMA_SIZES,
    "mistral": _LLAMA_SIZES,
    "qwen2": _LLAMA_SIZES,
    "qwen3": _LLAMA_SIZES,
    "vit": {
        "num_hidden_layers": BLOCKS,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 4,
        "patch_size": 2,
    },
    "yolos": {
        "hidden_size": 8,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": [4, 4],
        "patch_size": 2,
        "num_detection_tokens": 2,
    },
}
PICTURES = {"vit", "yolos"}
"""Families that take pixels."""
TEXTS = tuple(model_type for model_type in SIZES if model_type not in PICTURES)
SIX = Architecture(model_type="bert", blocks=6, name="minilm-l6")


def tiny(model_type: str) -> PreTrainedModel:
    """A random classifier of a family, with three blocks."""
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        AutoModelForObjectDetection,
        AutoModelForSequenceClassification,
        PreTrainedModel,
    )

    config = AutoConfig.for_model(model_type, vocab_size=30, **SIZES[model_type])
    autos = {"vit": AutoModelForImageClassification, "yolos": AutoModelForObjectDetection}
    auto = autos.get(model_type, AutoModelForSequenceClassification)
    model = auto.from_config(config)  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model


def block_list(model: PreTrainedModel) -> str:
    """The name of the only list of three blocks in a model, found in its structure; a head may have three layers."""
    from torch.nn import Linear, ModuleList

    lists: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and len(module) == BLOCKS and not isinstance(module[0], Linear)
    ]
    assert len(lists) == 1
    return lists[0]


def test_every_family_is_tried() -> None:
    assert SIZES.keys() | {"t5", "bart", "encoder-decoder"} == FAMILIES.keys()  # these: test_two_sided.py


@pytest.mark.parametrize("model_type", SIZES)
def test_every_parameter_of_a_family_has_the_part_in_which_its_model_keeps_it(model_type: str) -> None:
    model = tiny(model_type)
    architecture = describe(model.config.to_dict())
    assert architecture.blocks == BLOCKS
    prefix = block_list(model) + "."
    parts = {name: architecture.part_of(name) for name, _ in model.named_parameters()}
    for name, part in parts.items():
        if name.startswith(prefix):
            assert part == int(name.removeprefix(prefix).split(".")[0])
        else:
            assert part == ("embeddings" if "embed" in name or "wte" in name or "wpe" in name else "head")
    assert set(parts.values()) == {"embeddings", *range(BLOCKS), "head"}


@pytest.mark.parametrize("model_type", SIZES)
def test_files_of_a_base_model_are_read_as_those_of_a_classifier(model_type: str) -> None:
    model = tiny(model_type)
    architecture = describe(model.config.to_dict())
    prefix = f"{model.base_model_prefix}."
    for name, _ in model.named_parameters():
        assert architecture.part_of(name.removeprefix(prefix)) == architecture.part_of(name)


@pytest.mark.parametrize("model_type", SIZES)
def test_gradients_stop_below_the_frozen_blocks(model_type: str) -> None:
    """What is told to be frozen lies before what is trained: a loss needs no gradient through it."""
    import torch

    model = tiny(model_type)
    architecture = describe(model.config.to_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(architecture.part_of(name), 2))
    inputs = torch.ones(1, 3, 4, 4) if model_type in PICTURES else torch.tensor([[2, 3, 4]])
    hidden = model(inputs, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in hidden] == [False, False, False, True]


@pytest.mark.parametrize(
    ("model_type", "name", "part"),
    [
        ("bert", "bert.pooler.dense.weight", "head"),
        ("bert", "cls.predictions.transform.dense.weight", "head"),
        ("distilbert", "pre_classifier.weight", "head"),
        ("distilbert", "transformer.layer.1.ffn.lin1.weight", 1),
        ("electra", "electra.embeddings_project.weight", "embeddings"),
        ("gpt2", "transformer.ln_f.weight", "head"),
        ("gpt2", "h.11.mlp.c_fc.bias", 11),
        ("llama", "model.norm.weight", "head"),
        ("llama", "lm_head.weight", "head"),
        ("llama", "score.weight", "head"),
    ],
)
def test_what_follows_the_blocks_is_head(model_type: str, name: str, part: int | str) -> None:
    assert Architecture(model_type=model_type, blocks=12, name="m").part_of(name) == part


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "m: config.json has no model_type"),
        (
            {"model_type": "robert"},
            "model of type 'robert' is not known; known are bert, .*did you mean 'roberta'",
        ),
        ({"model_type": "gpt2", "num_hidden_layers": 6}, "as n_layer, 1 or more, but has None"),
        ({"model_type": "bert", "num_hidden_layers": 0}, "as num_hidden_layers, 1 or more, but has 0"),
    ],
)
def test_an_unknown_model_is_told_by_what_is_missing(config: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        describe(config, "m")


@pytest.mark.parametrize(
    ("depth", "resolved"),
    [
        (0, 0),
        (3, 3),
        (6, 6),
        ("embeddings", "embeddings"),
        ("all", 6),
        ("0%", 0),
        ("33.3%", 1),
        ("50%", 3),
        ("99%", 5),
        ("100%", 6),
    ],
)
def test_a_depth_becomes_a_number_of_blocks(depth: int | str, resolved: int | str) -> None:
    assert resolve_depth(depth, SIX) == resolved


@pytest.mark.parametrize("depth", [-1, 7, 9, True, "3", "101%", "-5%", "half", ""])
def test_a_depth_that_the_model_does_not_have_is_refused(depth: int | str) -> None:
    with pytest.raises(
        UserError, match=f"freeze_depth {depth}: minilm-l6 has 6 blocks; write 0 to 6, embeddings"
    ):
        resolve_depth(depth, SIX)


def test_a_misspelt_depth_is_told_the_nearest_word() -> None:
    with pytest.raises(UserError, match="did you mean 'embeddings'"):
        resolve_depth("embedding", SIX)


def test_trained_parameters_fall_with_depth() -> None:
    shapes = {
        "embeddings.word_embeddings.weight": (10, 4),
        "encoder.layer.0.attention.self.query.weight": (4, 4),
        "encoder.layer.1.attention.self.query.weight": (4, 4),
        "pooler.dense.bias": (4,),
        "classifier.scale": (),
    }
    two = Architecture(model_type="bert", blocks=2, name="two")
    counts = [
        trained_parameters(shapes, two, resolve_depth(depth, two)) for depth in (0, "embeddings", 1, "all")
    ]
    assert counts == [(77, 77), (37, 77), (21, 77), (5, 77)]
