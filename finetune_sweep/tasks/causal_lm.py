"""Causal language modelling: what comes next in a text; or after a prompt, as in instructions and their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading, texts
from finetune_sweep.tasks.arrays import IGNORED, Encoded, Ragged, Said
from finetune_sweep.tasks.contract import Column, Task
from finetune_sweep.tasks.processors import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch, Predictions
    from finetune_sweep.tasks.contract import Mode, Output
    from finetune_sweep.tasks.processors import Processor

_METRICS: Final[Mapping[str, Mode]] = {"perplexity": "min", "accuracy": "max", "loss": "min"}


@dataclass(frozen=True)
class CausalLM(Task):
    """The task `causal-lm`. Where rows have a prompt, only what follows it is learned and scored."""

    name = "causal-lm"
    pipeline = "text-generation"
    auto_model = "AutoModelForCausalLM"
    packs = False
    evaluation_batch = 8  # logits are as wide as the vocabulary
    columns = (
        Column("prompt", False, "what stands before the text, if anything does", changeable=False),
        Column("text", True, "the text that is learned", target=True, changeable=False, given=True),
    )
    metrics = _METRICS
    cut = tuple(_METRICS)

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:  # noqa: ARG002
        """Returns `input_ids` and `labels`, both ragged and equally long; `IGNORED` for the tokens of a prompt.

        A text ends with the token that says so, and is cut after `max_length` tokens. A prompt stands before it on
        lines of its own; one that is too long beside its text loses its beginning, and an empty one is none.
        """
        prompts = list(rows["prompt"]) if "prompt" in rows.column_names else None
        pairs = texts.prompted(tokenizer_of(processor), prompts, list(rows["text"]), max_length)
        return Encoded(
            {
                "input_ids": Ragged.of([[*prompt, *text] for prompt, text in pairs]),
                "labels": Ragged.of([[*[IGNORED] * len(prompt), *text] for prompt, text in pairs]),
            }
        )

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Returns `input_ids`, `attention_mask` and `labels`, each of shape `(batch, longest)`, int64 on the CPU."""
        return {
            "input_ids": texts.padded(encoded, "input_ids", rows, pad_token_id),
            "attention_mask": texts.attention_mask(encoded, rows),
            "labels": texts.padded(encoded, "labels", rows, IGNORED),
        }

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model; only the layer that makes words of states may be new.

        Raises:
            UserError: The folder holds no such model in safetensors, it is not all there, or it sees what comes next.
        """
        model, new = loading.load_model(folder, self.auto_model, classes)
        if _looks_ahead(model):
            raise UserError(
                f"{folder}: a {model.config.model_type} sees the words that it should say; take a decoder such as gpt2"
            )
        loading.let_it_write(model)
        return model, new

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the mean cross-entropy of the next tokens of each row in nats, shape `(batch,)`, float32."""
        return texts.token_losses(output.logits[:, :-1], batch["labels"][:, 1:], label_smoothing)

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns for each row the sum of its tokens' losses, their number, and how many the model had right.

        Shape `(batch, 3)`, float32; the labels are of shape `(batch, 0)`.
        """
        import torch

        labels = batch["labels"][:, 1:]
        known = labels != IGNORED
        right = ((output.logits[:, :-1].detach().argmax(dim=-1) == labels) & known).sum(dim=1)
        count = known.sum(dim=1)
        values = torch.stack([losses.detach() * count, count.float(), right.float()], dim=1)
        return Said(values, labels[:, :0], losses.detach())

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:  # noqa: ARG002
        """Returns the metrics of a split; all NaN when a loss is not finite.

        perplexity: e to the mean loss of all tokens of the split, long rows counting more.
        accuracy: The part of the tokens that were the likeliest.
        loss: The mean over the rows of their mean cross-entropy in nats.
        """
        if not answers.is_finite(predictions):
            return dict.fromkeys(self.metrics, float("nan"))
        losses, tokens, right = np.asarray(predictions.values, dtype=np.float64).sum(axis=0)
        return {
            "perplexity": float(np.exp(losses / max(1.0, tokens))),
            "accuracy": float(right / max(1.0, tokens)),
            "loss": predictions.loss,
        }

    def input_example(self) -> list[str]:
        """Returns the beginning of a text."""
        return ["The parser fails on long"]


def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether what a model says after a token depends on the next one."""
    import torch

    model.eval()  # type: ignore[no-untyped-call]  # transformers'
    with torch.no_grad():
        first, other = (model(input_ids=torch.tensor([[0, token]])).logits[0, 0] for token in (0, 1))
    return not torch.allclose(first, other, atol=1e-4)
