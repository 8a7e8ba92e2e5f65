"""A training run: what it trains and how, where it stands, what it yields; and what derives its random seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from finetune_sweep.errors import StorageError
from finetune_sweep.tasks.arrays import Encoded, Predictions, Said
from finetune_sweep.tasks.contract import Mode, Task
from finetune_sweep.train.architecture import Architecture, Depth
from finetune_sweep.train.optim import Anchor
from finetune_sweep.train.packing import Forward

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from finetune_sweep.settings import Training

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Stage:
    """Some epochs of a training that freezes more in them than it does throughout.

    Attributes:
        first_epoch: Counted from 1; it lasts until the next one.
        depth: What is frozen.
        train: The encoded training split, with states after the frozen blocks where they are kept.
        validation: The same of the validation split.
        first: Blocks that these states have behind them; None where there are none.
    """

    first_epoch: int
    depth: Depth
    train: Encoded
    validation: Encoded
    first: int | None = None


@dataclass(frozen=True)
class Job:
    """One training run: what is trained, on what, and how.

    Attributes:
        task: What makes the batches, the losses and the metrics.
        train: The encoded training split.
        validation: The encoded validation split.
        classes: The task's classes, in the order of the labels.
        settings: The training settings; `epochs` is the longest of the trials that share this run.
        depth: What is frozen throughout: `settings.freeze_depth`, resolved for this architecture, or what unfreezing
            leaves of it.
        seed: The seed of the trial: order, new weights, dropout.
        device: `cpu`, `cuda` or `mps`.
        precision: `bf16` computes in bfloat16 under autocast; weights, optimizer and losses stay in fp32.
        metric: The metric of the sweep, one of the task's.
        mode: Its better direction.
        pad_token_id: What fills the rows of a batch.
        arch: Where the model's embeddings, blocks and head are.
        unpadding: Whether batches are computed without their padding, where the architecture allows it.
        first: Blocks that the states in the encoded splits have behind them; None where they have no states.
        stages: What is frozen in which epochs, where that changes.
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
    stages: tuple[Stage, ...] = ()

    def at(self, epoch: int) -> Job:
        """The job as it is in an epoch, counted from 1."""
        begun = [stage for stage in self.stages if stage.first_epoch <= epoch]
        if not begun:
            return self
        now = begun[-1]
        return replace(self, depth=now.depth, train=now.train, validation=now.validation, first=now.first)


@dataclass(frozen=True)
class Evaluation:
    """What the loop yields once an epoch. Two of them are equal if the results are: times do not count.

    Attributes:
        epoch: Epochs trained, from 1.
        step: Optimizer steps taken.
        examples: Training examples seen, repetitions counted.
        train_loss: Mean over the epoch of what was minimised of each example at the moment it was trained on: its loss,
            with smoothed labels where the settings ask for them, and the adversarial one on top.
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
class Snapshot:
    """All that a fresh state needs to continue from an evaluation, or from a step between two of them.

    Attributes:
        tensors: Copies on the CPU, flat, as safetensors stores them: `model.<name>` for what training
            changes, `optimizer.<slot>.<name>` for the optimizer's moments, `pending.<name>` for an epoch that is not
            over.
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


@dataclass(frozen=True)
class Pending:
    """What is known of an epoch that is not over.

    Attributes:
        losses: Sums over the rows of each step.
        seen: What the model said of them, as far as that is not in `before`.
        seconds: Wall time of training so far.
        before: What it said of the first of them, in the order in which they were trained on: what can be stored.
    """

    losses: tuple[Tensor, ...] = ()
    seen: tuple[Said, ...] = ()
    seconds: float = 0.0
    before: Predictions | None = None


@dataclass(frozen=True)
class Branch:
    """Where a training stands between two of its steps, in memory: others go on from there."""

    snapshot: Snapshot
    pending: Pending


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
        pending: What is known of the epoch that it stands in.
        history: All evaluations so far.
        predictions: Those of the last evaluation in this process, for each validation row in order.
        anchored: The pretrained weights that are pulled to where they came from.
    """

    model: PreTrainedModel
    forward: Forward
    optimizer: torch.optim.Optimizer
    changed: Mapping[str, Tensor]
    micro_batch: int
    epoch: int = 0
    step: int = 0
    pending: Pending = field(default_factory=Pending)
    history: list[Evaluation] = field(default_factory=list)
    predictions: Predictions | None = None
    anchored: Sequence[Anchor] = ()

    def state_dict(self) -> Snapshot:
        """Copies the state; meant for the moment when `fit` has yielded an evaluation, or after `loop.settle`.

        Raises:
            ValueError: If it stands within an epoch and is not settled.
        """
        if self.pending.seen:
            raise ValueError(f"step {self.step} lies within an epoch: settle the state before it is copied")
        return self._snapshot(_pending_tensors(self.pending))

    def _snapshot(self, pending: Mapping[str, Tensor]) -> Snapshot:
        tensors = {**pending, **{f"model.{name}": tensor for name, tensor in self.changed.items()}}
        tensors |= moments_of(self.optimizer, self._optimized())
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
        load_moments(self.optimizer, self._optimized(), snapshot.tensors)
        self.epoch, self.step, self.micro_batch = snapshot.epoch, snapshot.step, snapshot.micro_batch
        self.history, self.pending = list(snapshot.history), _pending(snapshot.tensors, self.model.device)

    def branch(self) -> Branch:
        """Copies the state, wherever it stands."""
        return Branch(self._snapshot({}), self.pending)

    def return_to(self, branch: Branch) -> None:
        """Continues from where the state was when it branched."""
        self.load_state_dict(branch.snapshot)
        self.pending = branch.pending

    def _optimized(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters with their names, in the optimizer's order."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [(names[p], p) for group in self.optimizer.param_groups for p in group["params"]]


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimizer's moments as a snapshot has them, by `optimizer.<slot>.<name>`.

    Args:
        optimizer: As it stands.
        parameters: Those that it moves, with their names, in its order.
    """
    return {
        f"optimizer.{slot}.{name}": tensor
        for name, parameter in parameters
        for slot, tensor in optimizer.state[parameter].items()
    }


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Gives an optimizer the moments that `moments_of` has named in a snapshot's tensors."""
    moments: dict[int, dict[str, Tensor]] = {}
    numbers = {name: number for number, (name, _) in enumerate(parameters)}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        if part == "optimizer":
            slot, _, name = rest.partition(".")
            moments.setdefault(numbers[name], {})[slot] = tensor.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _pending_tensors(pending: Pending) -> dict[str, Tensor]:
    if pending.before is None:
        return {}
    said = pending.before
    arrays = {"values": said.values, "labels": said.labels, "row_losses": said.losses}
    return {
        "pending.losses": torch.stack(pending.losses),
        "pending.seconds": torch.tensor(pending.seconds, dtype=torch.float64),
        **{f"pending.{name}": torch.from_numpy(array) for name, array in arrays.items()},
    }


def _pending(tensors: Mapping[str, Tensor], device: torch.device) -> Pending:
    if "pending.losses" not in tensors:
        return Pending()
    values, labels, losses = (tensors[f"pending.{n}"].numpy() for n in ("values", "labels", "row_losses"))
    return Pending(
        losses=tuple(tensors["pending.losses"].to(device)),
        seconds=tensors["pending.seconds"].item(),
        before=Predictions(values, labels, losses),
    )


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose: `derive_seed(seed, "dropout", epoch, step)`."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
