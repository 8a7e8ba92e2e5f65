"""`python -m benchmarks.compiled FOLDER`: after how many steps does `torch.compile` pay, for a model and this machine?

A training step of a Hugging Face model on batches of texts of mixed lengths, as it is and compiled (with lengths
that may change), both in bf16 autocast with fused AdamW. What compiling costs is the time of the first steps above
that of as many later ones, and is paid in each worker and for each depth of freezing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING, Final

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.table import render

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

WARM_STEPS: Final = 30
STEPS: Final = 100
_CLASSES: Final = 3
_SHORTEST, _LONGEST = 8, 64
Batch = dict[str, "Tensor"]


def batches(config: PreTrainedConfig, batch_size: int, device: str) -> list[Batch]:
    """Batches of token numbers drawn at random, each padded to its longest text."""
    longest = min(_LONGEST, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(16):
        lengths = torch.randint(_SHORTEST, longest + 1, (batch_size,), generator=generator)
        shape = (batch_size, int(lengths.max()))
        mask = (torch.arange(shape[1])[None] < lengths[:, None]).long()
        ids = torch.randint(1, config.vocab_size, shape, generator=generator) * mask
        labels = torch.randint(0, _CLASSES, (batch_size,), generator=generator)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        made.append({name: tensor.to(device) for name, tensor in batch.items()})
    return made


def step_seconds(
    model: PreTrainedModel, given: Sequence[Batch], device: str, *, compiled: bool
) -> list[float]:
    """The time of each step, from its start until the device is done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model, dynamic=True) if compiled else model
    found = []
    for batch in islice(cycle(given), WARM_STEPS + STEPS):
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss: Tensor = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        found.append(time.perf_counter() - started)
    return found


def main(arguments: Sequence[str]) -> int:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("model", help="the folder of a pretrained model that classifies texts")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16, 32])
    options = parser.parse_args(arguments)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # a worker on a new machine has none
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for batch_size in options.batch_size:
        times = []
        for compiled in (False, True):
            torch.compiler.reset()
            model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=_CLASSES)
            model.to(device).train()
            given = batches(model.config, batch_size, device)
            times.append(step_seconds(model, given, device, compiled=compiled))
        eager, fast = (median(found[WARM_STEPS:]) for found in times)
        cost = sum(times[1][:WARM_STEPS]) - WARM_STEPS * fast
        pays = f"{cost / (eager - fast):.0f}" if fast < eager else "never"
        rows.append((str(batch_size), f"{eager * 1e3:.2f}", f"{fast * 1e3:.2f}", f"{cost:.1f}", pays))
    header = ("batch size", "step, ms", "compiled, ms", "compiling, s", "pays after steps")
    where = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{options.model} on {where}\n\n{render(header, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
