"""Where embeddings, blocks and head lie, checked against tiny models of every family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.train.architecture import (
    Architecture,
    describe,
    is_frozen,
    resolve_depth,
    trained_parameters,
)
from finetune_sweep.train.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCKS = 3
_BERT_SIZES: dict[str, object] = {
    "num_hidden_layers": BLOCKS,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
_LLAMA_SIZES = _BERT_SIZES | {"num_key_value_heads": 1, "head_dim": 4}
_ROBERTA_SIZES = _BERT_SIZES | {"pad_token_id": 1}
_VIT_SIZES: dict[str, object] = {
    "num_hidden_layers": BLOCKS,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 4,
    "patch_size": 2,
}
SIZES: dict[str, dict[str, object]] = {
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
    "albert": _BERT_SIZES | {"embedding_size": 4},
    "deberta-v2": _BERT_SIZES
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "t5": {
        "num_layers": 2,
        "num_decoder_layers": 1,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "bart": {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "d_model": 8,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "id2label": {0: "low", 1: "high"},
        "label2id": {"low": 0, "high": 1},
        "max_position_embeddings": 16,
    },
    "vit": _VIT_SIZES,
    "swin": {
        "depths": [1, 2],
        "num_heads": [1, 2],
        "embed_dim": 8,
        "image_size": 16,
        "patch_size": 2,
        "window_size": 2,
    },
    "convnext": {
        "depths": [1, 2],
        "hidden_sizes": [8, 16],
        "num_stages": 2,
        "image_size": 16,
        "patch_size": 2,
    },
    "dinov2": _VIT_SIZES,
    "yolos": _VIT_SIZES | {"image_size": [4, 4], "num_detection_tokens": 3},
}
PICTURES = ("vit", "swin", "convnext", "dinov2", "yolos")
"""Families that take pixels."""
TEXTS = tuple(model_type for model_type in SIZES if FAMILIES[model_type].head)
"""Families whose texts are computed without padding."""
PLAIN = (*TEXTS, "vit", "dinov2")
"""Families with one list of blocks, and nothing between them."""
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

    config = AutoConfig.for_model(model_type, vocab_size=40, **SIZES[model_type])
    auto: Any = (
        AutoModelForImageClassification if model_type in PICTURES else AutoModelForSequenceClassification
    )
    model = (AutoModelForObjectDetection if model_type == "yolos" else auto).from_config(config)
    assert isinstance(model, PreTrainedModel)
    return model


def block_list(model: PreTrainedModel) -> str:
    """The name of the only list of three modules in a model, found in its structure."""
    from torch.nn import ModuleList

    lists: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and len(module) == BLOCKS
    ]
    assert len(lists) == 1
    return lists[0]


def test_every_family_is_tried() -> None:
    assert SIZES.keys() | {"encoder-decoder"} == FAMILIES.keys()  # which test_two_sided.py tries


@pytest.mark.parametrize("model_type", PLAIN)
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


@pytest.mark.parametrize("model_type", PLAIN)
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


BETWEEN: dict[str, dict[str, int | str]] = {
    "albert": {
        "albert.encoder.embedding_hidden_mapping_in.weight": "embeddings",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": 2,
        "albert.pooler.weight": "head",
    },
    "deberta-v2": {
        "deberta.encoder.rel_embeddings.weight": "embeddings",
        "deberta.encoder.LayerNorm.weight": "embeddings",
        "deberta.encoder.conv.conv.weight": 0,
        "deberta.encoder.layer.2.output.dense.weight": 2,
        "pooler.dense.weight": "head",
    },
    "t5": {
        "transformer.shared.weight": "embeddings",
        "transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 0,
        "transformer.encoder.block.1.layer.1.DenseReluDense.wo.weight": 1,
        "transformer.encoder.final_layer_norm.weight": 1,
        "transformer.decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 2,
        "transformer.decoder.final_layer_norm.weight": "head",
        "classification_head.dense.weight": "head",
    },
    "bart": {
        "model.shared.weight": "embeddings",
        "model.encoder.layernorm_embedding.weight": "embeddings",
        "model.decoder.embed_positions.weight": "embeddings",
        "model.encoder.layers.0.fc1.weight": 0,
        "model.decoder.layers.1.fc1.weight": 2,
        "classification_head.out_proj.weight": "head",
    },
    "vit": {"vit.layers.2.mlp.fc1.weight": 2},
    "swin": {
        "swin.embeddings.norm.weight": "embeddings",
        "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": 0,
        "swin.encoder.layers.0.downsample.reduction.weight": 0,
        "swin.encoder.layers.1.blocks.1.mlp.fc1.weight": 2,
        "swin.layernorm.weight": "head",
    },
    "convnext": {
        "convnext.embeddings.layernorm.weight": "embeddings",
        "convnext.encoder.stages.0.layers.0.dwconv.weight": 0,
        "convnext.encoder.stages.1.downsampling_layer.1.weight": 1,
        "convnext.encoder.stages.1.layers.0.dwconv.weight": 1,
        "convnext.encoder.stages.1.layers.1.dwconv.weight": 2,
        "convnext.layernorm.weight": "head",
    },
    "yolos": {
        "vit.embeddings.detection_tokens": "embeddings",
        "vit.encoder.interpolation.mid_position_embeddings": "embeddings",
        "vit.encoder.layer.1.output.dense.weight": 1,
        "class_labels_classifier.layers.0.weight": "head",
    },
}


@pytest.mark.parametrize("model_type", BETWEEN)
def test_what_lies_between_blocks_belongs_to_one_of_them(model_type: str) -> None:
    model = tiny(model_type)
    architecture = describe(model.config.to_dict())
    parts = {name: architecture.part_of(name) for name, _ in model.named_parameters()}
    assert {name: parts.get(name) for name in BETWEEN[model_type]} == BETWEEN[model_type]
    assert architecture.blocks == BLOCKS


def test_blocks_that_share_weights_are_frozen_together_or_not_at_all() -> None:
    config = {"model_type": "albert", "num_hidden_layers": 12, "num_hidden_groups": 2}
    two = describe(config)
    assert two.part_of("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight") == 5
    assert [resolve_depth(depth, two) for depth in ("embeddings", 6, "75%", "all")] == [
        "embeddings",
        6,
        6,
        12,
    ]
    with pytest.raises(UserError, match="freeze_depth 3: 6 blocks of albert in a row share their weights"):
        resolve_depth(3, two)
    with pytest.raises(UserError, match="albert can drop none, as groups of 6 blocks share their weights"):
        two.without(1)
    assert describe({**config, "num_hidden_groups": 1}).without(4).blocks == 8


@pytest.mark.parametrize(
    ("model_type", "count", "expected"),
    [
        ("bert", 3, "drop_layers 3: bert has 3 blocks, and one has to stay; write 0 to 2"),
        ("t5", 1, "drop_layers 1: t5 has 3 blocks, and its last stack has 1; write 0"),
        ("bart", 2, "drop_layers 2: bart has 3 blocks, and its last stack has 2; write 0 to 1"),
        ("swin", 2, "drop_layers 2: swin has 3 blocks, and its last stage has 2; write 0 to 1"),
        ("yolos", 1, "drop_layers 1: yolos has 3 blocks, and it has position embeddings for .*; write 0"),
    ],
)
def test_blocks_that_cannot_be_left_out_are_refused(model_type: str, count: int, expected: str) -> None:
    with pytest.raises(UserError, match=f"{expected}$"):
        describe(tiny(model_type).config.to_dict()).without(count)


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
