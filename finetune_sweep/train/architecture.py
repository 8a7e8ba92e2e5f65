"""Embeddings, ordered blocks and head of a model, told apart by the names of its parameters.

The one place that knows architectures. It reads names and numbers only, so that a sweep file can be
checked, and the size of what a freeze depth trains be told, before any weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import prod
from typing import Literal

from finetune_sweep.errors import UserError, nearest

Part = int | Literal["embeddings", "head"]
Depth = int | Literal["embeddings"]
Entrance = Literal["given", "same", "zero"]


@dataclass(frozen=True)
class Family:
    """How the models of one type name their parameters and count their blocks.

    Args:
        prefix: The base model's attribute in a model with a head; absent in files of the base model.
        embeddings: Modules that come before the first block.
        blocks: The list of blocks; their index follows.
        count: The key of ``config.json`` that tells how many blocks there are.
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


_BERT = Family(
    prefix="bert",
    embeddings=("embeddings",),
    blocks="encoder.layer",
    head=("bert.pooler", "dropout", "classifier"),
    closing=("pooler",),
)
_ROBERTA = Family(
    prefix="roberta",
    embeddings=("embeddings",),
    blocks="encoder.layer",
    head=("classifier",),
    counts_from_padding=True,
)
_DISTILBERT = Family(
    prefix="distilbert",
    embeddings=("embeddings",),
    blocks="transformer.layer",
    count="n_layers",
    width="dim",
    head=("pre_classifier", "relu", "dropout", "classifier"),
)
_ELECTRA = Family(
    prefix="electra",
    embeddings=("embeddings", "embeddings_project"),
    blocks="encoder.layer",
    head=("classifier",),
    entrance=(("embeddings", "given"), ("embeddings_project", "same")),
)
_GPT2 = Family(
    prefix="transformer",
    embeddings=("wte", "wpe", "drop"),
    blocks="h",
    count="n_layer",
    width="n_embd",
    head=("transformer.ln_f", "score"),
    reads="last",
    closing=("ln_f",),
    entrance=(("wpe", "zero"), ("drop", "same")),
)
_LLAMA = Family(
    prefix="model",
    embeddings=("embed_tokens",),
    blocks="layers",
    head=("model.norm", "score"),
    reads="last",
    closing=("norm",),
    entrance=(),
)
_T5 = Family(
    prefix="transformer",
    embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
    blocks="encoder.block",
    count="num_layers",
    width="d_model",
    decoder="decoder.block",
    decoder_count="num_decoder_layers",
)
_BART = Family(
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
)
_TWO_BERTS = Family(
    prefix="encoder_decoder",
    embeddings=("encoder.embeddings", "decoder.bert.embeddings"),
    blocks="encoder.encoder.layer",
    count="encoder.num_hidden_layers",
    width="encoder.hidden_size",
    decoder="decoder.bert.encoder.layer",
    decoder_count="decoder.num_hidden_layers",
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "gpt2": _GPT2,
    "vit": Family("vit", ("embeddings",), "layers"),
    "yolos": Family("vit", ("embeddings", "encoder.interpolation"), "encoder.layer"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "t5": _T5,
    "bart": _BART,
    "encoder-decoder": _TWO_BERTS,
}


@dataclass(frozen=True)
class Architecture:
    """The parts of one model, in the order in which a text passes them.

    Args:
        model_type: The family's name in ``config.json``.
        blocks: How many blocks lie between embeddings and head.
        name: What messages call the model.
        width: The size of the states between blocks; 0 if the configuration does not tell it.
        decoder_blocks: How many of the blocks are those of the decoder, after the encoder's.
    """

    model_type: str
    blocks: int
    name: str
    width: int = 0
    decoder_blocks: int = 0

    @property
    def family(self) -> Family:
        """How models of this type are built."""
        return FAMILIES[self.model_type]

    @property
    def can_pack(self) -> bool:
        """Whether texts can be computed without padding between them."""
        return bool(self.family.head) and self.width > 0

    def part_of(self, parameter_name: str) -> Part:
        """Returns where a parameter belongs: embeddings, the index of its block, or the head.

        The head is everything after the blocks: final norm, pooler, classifier and language-model head.
        Names with and without the base model's prefix are understood.
        """
        family = self.family
        name = parameter_name.removeprefix(f"{family.prefix}.")
        if any(name.startswith(f"{module}.") for module in family.embeddings):
            return "embeddings"
        for path, before in ((family.blocks, 0), (family.decoder, self.blocks - self.decoder_blocks)):
            block = re.match(rf"{re.escape(path)}\.(\d+)\.", name) if path else None
            if block:
                return before + int(block[1])
        return "head"


def describe(config: Mapping[str, object], name: str = "") -> Architecture:
    """Reads the architecture from a model's configuration.

    Args:
        config: The content of ``config.json``.
        name: What messages call the model; its type when empty.

    Raises:
        UserError: The family is not in ``FAMILIES``, or the configuration does not tell the blocks.
    """
    model_type = config.get("model_type")
    subject = f"{name}: " if name else ""
    if not isinstance(model_type, str):
        raise UserError(
            f"{subject}config.json has no model_type, so embeddings, blocks and head cannot be told apart"
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"{subject}where embeddings, blocks and head lie in a model of type '{model_type}' is not known; "
            f"known are {', '.join(FAMILIES)}{nearest(model_type, FAMILIES)}"
        )
    family, counts = FAMILIES[model_type], []
    for key in filter(None, (family.count, family.decoder_count)):
        blocks = _value(config, key)
        if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1:
            raise UserError(
                f"{subject}config.json must tell the number of blocks as {key}, 1 or more, but has {blocks!r}"
            )
        counts.append(blocks)
    width = _value(config, family.width)
    return Architecture(
        model_type,
        sum(counts),
        name or model_type,
        width if isinstance(width, int) else 0,
        sum(counts[1:]),
    )


def _value(config: Mapping[str, object], key: str) -> object:
    """What stands under a key; in the configuration of two models, `encoder.hidden_size` is that of the encoder."""
    part, _, rest = key.rpartition(".")
    inner = config.get(part) if part else config
    found = inner.get(rest) if isinstance(inner, Mapping) else None
    # Files of T5 may leave out the decoder's, which are then as many.
    return config.get("num_layers") if found is None and key == "num_decoder_layers" else found


def resolve_depth(depth: int | str, architecture: Architecture) -> Depth:
    """Turns a ``freeze_depth`` of a sweep file into the number of frozen blocks.

    Args:
        depth: A number of blocks, ``embeddings``, a percentage of the blocks such as ``50%`` (rounded
            down), or ``all``.
        architecture: The model that it is for.

    Returns:
        0 when nothing is frozen, ``"embeddings"`` when only these are, else how many blocks are frozen
        together with the embeddings.

    Raises:
        UserError: The model has fewer blocks, or the word is not known.
    """
    blocks = architecture.blocks
    if depth == "embeddings":
        return "embeddings"
    if depth == "all":
        return blocks
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)%", depth) if isinstance(depth, str) else None
    if share and Decimal(share[1]) <= 100:
        return int(blocks * Decimal(share[1]) / 100)
    if isinstance(depth, int) and not isinstance(depth, bool) and 0 <= depth <= blocks:
        return depth
    hint = nearest(depth, ("embeddings", "all")) if isinstance(depth, str) else ""
    raise UserError(
        f"freeze_depth {depth}: {architecture.name} has {blocks} blocks; "
        f"write 0 to {blocks}, embeddings, 0% to 100%, or all{hint}"
    )


