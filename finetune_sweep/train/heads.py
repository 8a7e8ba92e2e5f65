"""Many trainings of which only the head is trained, as one: their heads are stacked, and take each step together.

With all blocks frozen a text is one vector, so a step of one head is too small to keep a processor busy. Each head has
its own new weights, order of rows, dropout, learning rate and end, drawn from its own seed as if it were alone: what it
comes to does not depend on the others.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from finetune_sweep.errors import TrialError
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.train import loop, optim
from finetune_sweep.train.masks import Head
from finetune_sweep.train.memory import unless_out_of_memory
from finetune_sweep.train.packing import LABELS, Logits, forward_of
from finetune_sweep.train.stack import Member, Seen, Stack
from finetune_sweep.train.state import Evaluation, Job
from finetune_sweep.train.transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.contract import Output

_PREFIX = "model."


class Trained(Protocol):
    """A training as its consumer sees it."""

    @property
    def changed(self) -> Mapping[str, Tensor]:
        """Live tensors that training changes, by their names in the model's `state_dict`."""

    @property
    def predictions(self) -> Predictions | None:
        """Those of the last evaluation, for each validation row in order."""


def fit(
    stack: Stack, beat: Callable[[], None], is_stopping: Callable[[], bool] = lambda: False
) -> Iterator[Sequence[tuple[int, Evaluation | TrialError]]]:
    """Trains all members from where they stand, and yields after each epoch what came of those that trained in it.

    An evaluation belongs to its member, named by its index; its tensors are then those of `members[index].changed`. A
    member that diverges is told once, and the others go on.

    Args:
        stack: What is trained.
        beat: A sign of life, called before each step and each batch of an evaluation.
        is_stopping: Asked before each step and each evaluation; once it says yes, the generator ends there.

    Raises:
        TrialError: `out_of_memory` if the step of one member alone, or the states of optimizers, do not fit.
    """
    while active := stack.active():
        if not _train_epoch(stack, active, beat, is_stopping):
            return
        outcomes: list[tuple[int, Evaluation | TrialError]] = []
        for index in active:
            if is_stopping():
                return
            outcomes.append((index, _outcome(stack, index, beat)))
        for index, outcome in outcomes:
            member = stack.members[index]
            if isinstance(outcome, TrialError):
                member.failure = outcome
            else:
                member.history.append(outcome)
        stack.epoch, stack.seen = stack.epoch + 1, {}
        yield outcomes


def _train_epoch(
    stack: Stack, active: Sequence[int], beat: Callable[[], None], is_stopping: Callable[[], bool]
) -> bool:
    """Moves the stack on to the end of its epoch, or to a step before that; says whether it got to the end."""
    started = time.perf_counter()
    job, epoch = stack.members[active[0]].job, stack.epoch + 1
    stack.seen = stack.seen or {index: stack.members[index].enter(epoch) for index in active}
    head = Head(stack.model, job.arch)
    size = job.settings.batch_size
    begin, end = (number * loop.steps_per_epoch(job) for number in (stack.epoch, epoch))
    while stack.step < end and not is_stopping():
        beat()
        first = (stack.step - begin) * size
        if running := [index for index in active if stack.members[index].failure is None]:
            rows = np.stack([stack.seen[index].order[first : first + size] for index in running])
            batch = to_device(torch.from_numpy(rows), job.device)
            _step(stack, running, head, _Batch(stack.states[batch], stack.labels[batch], epoch, stack.step))
        stack.step += 1
    seconds = (time.perf_counter() - started) / len(active)
    for seen in stack.seen.values():
        seen.seconds += seconds
    return stack.step == end


def _outcome(stack: Stack, index: int, beat: Callable[[], None]) -> Evaluation | TrialError:
    """What came of an epoch for a member."""
    if (diverged := stack.members[index].failure) is not None:
        return diverged
    try:
        return _evaluate(stack, index, beat)
    except TrialError as failure:
        if failure.failure != "diverged":
            raise
        return failure


@dataclass(frozen=True)
class _Batch:
    """The rows of one step: states `(members, rows, hidden)`, labels `(members, rows)`."""

    states: Tensor
    labels: Tensor
    epoch: int
    step: int


