"""Texts as the inputs of a model: tokenised, and padded to batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from finetune_sweep.tasks.arrays import IGNORED, Ragged
from finetune_sweep.tasks.contract import Column

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from finetune_sweep.tasks.arrays import Batch, Encoded
    from finetune_sweep.tasks.processors import Processor

PAIR: Final = (
    Column("text", required=True, description="the text"),
    Column("text_pair", required=False, description="a second text, where two are given"),
)
"""What tasks read that give one answer for a text, or for two."""
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


def ended(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Returns what `token_ids` does, with the token that ends a text where the tokenizer adds none."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return [
        ids if ids[-1:] == end else [*ids, *end][:max_length]
        for ids in token_ids(tokenizer, texts, max_length)
    ]


def prompted(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] | None, texts: Sequence[str], max_length: int
) -> list[tuple[list[int], list[int]]]:
    """Returns the tokens of each prompt, and of the text after it with its end, no more than `max_length` together.

    A prompt stands on lines of its own, and loses its beginning where both are too long. Without prompts theirs are
    none, as are those of an empty prompt.
    """
    if prompts is None:
        return [([], ids) for ids in ended(tokenizer, texts, max_length)]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    pairs: list[tuple[list[int], list[int]]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        if not prompt:
            pairs.append(([], ended(tokenizer, [text], max_length)[0]))
            continue
        before = tokenizer(f"{prompt}\n")["input_ids"]
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *end][: max_length - 1]
        pairs.append((before[max(0, len(before) + len(ids) - max_length) :], ids))
    return pairs


def encoded(rows: Dataset, processor: Processor, max_length: int) -> dict[str, Ragged]:
    """Returns `input_ids` of the columns `PAIR`, ragged, with the tokenizer's special tokens.

    Where there are two texts, the longer one is cut first; `token_type_ids` then tells them apart, for tokenizers that
    do so.
    """
    tokenizer = cast("PreTrainedTokenizerBase", processor)
    if "text_pair" not in rows.column_names:
        return {"input_ids": Ragged.of(token_ids(tokenizer, rows["text"], max_length))}
    # Those of decoders name types that their models do not take; they have no token for a whole text either.
    typed = "token_type_ids" in tokenizer.model_input_names and tokenizer.cls_token_id is not None
    names = ("input_ids", "token_type_ids") if typed else ("input_ids",)
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        both = tokenizer(
            part["text"],
            part["text_pair"],
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=typed,
        )
        for name in names:
            found[name] += both[name]
    return {name: Ragged.of(values) for name, values in found.items()}


def collated(encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
    """Returns what `encoded` made of the given rows, and `attention_mask`, all `(batch, longest)`, int64 on the CPU.

    Padding stands on the right, with mask 0.
    """
    batch = {
        "input_ids": padded(encoded, "input_ids", rows, pad_token_id),
        "attention_mask": attention_mask(encoded, rows),
    }
    if "token_type_ids" in encoded.columns:
        batch["token_type_ids"] = padded(encoded, "token_type_ids", rows, 0)
    return batch


def taken(encoded: Encoded, column: str, rows: NDArray[np.int64]) -> torch.Tensor:
    """Returns the given rows of a column that is not ragged, on the CPU."""
    import torch

    return torch.from_numpy(np.array(cast("NDArray[np.generic]", encoded.columns[column])[rows]))


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


def token_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Returns the mean cross-entropy of the labelled tokens of each row in nats, shape `(batch,)`, float32.

    Args:
        logits: Shape `(batch, longest, classes)`.
        labels: Shape `(batch, longest)`, `IGNORED` where there is none; a row without any has the loss 0.
        label_smoothing: The part of the target that is spread evenly over the classes.
    """
    from torch.nn import functional

    of_token = functional.cross_entropy(
        logits.float().transpose(1, 2),
        labels,
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
    return of_token.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)


def _mask(lengths: Sequence[int]) -> NDArray[np.bool_]:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]


def tokenised_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], max_length: int
) -> tuple[list[int], list[int | None]]:
    """Returns the tokens of a text of these words, and the word of each token, None for special ones.

    A token is of the first word that ends after the token begins: one that holds the space before a word is of that
    word. The tokenizer is not given the words one by one: one of bytes takes them for parts of a single word then,
    unless it puts a space before each text, which would change what a pipeline reads.
    """
    found = tokenizer(
        " ".join(words),
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
    places = [
        None if special else min(bisect_right(ends, begin), len(ends) - 1)
        for (begin, _), special in zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    ]
    return (found["input_ids"], places) if places else ([int(tokenizer.pad_token_id)], [None])
