"""What happens where memory runs out: rows are computed in halves, down to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from finetune_sweep.errors import TrialError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

_OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host's or the accelerator's memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """Returns what was computed, or None if memory ran out; by then the error holds no tensors any more."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def in_halves(rows: NDArray[np.int64], compute: Callable[[NDArray[np.int64]], T], doing: str) -> list[T]:
    """What is computed of rows: at once if they fit into memory, else of each half, in order.

    Args:
        rows: At least one.
        compute: Of some of them.
        doing: What it does, for the message.

    Raises:
        TrialError: `out_of_memory` if one row is too much.
    """
    computed = unless_out_of_memory(lambda: compute(rows))
    if computed is not None:
        return [computed]
    if len(rows) == 1:
        raise TrialError(f"out of memory while {doing} one row at a time", "out_of_memory")
    middle = len(rows) // 2
    return [*in_halves(rows[:middle], compute, doing), *in_halves(rows[middle:], compute, doing)]