def _step(stack: Stack, running: Sequence[int], head: Head, batch: _Batch) -> None:
    """Takes one optimizer step with each running member; notes what each head said, and who diverged.

    Where they do not fit into memory together, some go first: none depends on its company.
    """
    first = 0
    while first < len(running):
        some = slice(first, first + stack.at_once)
        part = replace(batch, states=batch.states[some], labels=batch.labels[some])
        if _step_at_once(stack, running[some], head, part):
            first = some.stop
        elif stack.at_once == 1:
            raise TrialError("out of memory while training one head", "out_of_memory")
        else:
            stack.at_once = math.ceil(len(running[some]) / 2)


def _step_at_once(stack: Stack, running: Sequence[int], head: Head, batch: _Batch) -> bool:
    """The same of all together; False if they do not fit into memory, and then nothing has changed."""
    computed = unless_out_of_memory(lambda: _gradients(stack, running, head, batch))
    if computed is None:
        return False
    gradients, sums, logits = computed
    members = [stack.members[index] for index in running]
    if unless_out_of_memory(lambda: _update(members, gradients, batch.step)) is None:
        raise TrialError("out of memory for the states of the optimizers", "out_of_memory")
    for place, index in enumerate(running):
        stack.seen[index].losses.append(sums[place])
        stack.seen[index].logits.append(logits[place])
    if members[0].job.device == "cpu":
        _note_divergence(members, sums.tolist(), batch.epoch, batch.step + 1)
    return True


def _gradients(
    stack: Stack, running: Sequence[int], head: Head, batch: _Batch
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What a step of some members needs.

    Returns:
        The gradients of their mean losses, by name, `(members, ...)`; the sums of the losses, `(members,)`; the
        logits, `(members, rows, classes)`.
    """
    job = stack.members[running[0]].job
    masks = head.masks(
        [stack.members[index].job.seed for index in running], batch.states[0], batch.epoch, batch.step
    )
    everyone = len(running) == len(stack.members)
    chosen = to_device(torch.tensor(running), job.device)
    inputs = {
        name: (tensor if everyone else tensor[chosen]).detach().requires_grad_()
        for name, tensor in stack.stacked.items()
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


def _evaluate(stack: Stack, index: int, beat: Callable[[], None]) -> Evaluation:
    """The member's evaluation, computed by the model as for any training."""
    started = time.perf_counter()
    model, member, seen, epoch = stack.model, stack.members[index], stack.seen[index], stack.epoch + 1
    job = member.job
    mean = float(torch.stack(seen.losses).cpu().double().sum()) / len(job.train)
    loop.check_loss(mean, epoch, stack.step)
    with torch.no_grad():
        for name, tensor in member.changed.items():
            model.get_parameter(name).copy_(tensor)

    def collate(rows: NDArray[np.int64]) -> Batch:
        beat()
        chosen = torch.from_numpy(rows)
        return {name: tensor[chosen] for name, tensor in stack.validation.items()}

    predictions = loop.evaluate_rows(
        forward_of(model, job.arch, unpadding=True, first=job.first),
        job.task,
        job.validation.lengths(),
        collate,
        device=job.device,
        precision=job.precision,
    )
    metrics = job.task.score(predictions, job.classes)
    loop.check_metrics(metrics, epoch)
    member.predictions = predictions
    return Evaluation(
        epoch=epoch,
        step=stack.step,
        examples=epoch * len(job.train),
        train_loss=mean,
        learning_rate=loop.rate_at(job, stack.step - 1, member.history),
        metrics=metrics,
        train_metrics=_train_metrics(job, stack.labels, seen),
        train_seconds=seen.seconds,
        eval_seconds=time.perf_counter() - started,
        micro_batch=job.settings.batch_size,
        stopped=loop.stops(job, [*(e.metrics for e in member.history), metrics]),
    )


def _train_metrics(job: Job, labels: Tensor, seen: Seen) -> dict[str, float]:
    labels = labels[to_device(torch.from_numpy(seen.order), job.device)]
    output: Output = Logits(torch.cat(seen.logits))
    said = job.task.predict(output, {LABELS: labels}, job.task.losses(output, {LABELS: labels}))
    predictions = Predictions.join([said.stored()], seen.order)
    return job.task.score(predictions, job.classes)
