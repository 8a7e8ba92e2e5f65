"""What this machine computes on, and in which precision."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Literal

from finetune_sweep.errors import UserError

Precision = Literal["fp32", "bf16"]


def resolve(device: str, gpus: float) -> tuple[str, Precision]:
    """Chooses the device of the trials and what `precision: auto` means on it.

    Args:
        device: `auto`, `cuda`, `mps` or `cpu`, as the sweep says.
        gpus: GPUs that a trial asks for.

    Returns:
        The device, and bf16 if it computes with it natively, else fp32.

    Raises:
        UserError: If a GPU is asked for that is not there, or would not be used.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "auto":
        if gpus and not has_cuda:
            raise UserError(
                f"resources_per_trial.gpu: {gpus:g} was asked for, but torch {torch.__version__} finds no CUDA device;"
                " take it out, or set `device: cpu`"
            )
        device = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and not (gpus and has_cuda):
        reason = "torch finds no CUDA device" if gpus else "a trial asks for no GPU (resources_per_trial.gpu)"
        raise UserError(f"device: cuda is not possible: {reason}")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: mps is not possible: torch finds no Apple GPU")
    return device, "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - torch says it nowhere else


def describe() -> dict[str, str | int]:
    """This machine and the versions that results depend on, for the record."""
    import torch

    packages = ("torch", "transformers", "tokenizers", "datasets", "ray", "mlflow", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{name: importlib.metadata.version(name) for name in packages},
    }


def computer(device: str) -> str:
    """What computes on a device, as far as digits depend on it: the GPU, or the processor and the threads on it."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads" if device == "cpu" else processor()


def processor() -> str:
    """The name of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no path of the user's
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()
