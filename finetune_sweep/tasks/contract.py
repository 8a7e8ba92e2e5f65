"""What makes one task differ from another: its columns, encoding, model class, loss and metrics.

A task holds no state, and neither torch nor transformers is loaded before one of its methods needs them.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np

from finetune_sweep.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

Mode = Literal["max", "min"]
"""Whether more of a metric is better, or less."""

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Where the tokenizers of transformers keep their vocabularies."""

Kind = Literal["text", "class", "labels", "tokens", "tags", "number", "image", "boxes"]
"""What a cell of a column is: a text; a class; several classes; words, and a class for each; a number; a
picture, as the bytes of its file; the boxes in a picture."""


@dataclass(frozen=True)
class PictureReader:
    """Both of what a model needs that reads pictures and writes texts; they lie in one folder.

    Args:
        image_processor: Makes its inputs.
        tokenizer: Makes tokens of the texts, and texts of the tokens that it writes.
    """

    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_token_id(self) -> int:
        """What fills the texts of a batch."""
        return int(self.tokenizer.pad_token_id)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes both, as their classes do."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


Processor: TypeAlias = "PreTrainedTokenizerBase | BaseImageProcessor | PictureReader"
"""What makes the inputs of a model: a tokenizer, or for pictures an image processor, or both."""


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """Returns the tokenizer among what makes the inputs of a model that reads or writes texts."""
    found = processor.tokenizer if isinstance(processor, PictureReader) else processor
    return cast("PreTrainedTokenizerBase", found)


class Box(NamedTuple):
    """What is where in a picture: in pixels, from the upper left corner."""

    label: str
    left: float
    top: float
    width: float
    height: float


IGNORED: Final = -100
"""Where a row has no label, as the losses of torch have it."""

Batch = dict[str, "torch.Tensor"]
"""What a model is called with, by argument name, and `labels`; the first axis of each is the batch."""


@dataclass(frozen=True)
class Column:
    """One column of a task's rows.

    Args:
        name: What the task calls it.
        required: Whether rows cannot do without it.
        description: What it holds, for documents and messages.
        kind: What its cells are.
        target: Whether it is what the model has to say; all others are inputs, by which rows are compared when
            they are cleaned. A task has one such column.
        changeable: Whether a text may be written otherwise while the labels stay, as augmentation and robustness
            do it; not where labels point into the text, or the text is what is to be written.
    """

    name: str
    required: bool
    description: str
    kind: Kind = "text"
    target: bool = False
    changeable: bool = True


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, end to end.

    Args:
        values: Shape `(total, *tail)`.
        offsets: Shape `(rows + 1,)`, int64, from 0 to `total`; row `i` is
            `values[offsets[i]:offsets[i + 1]]`.
    """

    values: NDArray[np.generic]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.generic]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Packs rows of integers, at 4 bytes a value."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.fromiter((value for row in rows for value in row), dtype=np.int32, count=int(offsets[-1]))
        return cls(values, offsets)


@dataclass(frozen=True)
class Encoded:
    """A split, ready to be batched.

    Args:
        columns: By name, an array of shape `(rows, ...)` or a `Ragged`; all of equally many rows.
    """

    columns: Mapping[str, NDArray[np.generic] | Ragged]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def lengths(self) -> NDArray[np.int64]:
        """Returns the tokens of each row, shape `(rows,)`: of its longest ragged column, or 1 without any."""
        ragged = [np.diff(column.offsets) for column in self.columns.values() if isinstance(column, Ragged)]
        return np.maximum.reduce(ragged) if ragged else np.ones(len(self), dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Writes one or two `.npy` files a column into an existing folder."""
        for name, column in self.columns.items():
            if isinstance(column, Ragged):
                np.save(folder / f"{name}.values.npy", column.values)
                np.save(folder / f"{name}.offsets.npy", column.offsets)
            else:
                np.save(folder / f"{name}.npy", column)

    @classmethod
    def load(cls, folder: Path) -> Encoded:
        """Reads what `save` wrote, mapped into memory: processes share it, and it is read as it is used."""
        # As plain arrays: each slice of a mapped one would be a mapped one again, which takes many times as long.
        arrays = {
            file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in sorted(folder.glob("*.npy"))
        }
        columns: dict[str, NDArray[np.generic] | Ragged] = {}
        for stem, array in arrays.items():
            name, _, part = stem.partition(".")
            if part == "values":
                columns[name] = Ragged(array, arrays[f"{name}.offsets"])
            elif not part:
                columns[name] = array
        return cls(columns)


