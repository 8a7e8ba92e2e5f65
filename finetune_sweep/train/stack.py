"""Heads of one model stacked on each other: what is trained of each member, and where the stack stands.

What a member comes to does not depend on the others, so where it stands can be stored without them, and it goes on in
any stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from finetune_sweep.errors import StorageError, TrialError
from finetune_sweep.tasks.arrays import Batch
from finetune_sweep.train import layers, optim
from finetune_sweep.train.packing import LABELS, STATES
from finetune_sweep.train.prefix_cache import states_of
from finetune_sweep.train.state import Evaluation, Job, Snapshot, derive_seed, load_moments, moments_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Encoded, Predictions
    from finetune_sweep.tasks.contract import Task

_AT_ONCE: Final = 1024
"""Rows of which labels are collated at once: only these of what is padded beside them are in memory."""


@dataclass
class Seen:
    """What a member's head said of the rows of an epoch, in the order in which it saw them.

    Attributes:
        order: Of the rows in this epoch.
        logits: One tensor for each step, or for several; `(rows, classes)`.
        losses: Sums over the rows of each step.
        seconds: Its share of the wall time of training so far.
    """

    order: NDArray[np.int64]
    logits: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Member:
    """One of the trainings.

    Attributes:
        job: What it trains; its splits have the states after the last block.
        changed: Its slices of the stacked tensors.
        optimizer: Over these.
        history: All evaluations so far.
        failure: What ended it.
        predictions: Those of the last evaluation in this process.
    """

    job: Job
    changed: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    history: list[Evaluation] = field(default_factory=list)
    failure: TrialError | None = None
    predictions: Predictions | None = None

    def trains(self, epoch: int) -> bool:
        """Whether it has an epoch of this number, counted from 1."""
        stopped = bool(self.history) and self.history[-1].stopped
        return self.failure is None and not stopped and epoch <= self.job.settings.epochs

    def enter(self, epoch: int) -> Seen:
        """Begins an epoch, counted from 1; its order of the rows is a function of seed and epoch."""
        generator = np.random.default_rng(derive_seed(self.job.seed, "order", epoch))
        return Seen(generator.permutation(len(self.job.train)))

    def snapshot(self, epoch: int, step: int, seen: Seen | None) -> Snapshot:
        """Copies where it stands: after so many whole epochs and so many steps, and what it saw since the last one."""
        tensors = {f"model.{name}": tensor for name, tensor in self.changed.items()}
        tensors |= moments_of(self.optimizer, self._optimized())
        if seen is not None and seen.losses:
            tensors["pending.losses"] = torch.stack(seen.losses)
            tensors["pending.logits"] = torch.cat(seen.logits)
            tensors["pending.seconds"] = torch.tensor(seen.seconds, dtype=torch.float64)
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return Snapshot(copies, epoch, step, self.job.settings.batch_size, tuple(self.history))

    def load(self, snapshot: Snapshot) -> Seen | None:
        """Continues from a snapshot.

        Returns:
            What it saw since the last whole epoch; None if that is nothing.

        Raises:
            StorageError: If it is of another head.
        """
        tensors, own = snapshot.tensors, {f"model.{name}": tensor for name, tensor in self.changed.items()}
        stored = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        if (shapes := _shapes(stored)) != _shapes(own):
            raise StorageError(f"the checkpoint holds the head {shapes}, and this one is {_shapes(own)}")
        for name, tensor in own.items():
            tensor.copy_(stored[name])
        load_moments(self.optimizer, self._optimized(), tensors)
        self.history = list(snapshot.history)
        if "pending.losses" not in tensors:
            return None
        seen = self.enter(snapshot.epoch + 1)
        seen.logits = [tensors["pending.logits"].to(self.job.device)]
        seen.losses = list(tensors["pending.losses"].to(self.job.device))
        seen.seconds = tensors["pending.seconds"].item()
        return seen

    def _optimized(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters with their names, in the optimizer's order."""
        groups = self.optimizer.param_groups
        return [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in tensors.items()}