def is_frozen(part: Part, depth: Depth) -> bool:
    """Tells whether a part of the model is frozen at a resolved depth."""
    if part == "head" or depth == 0:
        return False
    if part == "embeddings":
        return True
    return depth != "embeddings" and part < depth


def trained_parameters(
    shapes: Mapping[str, tuple[int, ...]], architecture: Architecture, depth: Depth
) -> tuple[int, int]:
    """Counts what a freeze depth trains.

    Args:
        shapes: Parameter name to shape, of a file or of a model. A head that the file does not hold is
            not counted, a pretraining head that it does hold is.
        architecture: The model that they belong to.
        depth: As ``resolve_depth`` returns it.

    Returns:
        Number of trained values, and of all values.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    trained = sum(size for name, size in sizes.items() if not is_frozen(architecture.part_of(name), depth))
    return trained, sum(sizes.values())


def check_length(config: Mapping[str, object], max_length: int, name: str) -> None:
    """Positions beyond a model's table would end training with an index error.

    Args:
        config: The model's `config.json`.
        max_length: Tokens of an input, at most.
        name: What messages call the model.

    Raises:
        UserError: If the model has fewer positions.
    """
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    positions = _value(config, "encoder.max_position_embeddings") if positions is None else positions
    if not isinstance(positions, int):
        return
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None and family.counts_from_padding:
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 0) + 1  # their first positions are never used
    if max_length > positions:
        raise UserError(f"data.max_length {max_length}: {name} takes at most {positions} tokens")
