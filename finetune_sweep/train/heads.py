"""Many trainings of which only the head is trained, as one: their heads are stacked, and take each step together.

With all blocks frozen a text is one vector, so a step of one head is too small to keep a processor busy. Each head has
its own new weights, order of rows, dropout, learning rate and end, drawn from its own seed as if it were alone: what it
comes to does not depend on the others.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from finetune_sweep.errors import TrialError
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.train import layers, loop, optim
from finetune_sweep.train.memory import unless_out_of_memory
from finetune_sweep.train.packing import LABELS, Logits, apply_head, forward_of, shallow
from finetune_sweep.train.prefix_cache import states_of
from finetune_sweep.train.state import Evaluation, Job, derive_seed
from finetune_sweep.train.transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.contract import Output
    from finetune_sweep.train.architecture import Architecture

_PREFIX = "model."


class Trained(Protocol):
    """A training as its consumer sees it."""

    @property
    def changed(self) -> Mapping[str, Tensor]:
        """Live tensors that training changes, by their names in the model's `state_dict`."""

    @property
    def predictions(self) -> Predictions | None:
        """Those of the last evaluation, for each validation row in order."""


@dataclass
class Member:
    """One of the trainings.

    Attributes:
        job: What it trains; its splits have the states after the last block.
        changed: Its slices of the stacked tensors.
        optimizer: Over these.
        history: All evaluations so far.
        failure: What ended it.
        predictions: Those of the last evaluation.
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


@dataclass
class Heads:
    """Trainings of one model on the same rows, that differ in what a head can have of its own.

    Args:
        model: Whose head is trained, on its device; used to evaluate one member after another.
        states: Of the training rows, shape `(rows, hidden)`.
        labels: Of the same rows.
        stacked: The tensors that training changes, by name, of shape `(members, ...)`.
        members: In the order of the stack.
        at_once: How many of them take a step together, at most: fewer once memory ran out.
    """

    model: PreTrainedModel
    states: Tensor
    labels: Tensor
    stacked: Mapping[str, Tensor]
    members: Sequence[Member]
    at_once: int


def start(jobs: Sequence[Job], model: PreTrainedModel, new_parameters: Sequence[str]) -> Heads:
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
    rows = np.arange(len(first.train))
    states = states_of(first.train, rows)
    if states is None:
        raise TrialError("heads are trained together on states, and these rows have none")
    labels = first.task.collate(first.train, rows, first.pad_token_id)[LABELS]
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
    return Heads(model, states.to(first.device), labels.to(first.device), stacked, members, len(members))


def fit(heads: Heads, on_step: Callable[[], None]) -> Iterator[Sequence[tuple[int, Evaluation | TrialError]]]:
    """Trains all members, and yields after each epoch what came of those that trained in it.

    An evaluation belongs to its member, named by its index; its tensors are then those of `members[index].changed`. A
    member that diverges is told once, and the others go on.

    Args:
        heads: What is trained.
        on_step: Called before each step.

    Raises:
        TrialError: `out_of_memory` if the step of one member alone, or the states of optimizers, do not fit.
    """
    for epoch in itertools.count(1):
        active = [index for index, member in enumerate(heads.members) if member.trains(epoch)]
        if not active:
            return
        started = time.perf_counter()
        seen = _train_epoch(heads, active, epoch, on_step)
        seconds = (time.perf_counter() - started) / len(active)
        told: list[tuple[int, Evaluation | TrialError]] = []
        for index in active:
            member = heads.members[index]
            try:
                if member.failure is not None:
                    raise member.failure
                evaluation = _evaluate(heads, member, epoch, seen[index], seconds)
                member.history.append(evaluation)
                told.append((index, evaluation))
            except TrialError as failure:
                if failure.failure != "diverged":
                    raise
                member.failure = failure
                told.append((index, failure))
        yield told


@dataclass
class _Seen:
    """What a member's head said of the rows of an epoch, in the order in which it saw them."""

    order: NDArray[np.int64]
    logits: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


def _train_epoch(
    heads: Heads, active: Sequence[int], epoch: int, on_step: Callable[[], None]
) -> dict[int, _Seen]:
    job = heads.members[active[0]].job
    rows, size = len(job.train), job.settings.batch_size
    seen = {}
    for index in active:
        seed = heads.members[index].job.seed
        order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(rows)
        seen[index] = _Seen(order)
    head = _Head(heads.model, job.arch)
    steps = loop.steps_per_epoch(job)
    for step in range((epoch - 1) * steps, epoch * steps):
        on_step()
        running = [index for index in active if heads.members[index].failure is None]
        if not running:
            break
        first = step % steps * size
        batch = torch.from_numpy(np.stack([seen[index].order[first : first + size] for index in running]))
        batch = to_device(batch, job.device)
        _step(heads, running, head, _Batch(heads.states[batch], heads.labels[batch], epoch, step), seen)
    return seen