@dataclass(frozen=True)
class Predictions:
    """What a model said about each row, as the metrics need it.

    Args:
        values: What it said, shape `(rows, ...)`; logits of shape `(rows, classes)` for a classification.
        labels: What is right, shape `(rows, ...)`.
        losses: The loss of each row, shape `(rows,)`, float32.

    Rows of batches of different lengths are made equally long at their end, with `IGNORED`.
    """

    values: NDArray[np.generic]
    labels: NDArray[np.generic]
    losses: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def loss(self) -> float:
        """The mean of the losses."""
        return float(np.asarray(self.losses, dtype=np.float64).mean())

    @classmethod
    def join(cls, parts: Sequence[Predictions], rows: NDArray[np.int64]) -> Predictions:
        """Joins the batches of one pass and undoes their order.

        Args:
            parts: One for each batch.
            rows: Shape `(rows,)`; the row of the split that each joined row is, a permutation.
        """
        order = np.argsort(rows)
        return cls(
            values=_stacked([part.values for part in parts])[order],
            labels=_stacked([part.labels for part in parts])[order],
            losses=np.concatenate([part.losses for part in parts])[order],
        )

    def save(self, file: Path) -> None:
        """Writes an `.npz` file."""
        np.savez(file, values=self.values, labels=self.labels, losses=self.losses)

    @classmethod
    def load(cls, file: Path) -> Predictions:
        """Reads what `save` wrote; nothing is unpickled."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(arrays["values"], arrays["labels"], arrays["losses"])


@dataclass(frozen=True)
class Said:
    """What a model said of one batch, still where it was computed: reading it waits for an accelerator.

    Args:
        values: As in `Predictions`.
        labels: As in `Predictions`.
        losses: As in `Predictions`.
    """

    values: torch.Tensor
    labels: torch.Tensor
    losses: torch.Tensor

    def stored(self) -> Predictions:
        """Copies it to the host."""
        values, labels, losses = (
            tensor.detach().cpu().numpy() for tensor in (self.values, self.labels, self.losses)
        )
        return Predictions(values, labels, losses)


def changeable_columns(task: Task) -> tuple[str, ...]:
    """The columns of a task whose texts augmentation and robustness may change; perhaps none."""
    return tuple(column.name for column in task.columns if column.kind == "text" and column.changeable)


ROBUST: Final = "robust_"
"""Before the name of a metric: its mean over perturbed copies of the rows, see `train/robustness.py`."""


def metrics_of(task: Task) -> dict[str, Mode]:
    """What a sweep may optimise: the metrics of a task, and where its texts may be changed, those of perturbed rows."""
    robust = {f"{ROBUST}{name}": mode for name, mode in task.metrics.items()}
    return {**task.metrics, **(robust if changeable_columns(task) else {})}


def _stacked(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Joins along the first axis; where the second one differs, it becomes the longest."""
    longest = max(part.shape[1:2] for part in parts)
    if any(part.shape[1:2] != longest for part in parts):
        tail = [(0, 0)] * (parts[0].ndim - 2)
        parts = [
            np.pad(part, [(0, 0), (0, longest[0] - part.shape[1]), *tail], constant_values=IGNORED)
            for part in parts
        ]
    return np.concatenate(parts)


class Output(Protocol):
    """What a model returns; tasks read further fields where their models have them."""

    @property
    def logits(self) -> torch.Tensor:
        """Shape `(batch, ...)`."""


