"""The way of a tensor from the CPU to the device that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on a device; a GPU that is still at work is not waited for.

    A copy from pageable memory waits until the GPU has done all that it was told before, so that every batch would
    cost its latency; one from pinned memory is queued behind (PyTorch's tutorial on `pin_memory` and `non_blocking`).
    """
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