@dataclass(frozen=True)
class _Batch:
    """The rows of one step: states `(members, rows, hidden)`, labels `(members, rows)`."""

    states: Tensor
    labels: Tensor
    epoch: int
    step: int


def _step(
    heads: Heads, running: Sequence[int], head: _Head, batch: _Batch, seen: Mapping[int, _Seen]
) -> None:
    """Takes one optimizer step with each running member; notes what each head said, and who diverged.

    Where they do not fit into memory together, some go first: none depends on its company.
    """
    first = 0
    while first < len(running):
        some = slice(first, first + heads.at_once)
        part = replace(batch, states=batch.states[some], labels=batch.labels[some])
        if _step_at_once(heads, running[some], head, part, seen):
            first = some.stop
        elif heads.at_once == 1:
            raise TrialError("out of memory while training one head", "out_of_memory")
        else:
            heads.at_once = math.ceil(len(running[some]) / 2)


def _step_at_once(
    heads: Heads, running: Sequence[int], head: _Head, batch: _Batch, seen: Mapping[int, _Seen]
) -> bool:
    """The same of all together; False if they do not fit into memory, and then nothing has changed."""
    computed = unless_out_of_memory(lambda: _gradients(heads, running, head, batch))
    if computed is None:
        return False
    gradients, sums, logits = computed
    members = [heads.members[index] for index in running]
    if unless_out_of_memory(lambda: _update(members, gradients, batch.step)) is None:
        raise TrialError("out of memory for the states of the optimizers", "out_of_memory")
    for place, index in enumerate(running):
        seen[index].losses.append(sums[place])
        seen[index].logits.append(logits[place])
    if members[0].job.device == "cpu":
        _note_divergence(members, sums.tolist(), batch.epoch, batch.step + 1)
    return True


def _gradients(
    heads: Heads, running: Sequence[int], head: _Head, batch: _Batch
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What a step of some members needs.

    Returns:
        The gradients of their mean losses, by name, `(members, ...)`; the sums of the losses, `(members,)`; the
        logits, `(members, rows, classes)`.
    """
    job = heads.members[running[0]].job
    masks = head.masks([heads.members[index].job.seed for index in running], batch)
    everyone = len(running) == len(heads.members)
    chosen = to_device(torch.tensor(running), job.device)
    inputs = {
        name: (tensor if everyone else tensor[chosen]).detach().requires_grad_()
        for name, tensor in heads.stacked.items()
    }

    def losses_of(
        parameters: dict[str, Tensor], states: Tensor, labels: Tensor, masks: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        logits = functional_call(head, {_PREFIX + n: p for n, p in parameters.items()}, (states, masks))
        output, smoothing = Logits(logits), job.settings.label_smoothing
        return job.task.losses(output, {LABELS: labels}, smoothing), logits

    device = torch.device(job.device).type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=job.precision == "bf16"):
        losses, logits = vmap(losses_of)(inputs, batch.states, batch.labels, masks)
    sums = losses.sum(1)
    (sums / batch.labels.shape[1]).sum().backward()
    gradients = {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
    return gradients, sums.detach(), logits.detach()


def _update(members: Sequence[Member], gradients: Mapping[str, Tensor], step: int) -> int:
    """Clips each member's gradient and moves its weights, one after the other; returns how many."""
    scales = _clip(gradients, [member.job.settings.max_grad_norm for member in members])
    for place, member in enumerate(members):
        optim.set_learning_rate(member.optimizer, loop.rate_at(member.job, step, member.history))
        for group in member.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                gradient = gradients[name][place]
                parameter.grad = gradient if scales is None else gradient * scales[place]
        member.optimizer.step()
    return len(members)


def _note_divergence(members: Sequence[Member], losses: Sequence[float], epoch: int, step: int) -> None:
    for member, loss in zip(members, losses, strict=True):
        try:
            loop.check_loss(loss, epoch, step)
        except TrialError as failure:
            member.failure = failure


def _clip(gradients: Mapping[str, Tensor], limits: Sequence[float]) -> Tensor | None:
    """What each member's gradient is multiplied with, shape `(members,)`; None if nobody clips."""
    if not any(limits):
        return None
    # One after the other: a reduction over a short axis is rounded by how many members stand beside it.
    norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients.values()]
    total = functools.reduce(torch.add, [norm.square() for norm in norms]).sqrt()
    limit = to_device(torch.tensor(limits), total.device)
    return torch.where(limit > 0, (limit / (total + 1e-6)).clamp(max=1.0), 1.0)