class Task(Protocol):
    """All that the rest of the package needs to know of a task."""

    @property
    def name(self) -> str:
        """What a sweep file calls it."""

    @property
    def pipeline(self) -> str:
        """What `transformers.pipeline` and model hubs call it."""

    @property
    def auto_model(self) -> str:
        """The class of transformers that loads a model of it."""

    @property
    def packs(self) -> bool:
        """Whether its head reads one token of each text: then batches can be computed without their padding."""

    @property
    def evaluation_batch(self) -> int:
        """Rows evaluated at once; fixed, so that a metric does not depend on the training's batch size."""
        return 64

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of its rows, inputs first; the last one is the target."""

    @property
    def metrics(self) -> Mapping[str, Mode]:
        """What `score` returns, and which way is better."""

    def classes(self, train: Dataset) -> tuple[str, ...]:  # noqa: ARG002
        """Returns the classes of the training rows in their order: the place of a class is its index.

        None where the answer is no choice among classes, as of a task that does not say so.

        Raises:
            UserError: There is nothing to tell apart.
        """
        return ()

    def encode(self, rows: Dataset, processor: Processor, classes: Sequence[str], max_length: int) -> Encoded:
        """Turns rows into numbers; texts are cut after `max_length` tokens.

        Raises:
            UserError: A row has a label that is not among the classes.
        """

    def collate(self, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
        """Makes one batch of the given rows, in their order, padded to the longest, on the CPU."""

    def build_model(self, folder: Path, classes: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Loads the pretrained model in float32 and gives it the task's head.

        Returns:
            The model, and the sorted names of the parameters that the checkpoint does not have, whose values
            are random: the caller draws them again from its own seed.

        Raises:
            UserError: The folder does not hold a model that can do the task.
        """

    def bound(self, model: PreTrainedModel, processor: Processor) -> Task:  # noqa: ARG002
        """Returns the task as it collates and predicts for one model: itself, unless it has to know the model."""
        return self

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Returns the loss of each row, shape `(batch,)`, float32, whatever the precision of the output.

        Args:
            output: Of the model.
            batch: With the labels.
            label_smoothing: The part of the target that is spread evenly over the classes; a sweep gives none to a
                task without classes.
        """

    def predict(self, output: Output, batch: Batch, losses: torch.Tensor) -> Said:
        """Returns what the metrics need of one batch of which only `labels` are given, in the order of its rows.

        Args:
            output: Of the model; what is returned holds on to no more of it than it needs.
            batch: The labels.
            losses: As `losses` returns them.
        """

    def respond(self, model: PreTrainedModel, output: Output, batch: Batch, losses: torch.Tensor) -> Said:  # noqa: ARG002
        """Returns what an evaluation needs of one batch; a task whose model writes its answer lets it write here."""
        return self.predict(output, batch, losses)

    def score(self, predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
        """Returns every metric of the task; all are NaN when a prediction is not finite, and only then.

        Of training rows, for which a model does not write its answer, it may be the loss alone.
        """

    def row_scores(self, predictions: Predictions, metric: str) -> NDArray[np.float64] | None:
        """Returns what each row adds to a metric that is a mean over rows, shape `(rows,)`; None for any other.

        Such is the loss of any task, and nothing else of one that does not say so.
        """
        return np.asarray(predictions.losses, dtype=np.float64) if metric == "loss" else None

    def input_example(self) -> list[str]:
        """Returns inputs such as a served model takes; of a picture, the address or the bytes in base64."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder, without a network and without code from the folder.

    A tokenizer without a padding token, as decoders have it, pads with its end-of-sequence token: the
    attention mask tells the two apart.

    Raises:
        UserError: The folder has no tokenizer, or one that can neither pad nor end a sequence.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make an empty one
        raise UserError(f"{folder}: holds no tokenizer, none of {', '.join(TOKENIZER_FILES)}")
    try:
        with quiet_loading():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: no tokenizer can be loaded from this folder: {reason}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{folder}: the tokenizer has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers' progress bars and its report about a new head, which is expected, to itself."""
    from transformers.utils import logging as library

    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.ERROR)
    library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]
