"""A training run: what it trains and how, where it stands, what it yields; and what derives its random seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from finetune_sweep.errors import StorageError
from finetune_sweep.tasks.contract import Encoded, Mode, Predictions, Task
from finetune_sweep.train.architecture import Architecture, Depth
from finetune_sweep.train.packing import Forward

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from finetune_sweep.settings import Training

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Job:
    """One training run: what is trained, on what, and how.

    Attributes:
        task: What makes the batches, the losses and the metrics.
        train: The encoded training split.
        validation: The encoded validation split.
        classes: The task's classes, in the order of the labels.
        settings: The training settings; `epochs` is the longest of the trials that share this run.
        depth: `settings.freeze_depth`, resolved for this architecture.
        seed: The seed of the trial: order, new weights, dropout.
        device: `cpu`, `cuda` or `mps`.
        precision: `bf16` computes in bfloat16 under autocast; weights, optimizer and losses stay in fp32.
        metric: The metric of the sweep, one of the task's.
        mode: Its better direction.
        pad_token_id: What fills the rows of a batch.
        arch: Where the model's embeddings, blocks and head are.
        unpadding: Whether batches are computed without their padding, where the architecture allows it.
        first: Blocks that the states in the encoded splits have behind them; None where they have no states.
    """

    task: Task
    train: Encoded
    validation: Encoded
    classes: tuple[str, ...]
    settings: Training
    depth: Depth
    seed: int
    device: str
    precision: Precision
    metric: str
    mode: Mode
    pad_token_id: int
    arch: Architecture
    unpadding: bool = True
    first: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """What the loop yields once an epoch. Two of them are equal if the results are: times do not count.

    Attributes:
        epoch: Epochs trained, from 1.
        step: Optimizer steps taken.
        examples: Training examples seen, repetitions counted.
        train_loss: Mean over the epoch of the loss of each example at the moment it was trained on.
        learning_rate: That of the last step.
        metrics: Of the validation split, with `loss`.
        train_metrics: The same of the training examples, each at the moment it was trained on, so with dropout.
        train_seconds: Wall time of training this epoch.
        eval_seconds: Wall time of this evaluation.
        micro_batch: Examples computed at once, at most.
        stopped: Whether early stopping ended the training here.
    """

    epoch: int
    step: int
    examples: int
    train_loss: float
    learning_rate: float
    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]
    train_seconds: float = field(compare=False)
    eval_seconds: float = field(compare=False)
    micro_batch: int
    stopped: bool


@dataclass(frozen=True)
class PartialEpoch:
    """What the steps of an epoch that was interrupted gave, from its first on.

    Attributes:
        losses: Shape `(steps,)`, on the CPU: of each step the sum of its examples' losses.
        predictions: One row for each example, in the order in which they were trained on.
    """

    losses: Tensor
    predictions: Predictions


@dataclass(frozen=True)
class Snapshot:
    """All that a fresh state needs to continue from an evaluation, or from a step between two of them.

    Attributes:
        tensors: Copies on the CPU, flat, as safetensors stores them: `model.<name>` for what training
            changes, `optimizer.<slot>.<name>` for the optimizer's moments, `partial.<name>` for an epoch that was
            interrupted.
        epoch: Epochs trained to their end.
        step: Optimizer steps taken.
        micro_batch: Examples computed at once, at most.
        history: All evaluations so far.
    """

    tensors: Mapping[str, Tensor]
    epoch: int
    step: int
    micro_batch: int
    history: tuple[Evaluation, ...]


@dataclass
class LoopState:
    """Where a training run stands: the one place of everything that moves.

    Attributes:
        model: The model, on the job's device.
        forward: What computes batches with it.
        optimizer: Over the trained parameters.
        changed: Live tensors that training can change, by their name in the model's `state_dict`.
        micro_batch: Examples computed at once, at most; halved when memory runs out.
        epoch: Epochs trained to their end.
        step: Optimizer steps taken.
        history: All evaluations so far.
        partial: What the epoch that was interrupted has given, while the state stands in the middle of one.
        predictions: Those of the last evaluation in this process, for each validation row in order.
    """

    model: PreTrainedModel
    forward: Forward
    optimizer: torch.optim.Optimizer
    changed: Mapping[str, Tensor]
    micro_batch: int
    epoch: int = 0
    step: int = 0
    history: list[Evaluation] = field(default_factory=list)
    partial: PartialEpoch | None = None
    predictions: Predictions | None = None

    def state_dict(self) -> Snapshot:
        """Copies the state; meant for the moment when `fit` has yielded an evaluation, or was interrupted."""
        tensors = {f"model.{name}": tensor for name, tensor in self.changed.items()}
        if self.partial is not None:
            tensors |= _partial_tensors(self.partial)
        for name, parameter in self._optimized():
            for slot, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{slot}.{name}"] = tensor
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return Snapshot(copies, self.epoch, self.step, self.micro_batch, tuple(self.history))

    def load_state_dict(self, snapshot: Snapshot) -> None:
        """Continues from a snapshot, in a state that `start` made from the same job.

        Raises:
            StorageError: If the snapshot is of another model or depth.
        """
        stored = {name.removeprefix("model.") for name in snapshot.tensors if name.startswith("model.")}
        if different := sorted(stored ^ set(self.changed)):
            raise StorageError(
                f"the checkpoint holds other tensors than this training changes; {len(different)} differ,"
                f" such as {different[0]}"
            )
        for name, tensor in self.changed.items():
            tensor.copy_(snapshot.tensors[f"model.{name}"])
        self._load_optimizer(snapshot.tensors)
        self.epoch, self.step, self.micro_batch = snapshot.epoch, snapshot.step, snapshot.micro_batch
        self.history = list(snapshot.history)
        self.partial = _partial_epoch(snapshot.tensors)

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        moments: dict[int, dict[str, Tensor]] = {}
        numbers = {name: number for number, (name, _) in enumerate(self._optimized())}
        for key, tensor in tensors.items():
            part, _, rest = key.partition(".")
            if part == "optimizer":
                slot, _, name = rest.partition(".")
                moments.setdefault(numbers[name], {})[slot] = tensor.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _optimized(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters with their names, in the optimizer's order."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [(names[p], p) for group in self.optimizer.param_groups for p in group["params"]]


def _partial_tensors(partial: PartialEpoch) -> dict[str, Tensor]:
    said = partial.predictions
    arrays = {"values": said.values, "labels": said.labels, "row_losses": said.losses}
    return {
        "partial.losses": partial.losses,
        **{f"partial.{name}": torch.from_numpy(array) for name, array in arrays.items()},
    }


def _partial_epoch(tensors: Mapping[str, Tensor]) -> PartialEpoch | None:
    if "partial.losses" not in tensors:
        return None
    values, labels, losses = (tensors[f"partial.{n}"].numpy() for n in ("values", "labels", "row_losses"))
    return PartialEpoch(tensors["partial.losses"], Predictions(values, labels, losses))


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose: `derive_seed(seed, "dropout", epoch, step)`."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
