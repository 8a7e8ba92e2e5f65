"""How the models of each type name their parameters, and count their blocks: the table of `architecture.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

Entrance = Literal["given", "same", "zero"]


@dataclass(frozen=True)
class Family:
    """How the models of one type name their parameters and count their blocks.

    Paths are those of the base model. In `blocks` and `between` a star is the number of a stage, where blocks lie in
    stages: the lists of all stages are then one after the other.

    Args:
        prefix: The base model's attribute in a model with a head; absent in files of the base model.
        embeddings: Modules that come before the first block, or that all blocks use.
        blocks: The list of blocks; their index follows.
        count: The key of ``config.json`` that tells how many blocks there are; of each stage, if it is a list.
            Before a point stands the key of the part of the configuration that has it.
        width: The key of ``config.json`` that tells the size of the states between blocks.
        head: What turns the state of one token after the last block, of shape (rows, 1, hidden), into logits:
            modules of the whole model in their order, and ``relu``. Empty where this is not known: such models
            are padded.
        reads: The token of a text that the head reads: the first, or the last that is no padding.
        closing: Modules of the base model that come after the blocks; they belong to the head.
        entrance: What the embedding modules have to be for a forward pass that is given the states after them:
            ``given`` returns these states, ``same`` its input, ``zero`` a zero. Others are not called then.
        counts_from_padding: Whether positions count the tokens that are no padding, from one above its id.
        decoder: The list of blocks that comes after the first one, in an encoder-decoder.
        decoder_count: The key that tells how many blocks it has.
        between: Modules that lie between blocks, and which block they belong to: that of their stage which is
            the ``first`` or the ``last``.
        formerly: How ``blocks`` is called in files of older versions, where that differs.
        groups: The key that tells how many sets of weights the blocks share, where they do.
        undroppable: Why no block can be left out; empty where it can.
        pools: Whether its states are one for each token of a text, so that another head can pool them.
        adapted: The ends of the names of the linear layers that LoRA adapts by default: query and value, and what holds
            them or stands in their place.
    """

    prefix: str
    embeddings: tuple[str, ...]
    blocks: str
    count: str = "num_hidden_layers"
    width: str = "hidden_size"
    head: tuple[str, ...] = ()
    reads: Literal["first", "last"] = "first"
    closing: tuple[str, ...] = ()
    entrance: tuple[tuple[str, Entrance], ...] = (("embeddings", "given"),)
    counts_from_padding: bool = False
    decoder: str = ""
    decoder_count: str = ""
    between: tuple[tuple[str, Literal["first", "last"]], ...] = ()
    formerly: str = ""
    groups: str = ""
    undroppable: str = ""
    pools: bool = True
    adapted: tuple[str, ...] = ("query", "value")

    @cached_property
    def block_names(self) -> tuple[re.Pattern[str], ...]:
        """What names of parameters in blocks begin with: the stage, if there is one, and the index."""
        return tuple(
            re.compile(rf"{_pattern(path)}\.(\d+)\.") for path in (self.blocks, self.formerly) if path
        )

    @cached_property
    def between_names(self) -> tuple[tuple[re.Pattern[str], Literal["first", "last"]], ...]:
        """What names of parameters between blocks begin with: the stage, if there is one."""
        return tuple((re.compile(rf"{_pattern(path)}\."), which) for path, which in self.between)


def _pattern(path: str) -> str:
    return re.escape(path).replace(r"\*", r"(\d+)")


_BERT: Final = Family(
    prefix="bert",
    embeddings=("embeddings",),
    blocks="encoder.layer",
    head=("bert.pooler", "dropout", "classifier"),
    closing=("pooler",),
)
_ROBERTA: Final = Family(
    prefix="roberta",
    embeddings=("embeddings",),
    blocks="encoder.layer",
    head=("classifier",),
    counts_from_padding=True,
)
_DISTILBERT: Final = Family(
    prefix="distilbert",
    embeddings=("embeddings",),
    blocks="transformer.layer",
    count="n_layers",
    width="dim",
    head=("pre_classifier", "relu", "dropout", "classifier"),
    adapted=("q_lin", "v_lin"),
)
_ELECTRA: Final = Family(
    prefix="electra",
    embeddings=("embeddings", "embeddings_project"),
    blocks="encoder.layer",
    head=("classifier",),
    entrance=(("embeddings", "given"), ("embeddings_project", "same")),
)
_GPT2: Final = Family(
    prefix="transformer",
    embeddings=("wte", "wpe", "drop"),
    blocks="h",
    count="n_layer",
    width="n_embd",
    head=("transformer.ln_f", "score"),
    reads="last",
    closing=("ln_f",),
    entrance=(("wpe", "zero"), ("drop", "same")),
    adapted=("c_attn",),
)
_LLAMA: Final = Family(
    prefix="model",
    embeddings=("embed_tokens",),
    blocks="layers",
    head=("model.norm", "score"),
    reads="last",
    closing=("norm",),
    entrance=(),
    adapted=("q_proj", "v_proj", "query", "value"),
)
_ALBERT: Final = Family(
    prefix="albert",
    embeddings=("embeddings", "encoder.embedding_hidden_mapping_in"),
    blocks="encoder.albert_layer_groups",
    closing=("pooler",),
    groups="num_hidden_groups",
)
_DEBERTA: Final = Family(
    prefix="deberta",
    embeddings=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm"),
    blocks="encoder.layer",
    between=(("encoder.conv", "first"),),
    adapted=("query_proj", "value_proj"),
)
_T5: Final = Family(
    prefix="transformer",
    embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
    blocks="encoder.block",
    count="num_layers",
    width="d_model",
    decoder="decoder.block",
    decoder_count="num_decoder_layers",
    closing=("decoder.final_layer_norm",),
    between=(("encoder.final_layer_norm", "last"),),
    adapted=("q", "v"),
    pools=False,
)
_BART: Final = Family(
    prefix="model",
    embeddings=(
        "shared",
        "encoder.embed_tokens",
        "encoder.embed_positions",
        "encoder.layernorm_embedding",
        "decoder.embed_tokens",
        "decoder.embed_positions",
        "decoder.layernorm_embedding",
    ),
    blocks="encoder.layers",
    count="encoder_layers",
    width="d_model",
    decoder="decoder.layers",
    decoder_count="decoder_layers",
    adapted=("q_proj", "v_proj", "query", "value"),
    pools=False,
)
_TWO_BERTS: Final = Family(
    prefix="encoder_decoder",
    embeddings=("encoder.embeddings", "decoder.bert.embeddings"),
    blocks="encoder.encoder.layer",
    count="encoder.num_hidden_layers",
    width="encoder.hidden_size",
    decoder="decoder.bert.encoder.layer",
    decoder_count="decoder.num_hidden_layers",
    pools=False,
)
_VIT: Final = Family(
    prefix="vit",
    embeddings=("embeddings",),
    blocks="layers",
    formerly="encoder.layer",
    closing=("layernorm",),
    adapted=("q_proj", "v_proj", "query", "value"),
    pools=False,
)
_SWIN: Final = Family(
    prefix="swin",
    embeddings=("embeddings",),
    blocks="encoder.layers.*.blocks",
    count="depths",
    closing=("layernorm",),
    between=(("encoder.layers.*.downsample", "last"),),
    adapted=("q_proj", "v_proj", "query", "value"),
    pools=False,
)
_CONVNEXT: Final = Family(
    prefix="convnext",
    embeddings=("embeddings",),
    blocks="encoder.stages.*.layers",
    count="depths",
    closing=("layernorm",),
    between=(("encoder.stages.*.downsampling_layer", "first"),),
    adapted=("pwconv1", "pwconv2"),
    pools=False,
)
_DINOV2: Final = Family(
    prefix="dinov2",
    embeddings=("embeddings",),
    blocks="encoder.layer",
    closing=("layernorm",),
    adapted=("q_proj", "v_proj", "query", "value"),
    pools=False,
)
_YOLOS: Final = Family(
    prefix="vit",
    embeddings=("embeddings", "encoder.interpolation", "encoder.mid_position_embeddings"),
    blocks="encoder.layer",
    closing=("layernorm",),
    undroppable="it has position embeddings for the place after each block",
    pools=False,
)

FAMILIES: Final[Mapping[str, Family]] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "albert": _ALBERT,
    "deberta-v2": _DEBERTA,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "t5": _T5,
    "bart": _BART,
    "encoder-decoder": _TWO_BERTS,
    "vit": _VIT,
    "swin": _SWIN,
    "convnext": _CONVNEXT,
    "dinov2": _DINOV2,
    "yolos": _YOLOS,
}
