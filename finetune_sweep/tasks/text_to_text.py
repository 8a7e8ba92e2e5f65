"""From text to text: summaries, translations, pronunciations; whatever an encoder-decoder can write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_sweep.tasks import texts, writing
from finetune_sweep.tasks.arrays import Encoded, Ragged
from finetune_sweep.tasks.contract import Column
from finetune_sweep.tasks.processors import tokenizer_of
from finetune_sweep.tasks.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.processors import Processor


@dataclass(frozen=True)
class TextToText(Writing):
    """The task `text-to-text`."""

    name = "text-to-text"
    pipeline = "text2text-generation"  # as hubs call it; transformers 5 has no such pipeline
    auto_model = "AutoModelForSeq2SeqLM"
    columns = (
        Column("text", required=True, description="the text that is given"),
        Column("target", True, "the text that is to be written", target=True, changeable=False),
    )

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:  # noqa: ARG002
        """Returns `input_ids`, ragged, and what `writing.targets` returns; both texts are cut after `max_length`."""
        tokenizer = tokenizer_of(processor)
        given, right = (texts.token_ids(tokenizer, rows[name], max_length) for name in ("text", "target"))
        return Encoded({"input_ids": Ragged.of(given), **writing.targets(right, max_length)})

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns the batch, all int64 on the CPU.

        `input_ids` and `attention_mask` are `(batch, longest)`; the rest is as `writing.collated` has it.
        """
        return {
            "input_ids": texts.padded(encoded, "input_ids", rows, pad_token_id),
            "attention_mask": texts.attention_mask(encoded, rows),
            **writing.collated(encoded, rows, self.start, pad_token_id),
        }

    def input_example(self) -> list[str]:
        """Returns one text."""
        return ["The parser fails on long sentences."]
