"""What tasks have in common whose model writes a text: all but what it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import classes as answers
from finetune_sweep.tasks import loading, texts, wording
from finetune_sweep.tasks.arrays import IGNORED, Ragged, Said
from finetune_sweep.tasks.contract import Task
from finetune_sweep.tasks.processors import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_sweep.tasks.arrays import Batch, Encoded, Predictions
    from finetune_sweep.tasks.contract import Mode, Output
    from finetune_sweep.tasks.processors import Processor

_METRICS: Final[Mapping[str, Mode]] = {**wording.NEARNESS, "loss": "min"}


@dataclass(frozen=True)
class Writing(Task):
    """A text is written, and scored as it was written: the likeliest token each time (no beams, no draws).

    Args:
        tokenizer: What reads its tokens; None until it is bound to a model.
        start: The token that an answer begins with.
        limit: Tokens that an answer may have; None until the model's folder says it, and then that of the rows.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    start: int = 0
    limit: int | None = None

    packs = False
    metrics = _METRICS
    cut = tuple(_METRICS)

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the model; only the layer that makes words of states may be new.

        Raises:
            UserError: The folder holds no such model in safetensors, it is not all there, or does not say which
                token an answer begins with.
        """
        model, new = loading.load_model(folder, self.auto_model, classes)
        loading.let_it_say_the_likeliest(model)
        if model.generation_config.decoder_start_token_id is None:
            raise UserError(f"{folder}: config.json has no decoder_start_token_id, an answer's first token")
        return model, new

    def bound(self, model: PreTrainedModel, processor: Processor) -> Task:
        """Returns the task with the model's tokenizer, its first token, and how long its texts may be."""
        settings = model.generation_config
        start, limit = int(settings.decoder_start_token_id or 0), settings.max_new_tokens
        return replace(self, tokenizer=tokenizer_of(processor), start=start, limit=limit)

    def as_evaluated(self, model: PreTrainedModel, validation: Callable[[], Encoded]) -> PreTrainedModel:
        """Returns the model, which then writes as many tokens, whoever calls it, as it might for these rows."""
        model.generation_config.max_new_tokens = _limit(validation())
        return model

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the mean cross-entropy of the tokens of each row in nats, shape `(batch,)`, float32."""
        labels = batch["labels"][:, : output.logits.shape[1]]
        return texts.token_losses(output.logits, labels, label_smoothing)

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:  # noqa: ARG002
        """Returns the losses alone, values and labels of shape `(batch, 0)`: in training, nothing is written."""
        nothing = losses.detach().new_zeros((len(losses), 0)).int()
        return Said(nothing, nothing, losses.detach())

    def respond(self, model: PreTrainedModel, output: Output, batch: Batch, losses: torch.Tensor) -> Said:  # noqa: ARG002
        """Lets the model write.

        Returns:
            What it wrote and the right texts, as `wording.codes` has them, both read back from their tokens: what
            the tokenizer does to a text, such as lower case, is done to both.
        """
        import torch

        read, labels = cast("PreTrainedTokenizerBase", self.tokenizer), batch["labels"]
        ids = loading.written(model, batch, self.limit or labels.shape[1])
        right = labels.masked_fill(labels == IGNORED, int(cast("int", read.pad_token_id)))
        said, wanted = (read.batch_decode(part, skip_special_tokens=True) for part in (ids, right))
        codes = [torch.from_numpy(wording.codes(part)) for part in (said, wanted)]
        return Said(codes[0], codes[1], losses)

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:  # noqa: ARG002
        """Returns the metrics of a split; of training rows the loss alone. All NaN when a loss is not finite."""
        names = self.metrics if predictions.labels.shape[1] else ("loss",)
        if not answers.is_finite(predictions):
            return dict.fromkeys(names, float("nan"))
        return {name: float(self.row_scores(predictions, name).mean()) for name in names}

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64]:
        """Returns what each row adds to a metric, shape `(rows,)`: all of them are means over rows."""
        if metric == "loss":
            return np.asarray(predictions.losses, dtype=np.float64)
        return wording.of_rows(predictions, metric)


def targets(right: Sequence[list[int]], max_length: int) -> dict[str, NDArray[np.generic] | Ragged]:
    """Returns the columns of the texts that are to be written.

    `labels` are their tokens, ragged; not more than `limit` tokens are written, the same for all rows: twice the
    longest of the right texts of the split, but no more than `max_length`.
    """
    limit = min(max_length, 2 * max(map(len, right)))
    return {"labels": Ragged.of(right), "limit": np.full(len(right), limit, dtype=np.int64)}


def collated(encoded: Encoded, rows: NDArray[np.int64], start: int, pad_token_id: int) -> Batch:
    """Returns what a decoder is given of the right texts, and what it has to say, all int64 on the CPU.

    `decoder_input_ids` are `(batch, longest of the right texts)`: `start`, and then the tokens before each one;
    `labels` `(batch, limit)`, `IGNORED` after their end.
    """
    from torch.nn import functional

    limit = _limit(encoded)
    labels = texts.padded(encoded, "labels", rows, IGNORED)
    before = functional.pad(labels[:, :-1], (1, 0), value=start)
    return {
        "decoder_input_ids": before.masked_fill(before == IGNORED, pad_token_id),
        "labels": functional.pad(labels, (0, limit - labels.shape[1]), value=IGNORED),
    }


def _limit(encoded: Encoded) -> int:
    """Tokens that may be written for each of the rows."""
    return int(cast("NDArray[np.int64]", encoded.columns["limit"])[0])