@dataclass
class Stack:
    """Trainings of one model on the same rows, that differ in what a head can have of its own.

    Attributes:
        model: Whose head is trained, on its device; used to evaluate one member after another.
        states: Of the training rows, shape `(rows, hidden)`, on the device.
        labels: Of the same rows, on the device.
        validation: States and labels of the validation rows, on the CPU.
        stacked: The tensors that training changes, by name, of shape `(members, ...)`.
        members: In the order of the stack.
        at_once: How many of them take a step together, at most: fewer once memory ran out.
        epoch: Epochs trained to their end.
        step: Optimizer steps taken.
        seen: What is known of the epoch that it stands in, by the index of each member that entered it; empty between
            two epochs.
    """

    model: PreTrainedModel
    states: Tensor
    labels: Tensor
    validation: Batch
    stacked: Mapping[str, Tensor]
    members: Sequence[Member]
    at_once: int
    epoch: int = 0
    step: int = 0
    seen: dict[int, Seen] = field(default_factory=dict)

    def active(self) -> list[int]:
        """The members of the epoch that it stands in, or that comes next: also those that diverged in it."""
        return sorted(self.seen) or self.going()

    def going(self) -> list[int]:
        """The members that train on."""
        return [index for index, member in enumerate(self.members) if member.trains(self.epoch + 1)]

    def snapshots(self) -> dict[int, Snapshot]:
        """Copies where each member stands that trains on, by its index."""
        return {
            index: self.members[index].snapshot(self.epoch, self.step, self.seen.get(index))
            for index in self.going()
        }

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        """Continues from snapshots of a stack, one for each member, all of the same step.

        Raises:
            StorageError: If one is of another head.
        """
        self.seen = {}
        for index, (member, snapshot) in enumerate(zip(self.members, snapshots, strict=True)):
            if (seen := member.load(snapshot)) is not None:
                self.seen[index] = seen
        self.epoch, self.step = snapshots[0].epoch, snapshots[0].step


def start(jobs: Sequence[Job], model: PreTrainedModel, new_parameters: Sequence[str]) -> Stack:
    """Makes the members ready to be trained, each with the new weights of its seed.

    Args:
        jobs: On states after the last block; they agree in all but learning rate, schedule, weight decay, clipping,
            seed, epochs and early stopping.
        model: With its pretrained tensors.
        new_parameters: Names of the parameters that were not pretrained.

    Raises:
        TrialError: If the rows have no states.
    """
    first = jobs[0]
    train = _states_and_labels(first.task, first.train, first.pad_token_id)
    layers.freeze(model, first.arch, first.depth)
    drawn: list[dict[str, Tensor]] = []
    for job in jobs:
        layers.initialize_new(model, new_parameters, derive_seed(job.seed, "head"))
        changed = layers.changed_tensors(model, job.arch, job.depth)
        drawn.append({name: tensor.clone() for name, tensor in changed.items()})
    model.to(first.device)  # type: ignore[arg-type]  # transformers types only torch.device
    stacked = {name: torch.stack([each[name] for each in drawn]).to(first.device) for name in drawn[0]}
    members = []
    for index, job in enumerate(jobs):
        own = {name: nn.Parameter(tensor[index]) for name, tensor in stacked.items()}
        changed = {name: parameter.data for name, parameter in own.items()}
        members.append(Member(job, changed, optim.build_optimizer(model, job.settings, own)))
    return Stack(
        model=model,
        states=train[STATES].to(first.device),
        labels=train[LABELS].to(first.device),
        validation=_states_and_labels(first.task, first.validation, first.pad_token_id),
        stacked=stacked,
        members=members,
        at_once=len(members),
    )


def _states_and_labels(task: Task, encoded: Encoded, pad_token_id: int) -> Batch:
    """All that a head needs of a split, in the order of its rows, on the CPU.

    Raises:
        TrialError: If the rows have no states.
    """
    rows = np.arange(len(encoded))
    states = states_of(encoded, rows)
    if states is None:
        raise TrialError("heads are trained together on states, and these rows have none")
    parts = [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]
    labels = [task.collate(encoded, part, pad_token_id)[LABELS] for part in parts]
    return {STATES: states, LABELS: torch.cat(labels)}
