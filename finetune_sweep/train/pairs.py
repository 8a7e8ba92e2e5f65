"""Models that read pictures with one model and write texts with another: how the two name their parts together."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

from finetune_sweep.errors import UserError, nearest
from finetune_sweep.train.families import FAMILIES, Family

PAIR: Final = "vision-encoder-decoder"
"""The type of such models; the configurations of the two lie in theirs."""
ENCODERS: Final = ("vit", "dinov2")
"""Those with one list of blocks, whose states all have one width."""
DECODERS: Final = ("bert", "roberta", "xlm-roberta", "camembert", "gpt2")
"""Those that transformers gives an attention to what was read."""
_HEAD_FIRST: Final = ("xlm-roberta", "camembert")
"""Decoders whose class has the head before the embeddings: a model gives the matrix that both share the head's name."""


def sides_of(config: Mapping[str, object], subject: str) -> tuple[str, str]:
    """Returns the types of the two models.

    Args:
        config: The content of ``config.json``.
        subject: What a message begins with.

    Raises:
        UserError: One of them is not among `ENCODERS` or `DECODERS`.
    """
    found: list[str] = []
    for side, known in (("encoder", ENCODERS), ("decoder", DECODERS)):
        inner = config.get(side)
        model_type = str(inner.get("model_type")) if isinstance(inner, Mapping) else "none"
        if model_type not in known:
            raise UserError(
                f"{subject}where the blocks lie in a {PAIR} whose {side} is of type '{model_type}' is not known;"
                f" known are {', '.join(known)}{nearest(model_type, known)}"
            )
        found.append(model_type)
    return found[0], found[1]


@functools.cache
def joined(encoder: str, decoder: str) -> Family:
    """The family of a pair: the blocks of the encoder, then those of the decoder.

    Both embeddings come first. What brings the states of the encoder to the decoder belongs to its last block.

    Args:
        encoder: One of `ENCODERS`.
        decoder: One of `DECODERS`.
    """
    reads, writes = FAMILIES[encoder], FAMILIES[decoder]
    inside = f"decoder.{writes.prefix}"
    return Family(
        prefix="vision_encoder_decoder",
        embeddings=(
            *(f"encoder.{module}" for module in reads.embeddings),
            *(f"{inside}.{module}" for module in writes.embeddings),
            *(["decoder.lm_head.decoder.weight"] if decoder in _HEAD_FIRST else []),
        ),
        blocks=f"encoder.{reads.blocks}",
        formerly=f"encoder.{reads.formerly}" if reads.formerly else "",
        count=f"encoder.{reads.count}",
        width=f"encoder.{reads.width}",
        decoder=f"{inside}.{writes.blocks}",
        decoder_count=f"decoder.{writes.count}",
        closing=tuple(f"{inside}.{module}" for module in writes.closing),
        between=(*((f"encoder.{module}", "last") for module in reads.closing), ("enc_to_dec_proj", "last")),
        adapted=tuple(dict.fromkeys((*reads.adapted, *writes.adapted))),
        pools=False,
    )
