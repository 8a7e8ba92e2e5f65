"""What passes between a task and the training: encoded rows, batches, and what a model said of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

IGNORED: Final = -100
"""Where a row has no label, as the losses of torch have it."""

Batch = dict[str, "torch.Tensor"]
"""What a model is called with, by argument name, and `labels`; the first axis of each is the batch."""


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