def _evaluate(heads: Heads, member: Member, epoch: int, seen: _Seen, train_seconds: float) -> Evaluation:
    """The member's evaluation, computed by the model as for any training."""
    model, job, started = heads.model, member.job, time.perf_counter()
    step = epoch * loop.steps_per_epoch(job)
    mean = float(torch.stack(seen.losses).cpu().double().sum()) / len(job.train)
    loop.check_loss(mean, epoch, step)
    with torch.no_grad():
        for name, tensor in member.changed.items():
            model.get_parameter(name).copy_(tensor)
    predictions = loop.evaluate(
        forward_of(model, job.arch, unpadding=True, first=job.first),
        job.task,
        job.validation,
        device=job.device,
        precision=job.precision,
        pad_token_id=job.pad_token_id,
    )
    metrics = job.task.score(predictions, job.classes)
    loop.check_metrics(metrics, epoch)
    member.predictions = predictions
    return Evaluation(
        epoch=epoch,
        step=step,
        examples=epoch * len(job.train),
        train_loss=mean,
        learning_rate=loop.rate_at(job, step - 1, member.history),
        metrics=metrics,
        train_metrics=_train_metrics(job, heads.labels, seen),
        train_seconds=train_seconds,
        eval_seconds=time.perf_counter() - started,
        micro_batch=job.settings.batch_size,
        stopped=loop.stops(job, [*(e.metrics for e in member.history), metrics]),
    )


def _train_metrics(job: Job, labels: Tensor, seen: _Seen) -> dict[str, float]:
    labels = labels[to_device(torch.from_numpy(seen.order), job.device)]
    output: Output = Logits(torch.cat(seen.logits))
    said = job.task.predict(output, {LABELS: labels}, job.task.losses(output, {LABELS: labels}))
    predictions = Predictions.join([said.stored()], seen.order)
    return job.task.score(predictions, job.classes)


class _Head(nn.Module):
    """The head of a model as a function of its tensors and of what dropout leaves."""

    def __init__(self, model: PreTrainedModel, arch: Architecture) -> None:
        super().__init__()
        self._arch = arch
        self._dropout = _Dropout()
        self.model = shallow(model)
        for name in arch.family.head:
            if name != "relu":
                self._without_dropout(self.model, name)

    def _without_dropout(self, holder: nn.Module, name: str) -> None:
        """Puts masks in the place of each dropout of a module, in copies of what holds it."""
        *path, last = name.split(".")
        for part in path:
            holder._modules[part] = holder = shallow(holder.get_submodule(part))  # noqa: SLF001
        module = holder.get_submodule(last)
        if isinstance(module, nn.Dropout):
            holder._modules[last] = _Masking(self._dropout, module.p)  # noqa: SLF001
            return
        holder._modules[last] = copied = shallow(module)  # noqa: SLF001
        for inner, _ in list(copied.named_children()):
            self._without_dropout(copied, inner)

    def masks(self, seeds: Sequence[int], batch: _Batch) -> list[Tensor]:
        """What dropout leaves of each row, drawn for each seed as a training alone would draw it.

        Returns:
            One tensor for each call of a dropout, of shape `(members, rows, ...)`.
        """
        drawn: dict[int, list[Tensor]] = {}
        for seed in seeds:
            if seed not in drawn:
                torch.manual_seed(derive_seed(seed, "dropout", batch.epoch, batch.step, 0))
                with torch.no_grad():
                    drawn[seed] = self._dropout.record(lambda: self._logits(batch.states[0]))
        return [torch.stack(masks) for masks in zip(*(drawn[seed] for seed in seeds), strict=True)]

    def forward(self, states: Tensor, masks: list[Tensor]) -> Tensor:
        self._dropout.given = iter(masks)
        return self._logits(states)

    def _logits(self, states: Tensor) -> Tensor:
        return apply_head(self.model, self._arch, states)


class _Dropout:
    """Where the masks of a forward pass come from: given, or drawn and noted."""

    def __init__(self) -> None:
        self.given: Iterator[Tensor] | None = None
        self._noted: list[Tensor] = []

    def record(self, forward: Callable[[], object]) -> list[Tensor]:
        self.given, self._noted = None, []
        forward()
        return self._noted

    def apply(self, states: Tensor, probability: float) -> Tensor:
        if self.given is not None:
            return states * next(self.given)
        mask = functional.dropout(torch.ones_like(states), probability)
        self._noted.append(mask)
        return states * mask


class _Masking(nn.Module):
    """Stands in the place of a dropout."""

    def __init__(self, source: _Dropout, probability: float) -> None:
        super().__init__()
        self._source, self._probability = source, probability

    def forward(self, states: Tensor) -> Tensor:
        return self._source.apply(states, self._probability)
