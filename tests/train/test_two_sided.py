"""Encoder-decoders: blocks of the encoder, then those of the decoder; what a depth freezes needs no gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from finetune_sweep.errors import UserError
from finetune_sweep.settings import Training
from finetune_sweep.train import layers
from finetune_sweep.train.architecture import Part, check_length, describe, resolve_depth
from finetune_sweep.train.conflicts import resolve
from finetune_sweep.train.strategies import prepare


def t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=3, num_heads=2
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def bart() -> PreTrainedModel:
    config = BartConfig(
        vocab_size=9,
        d_model=8,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
    )
    return BartForConditionalGeneration(config)


def two_berts() -> PreTrainedModel:
    sides = [
        BertConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=blocks,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
        )
        for blocks in (2, 3)
    ]
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*sides))


PARTS: dict[str, dict[str, Part]] = {
    "t5": {
        "shared.weight": "embeddings",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 0,
        "encoder.block.1.layer.1.DenseReluDense.wi.weight": 1,
        "encoder.final_layer_norm.weight": 1,
        "decoder.block.0.layer.1.EncDecAttention.q.weight": 2,
        "decoder.block.2.layer.0.SelfAttention.q.weight": 4,
        "decoder.final_layer_norm.weight": "head",
    },
    "bart": {
        "model.shared.weight": "embeddings",
        "model.encoder.embed_positions.weight": "embeddings",
        "model.encoder.layers.1.fc1.weight": 1,
        "model.decoder.layernorm_embedding.weight": "embeddings",
        "model.decoder.layers.0.encoder_attn.q_proj.weight": 2,
        "model.decoder.layers.2.fc1.weight": 4,
    },
    "encoder-decoder": {
        "encoder.embeddings.word_embeddings.weight": "embeddings",
        "encoder.encoder.layer.1.attention.self.query.weight": 1,
        "encoder.pooler.dense.weight": "head",
        "decoder.bert.embeddings.position_embeddings.weight": "embeddings",
        "decoder.bert.encoder.layer.0.crossattention.self.query.weight": 2,
        "decoder.bert.encoder.layer.2.output.dense.weight": 4,
        "decoder.cls.predictions.transform.dense.weight": "head",
    },
}
MODELS = {"t5": t5, "bart": bart, "encoder-decoder": two_berts}


@pytest.mark.parametrize("model_type", MODELS)
def test_blocks_are_counted_from_the_encoder_to_the_decoder(model_type: str) -> None:
    model = MODELS[model_type]()
    arch = describe(model.config.to_dict())
    assert (arch.blocks, arch.lists, arch.width, arch.can_pack) == (5, (2, 3), 8, False)
    names = {name for name, _ in model.named_parameters()}
    assert names >= PARTS[model_type].keys()
    assert {name: arch.part_of(name) for name in PARTS[model_type]} == PARTS[model_type]
    assert {arch.part_of(name) for name in names} - {"head"} == {"embeddings", 0, 1, 2, 3, 4}


# Nothing of a BART lies after its blocks: what makes words of states is tied to the embeddings.
@pytest.mark.parametrize(
    ("model_type", "depth"),
    [*((name, depth) for name in MODELS for depth in (2, 4)), ("t5", "all"), ("encoder-decoder", "all")],
)
def test_what_is_frozen_has_no_gradient_and_the_rest_has(model_type: str, depth: int | str) -> None:
    model = MODELS[model_type]()
    arch = describe(model.config.to_dict())
    resolved = resolve_depth(depth, arch)
    layers.freeze(model, arch, resolved)
    ids = torch.tensor([[3, 4, 5]])
    model(input_ids=ids, decoder_input_ids=ids).logits.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    blocks = {part for name in trained if isinstance(part := arch.part_of(name), int)}
    assert blocks == set(range(5 if depth == "all" else int(resolved), 5))
    assert {name for name in trained if arch.part_of(name) == "embeddings"} == set()


def test_a_file_of_t5_that_names_no_decoder_blocks_has_as_many_as_of_the_encoder() -> None:
    assert describe({"model_type": "t5", "num_layers": 6, "d_model": 512}).blocks == 12


@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_without_its_last_blocks_is_that_of_a_decoder_of_one(model_type: str, tmp_path: Path) -> None:
    model = MODELS[model_type]()
    settings = Training(drop_layers=2)
    arch, depth = resolve(settings, describe(model.config.to_dict()))
    shorter = prepare(model, (), settings, arch, depth, 0)
    shorter.save_pretrained(tmp_path)
    loading: Any = type(model)
    again, info = loading.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert describe(again.config.to_dict()).lists == (2, 1)
    ids = torch.tensor([[3, 4, 5]])
    logits = []
    for each in (shorter, again):
        torch.nn.Module.eval(each)
        logits.append(each(input_ids=ids, decoder_input_ids=ids).logits)
    assert torch.equal(*logits)
    assert describe(model.config.to_dict()).lists == (2, 3)


def test_positions_are_those_of_the_encoder() -> None:
    config = two_berts().config.to_dict()
    with pytest.raises(UserError, match=r"data.max_length 17: pair takes at most 16 tokens"):
        check_length(config, 17, "pair")
    check_length(config, 16, "pair")
