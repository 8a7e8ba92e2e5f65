"""Texts as the inputs of a model: tokenised, and padded to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finetune_sweep.tasks.contract import IGNORED

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from finetune_sweep.tasks.contract import Encoded


_AT_ONCE = 1000


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Returns the tokens of each text with the tokenizer's special ones, cut after `max_length`.

    A text of no token at all, which tokenizers without special tokens make of an empty one, becomes a single
    padding token.
    """
    found: list[list[int]] = []
    for start in range(0, len(texts), _AT_ONCE):
        encoding = tokenizer(
            list(texts[start : start + _AT_ONCE]),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        found += [ids or [int(tokenizer.pad_token_id)] for ids in encoding["input_ids"]]
    return found


def padded(encoded: Encoded, column: str, rows: NDArray[np.int64], fill: int) -> torch.Tensor:
    """Returns the given rows of a ragged column, shape `(batch, longest)`, int64 on the CPU, filled on the right."""
    import torch

    values = encoded.columns[column]
    parts = [values[int(row)] for row in rows]
    mask = _mask([len(part) for part in parts])
    filled = np.full(mask.shape, fill, dtype=np.int64)
    filled[mask] = np.concatenate(parts)
    return torch.from_numpy(filled)


def attention_mask(encoded: Encoded, rows: NDArray[np.int64]) -> torch.Tensor:
    """Returns 1 where the given rows have tokens, shape `(batch, longest)`, int64 on the CPU."""
    import torch

    ids = encoded.columns["input_ids"]
    return torch.from_numpy(_mask([len(ids[int(row)]) for row in rows]).astype(np.int64))


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy of the labelled tokens of each row in nats, shape `(batch,)`, float32.

    Args:
        logits: Shape `(batch, longest, classes)`.
        labels: Shape `(batch, longest)`, `IGNORED` where there is none; a row without any has the loss 0.
    """
    from torch.nn import functional

    of_token = functional.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
    )
    return of_token.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)


def _mask(lengths: Sequence[int]) -> NDArray[np.bool_]:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]
