"""Models that read pictures and write texts: blocks of the encoder, then those of the decoder, whatever they are."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
)

from finetune_sweep.errors import UserError
from finetune_sweep.settings import Training
from finetune_sweep.train import layers, scratch
from finetune_sweep.train.architecture import check_length, describe, resolve_depth
from finetune_sweep.train.conflicts import resolve
from finetune_sweep.train.pairs import DECODERS, ENCODERS
from finetune_sweep.train.strategies import prepare
from tests.train.test_architecture import SIZES

PAIRS = list(itertools.product(ENCODERS, DECODERS))


def tiny(encoder: str, decoder: str, width: int = 8) -> PreTrainedModel:
    """An encoder of two blocks and a decoder of three, of another width where that is asked for."""
    reads = AutoConfig.for_model(encoder, **{**SIZES[encoder], "num_hidden_layers": 2})
    wide = {"n_embd" if decoder == "gpt2" else "hidden_size": width}
    writes = AutoConfig.for_model(decoder, vocab_size=40, **{**SIZES[decoder], **wide})
    auto: Any = AutoModelForImageTextToText
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        reads, writes, decoder_start_token_id=1, pad_token_id=1
    )
    model = auto.from_config(both)
    assert isinstance(model, PreTrainedModel)
    return model


def logits(model: Any) -> torch.Tensor:  # noqa: ANN401 - of transformers
    torch.nn.Module.eval(model)
    found: torch.Tensor = model(
        pixel_values=torch.ones(1, 3, 4, 4), decoder_input_ids=torch.tensor([[3, 4, 5]])
    ).logits
    return found


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_blocks_are_counted_from_the_encoder_to_the_decoder(encoder: str, decoder: str) -> None:
    model = tiny(encoder, decoder, width=16)
    arch = describe(model.config.to_dict())
    assert (arch.blocks, arch.lists, arch.width, arch.can_pack) == (5, (2, 3), 8, False)
    parts = {name: arch.part_of(name) for name, _ in model.named_parameters()}
    assert set(parts.values()) == {"embeddings", 0, 1, 2, 3, 4, "head"}
    assert {part for name, part in parts.items() if "embeddings" in name or ".wte" in name} == {"embeddings"}
    assert {part for name, part in parts.items() if "crossattention" in name} == {2, 3, 4}
    assert parts["enc_to_dec_proj.weight"] == parts["encoder.layernorm.weight"] == 1
    both: Any = model
    shared = both.decoder.get_input_embeddings().weight  # under whichever name the model has it first
    assert {parts[name] for name, tensor in model.named_parameters() if tensor is shared} == {"embeddings"}
    heads = {name for name, part in parts.items() if part == "head"}
    assert all(name.startswith(("encoder.pooler.", "decoder.")) for name in heads)


@pytest.mark.parametrize("depth", [2, 4, "all"])
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_what_is_frozen_has_no_gradient_and_the_rest_has(
    encoder: str, decoder: str, depth: int | str
) -> None:
    model = tiny(encoder, decoder)
    arch = describe(model.config.to_dict())
    resolved = resolve_depth(depth, arch)
    layers.freeze(model, arch, resolved)
    logits(model).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    blocks = {part for name in trained if isinstance(part := arch.part_of(name), int)}
    assert blocks == set(range(5 if depth == "all" else int(resolved), 5))
    assert {name for name in trained if arch.part_of(name) == "embeddings"} == set()


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_model_without_its_last_blocks_is_that_of_a_decoder_of_one(
    encoder: str, decoder: str, tmp_path: Path
) -> None:
    model = tiny(encoder, decoder)
    settings = Training(drop_layers=2, reinit_layers=1)
    arch, depth = resolve(settings, describe(model.config.to_dict()))
    shorter = prepare(model, (), settings, arch, depth, 0)
    shorter.save_pretrained(tmp_path)
    auto: Any = AutoModelForImageTextToText
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert describe(again.config.to_dict()).lists == (2, 1)
    assert torch.equal(logits(shorter), logits(again))
    assert describe(model.config.to_dict()).lists == (2, 3)


def test_new_weights_follow_from_the_configuration(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny("vit", "gpt2").config.save_pretrained(source)
    made = [scratch.model_folder(source, tmp_path / cache) for cache in ("one", "two")]
    weights = [load_file(folder / "model.safetensors") for folder in made]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    auto: Any = AutoModelForImageTextToText
    _, info = auto.from_pretrained(made[0], output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_names_in_a_file_are_understood(encoder: str, tmp_path: Path) -> None:
    """Those of a ViT are older than those of its class: `encoder.encoder.layer` for `encoder.layers`."""
    model = tiny(encoder, "gpt2")
    model.save_pretrained(tmp_path)
    arch = describe(model.config.to_dict())
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "encoder.encoder.layer.1.attention.attention.query.weight" in names
    counts = [Counter(arch.part_of(name) for name in each) for each in (names, model.state_dict())]
    assert {part: counts[0][part] for part in range(5)} == {part: counts[1][part] for part in range(5)}


def test_positions_are_those_of_the_decoder() -> None:
    with pytest.raises(UserError, match=r"data.max_length 17: pair takes at most 16 tokens"):
        check_length(tiny("vit", "gpt2").config.to_dict(), 17, "pair")
    with pytest.raises(UserError, match=r"data.max_length 15: pair takes at most 14 tokens"):
        check_length(tiny("vit", "roberta").config.to_dict(), 15, "pair")


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        (
            "swin",
            "gpt2",
            "m: where the blocks lie in a vision-encoder-decoder whose encoder is of type 'swin'",
        ),
        ("vit", "trocr", "whose decoder is of type 'trocr' is not known; known are bert, roberta, "),
        ("vit", "gpt", "did you mean 'gpt2'"),
    ],
)
def test_a_side_that_is_not_known_is_named(encoder: str, decoder: str, expected: str) -> None:
    sides = {"encoder": {"model_type": encoder}, "decoder": {"model_type": decoder}}
    with pytest.raises(UserError, match=expected):
        describe({"model_type": "vision-encoder-decoder", **sides}, "m")
