"""The training loop: a generator of evaluations that knows no Ray, no MLflow, no file and no terminal.

Every random number comes from a generator keyed by (seed, purpose, epoch, step), and everything else is a
function of the step and of the history. So a run equals the beginning of a longer one (where the schedule
does not look at the length), a resumed run equals an uninterrupted one, and what ran before in the process
does not matter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune_sweep.errors import TrialError
from finetune_sweep.phases import probe_epochs
from finetune_sweep.tasks.arrays import Batch, Encoded, Predictions, Said
from finetune_sweep.tasks.contract import Output, Task
from finetune_sweep.train import adapters, layers, optim, strategies
from finetune_sweep.train.adversarial import fast_gradient
from finetune_sweep.train.memory import in_halves, unless_out_of_memory
from finetune_sweep.train.packing import LABELS, STATES, Forward, forward_of
from finetune_sweep.train.prefix_cache import states_of
from finetune_sweep.train.state import Evaluation, Job, LoopState, Pending, Precision, derive_seed
from finetune_sweep.train.transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from finetune_sweep.settings import EarlyStopping


def start(job: Job, model: PreTrainedModel, new_parameters: Sequence[str]) -> LoopState:
    """Makes a model ready to be trained: new weights drawn by the seed, its settings' strategies, frozen to its depth.

    Args:
        job: The run.
        model: Fresh from `task.build_model`, or one that was trained before and whose pretrained tensors have
            been restored; gradients, frozen parts and new parameters are set anew here.
        new_parameters: Names of the parameters that were not pretrained, as `task.build_model` returned them.
    """
    origins = {n: p.detach().clone() for n, p in model.named_parameters()} if job.settings.l2_sp else {}
    subject = strategies.prepared(model, new_parameters, job.settings, job.arch, job.depth, job.seed)
    model = subject.model
    layers.freeze(model, job.arch, job.depth)
    model.to(job.device)  # type: ignore[arg-type]
    anchored = optim.anchors(model, origins, subject.new)
    return LoopState(
        model=model,
        forward=forward_of(model, job.arch, unpadding=job.unpadding, first=job.first),
        optimizer=optim.build_optimizer(model, job.settings, arch=job.arch, anchored=anchored),
        changed=layers.changed_tensors(model, job.arch, job.depth),
        micro_batch=math.ceil(job.settings.batch_size / job.settings.gradient_accumulation_steps),
        anchored=anchored,
    )


def fit(
    job: Job, state: LoopState, until: int | None = None, is_stopping: Callable[[], bool] = lambda: False
) -> Iterator[Evaluation]:
    """Trains from where the state stands, and yields an evaluation after each epoch.

    When an evaluation is yielded, the state belongs to it: copy it, store it, or stop here.

    Args:
        job: The run.
        state: From `start`, or a snapshot loaded into one; moved on in place.
        until: Goes no farther than to this many steps, also within an epoch.
        is_stopping: Asked before every step; once it says yes, the generator ends there.

    Raises:
        TrialError: `out_of_memory` if one example at a time is still too much; `diverged` if the loss, the
            gradient or the metric is not a finite number.
    """
    while state.epoch < job.settings.epochs and not (state.history and state.history[-1].stopped):
        now = job.at(state.epoch + 1)
        _train(now, state, until, is_stopping)
        if state.step < (state.epoch + 1) * steps_per_epoch(job):
            return
        train_seconds = state.pending.seconds
        train_loss, train_metrics = _finish_epoch(job, state)
        trained = time.perf_counter()
        predictions = evaluate(
            state.forward,
            job.task,
            now.validation,
            device=job.device,
            precision=job.precision,
            pad_token_id=job.pad_token_id,
        )
        metrics = job.task.score(predictions, job.classes)
        check_metrics(metrics, state.epoch)
        evaluation = Evaluation(
            epoch=state.epoch,
            step=state.step,
            examples=state.epoch * len(job.train),
            train_loss=train_loss,
            learning_rate=rate_at(job, state.step - 1, state.history),
            metrics=metrics,
            train_metrics=train_metrics,
            train_seconds=train_seconds,
            eval_seconds=time.perf_counter() - trained,
            micro_batch=state.micro_batch,
            stopped=stops(job, [*(e.metrics for e in state.history), metrics]),
        )
        state.history.append(evaluation)
        state.predictions = predictions
        yield evaluation


def evaluate(
    forward: Forward,
    task: Task,
    encoded: Encoded,
    *,
    device: str,
    precision: Precision,
    pad_token_id: int,
) -> Predictions:
    """Predicts every row of a split, with the model in eval mode.

    Batches are of `task.evaluation_batch` rows of similar length, always the same ones; one that does not fit
    into memory is halved.

    Returns:
        One row for each row of the split, in its order.

    Raises:
        TrialError: `out_of_memory` if one row is too much.
    """
    return evaluate_rows(
        forward,
        task,
        encoded.lengths(),
        lambda rows: _collate(task, encoded, rows, pad_token_id),
        device=device,
        precision=precision,
    )


def evaluate_rows(
    forward: Forward,
    task: Task,
    lengths: NDArray[np.int64],
    collate: Callable[[NDArray[np.int64]], Batch],
    *,
    device: str,
    precision: Precision,
) -> Predictions:
    """The same for rows of which only their lengths are known, and what makes a batch of some of them."""
    forward.model.eval()  # type: ignore[no-untyped-call]  # transformers'

    def predict(rows: NDArray[np.int64]) -> Predictions:
        batch = collate(rows)
        output, labels = _compute(forward, batch, device, precision), _labels(batch, device)
        losses = task.losses(output, labels)
        with _in_precision(device, precision):
            return task.respond(forward.model, output, {**batch, **labels}, losses).stored()

    order, size = np.argsort(lengths, kind="stable"), task.evaluation_batch
    with adapters.merged(forward.model), torch.inference_mode():
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        parts = [part for rows in batches for part in in_halves(rows, predict, "evaluating")]
        return Predictions.join(parts, order)


def steps_per_epoch(job: Job) -> int:
    """Optimizer steps of an epoch."""
    return math.ceil(len(job.train) / job.settings.batch_size)


def rate_at(job: Job, step: int, history: Sequence[Evaluation]) -> float:
    """The learning rate of a step, counted from 0, after some evaluations; parameters may have a scale of their own.

    The schedule, and what reacts to evaluations, begin after the linear probe.
    """
    settings, probe, steps = job.settings, job.settings.linear_probe, steps_per_epoch(job)
    before = probe_epochs(settings)
    if probe and step < before * steps:
        return probe.learning_rate
    own, total_steps = step - before * steps, (settings.epochs - before) * steps
    rate = optim.learning_rate(settings.lr_schedule, settings.learning_rate, own, total_steps)
    return rate * optim.reduction(settings.lr_schedule, [e.metrics["loss"] for e in history[before:]])


def _order(job: Job, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch, counted from 1."""
    return np.random.default_rng(derive_seed(job.seed, "order", epoch)).permutation(len(job.train))


def _train(job: Job, state: LoopState, until: int | None, is_stopping: Callable[[], bool]) -> None:
    """Moves the state on to the end of its epoch, or to a step before that.

    Losses and predictions stay on an accelerator until the end of the epoch: reading each would make it wait for every
    step.
    """
    started = time.perf_counter()
    if job.stages:
        _enter(job, state)
    layers.train_mode(state.model, job.arch, job.depth)
    order, steps, size = _order(job, state.epoch + 1), steps_per_epoch(job), job.settings.batch_size
    last = (state.epoch + 1) * steps
    losses, seen = list(state.pending.losses), list(state.pending.seen)
    while state.step < (last if until is None else min(until, last)) and not is_stopping():
        first = (state.step - state.epoch * steps) * size
        optim.set_learning_rate(state.optimizer, rate_at(job, state.step, state.history))
        loss, outputs = _train_step(job, state, order[first : first + size])
        losses.append(loss)
        seen += outputs
        if job.device == "cpu":
            check_loss(losses[-1].item(), state.epoch + 1, state.step)
    seconds = state.pending.seconds + time.perf_counter() - started
    state.pending = replace(state.pending, losses=tuple(losses), seen=tuple(seen), seconds=seconds)


def _enter(job: Job, state: LoopState) -> None:
    """Freezes what is frozen in an epoch; at the end of the linear probe the optimizer forgets it."""
    layers.freeze(state.model, job.arch, job.depth)
    state.forward = state.forward.at(job.first)
    probed = probe_epochs(job.settings) * steps_per_epoch(job)
    if probed and state.step == probed:
        state.optimizer.state.clear()


def settle(state: LoopState) -> None:
    """Makes a state that stands within an epoch ready to be stored; this waits for an accelerator to be done."""
    if state.pending.losses:
        state.pending = replace(state.pending, seen=(), before=_said(state.pending))


def _said(pending: Pending) -> Predictions:
    """What the model said of the rows of an epoch so far, in the order in which they were trained on."""
    parts = [] if pending.before is None else [pending.before]
    parts += [part.stored() for part in pending.seen]
    return Predictions.join(parts, np.arange(sum(map(len, parts))))


def _finish_epoch(job: Job, state: LoopState) -> tuple[float, dict[str, float]]:
    """Counts the epoch.

    Returns:
        The mean loss of the training examples, and the task's metrics of them, each as it was when it was trained on.
    """
    pending, state.pending = state.pending, Pending()
    state.epoch += 1
    mean = float(torch.stack(list(pending.losses)).cpu().double().sum()) / len(job.train)
    check_loss(mean, state.epoch, state.step)
    predictions = Predictions.join([_said(pending)], _order(job, state.epoch))
    return mean, job.task.score(predictions, job.classes)


def _train_step(job: Job, state: LoopState, rows: NDArray[np.int64]) -> tuple[Tensor, list[Said]]:
    """Takes one optimizer step, in micro-batches that fit into memory; returns what `_accumulate` does."""
    while (computed := unless_out_of_memory(lambda: _accumulate(job, state, rows))) is None:
        state.optimizer.zero_grad(set_to_none=True)
        micro_batch = min(state.micro_batch, len(rows))
        if micro_batch == 1:
            raise TrialError("out of memory while training on one example at a time", "out_of_memory")
        state.micro_batch = math.ceil(micro_batch / 2)
    step = unless_out_of_memory(lambda: _update(job, state))
    if step is None:
        # The first step allocates the moments; what a smaller micro-batch would save is free by then.
        raise TrialError("out of memory for the state of the optimizer", "out_of_memory")
    state.step = step
    return computed


def _accumulate(job: Job, state: LoopState, rows: NDArray[np.int64]) -> tuple[Tensor, list[Said]]:
    """Computes the gradient of the mean loss of a batch; returns the sum of the losses, and what was said."""
    state.optimizer.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    seen: list[Said] = []
    for micro, first in enumerate(range(0, len(rows), state.micro_batch)):
        part = rows[first : first + state.micro_batch]
        batch = _collate(job.task, job.train, part, job.pad_token_id)
        seed = derive_seed(job.seed, "dropout", state.epoch + 1, state.step, micro)
        found, said = _objective(job, state, batch, seed)
        loss = found.sum()
        (loss / len(rows)).backward()
        losses.append(loss.detach())
        seen.append(said)
    return torch.stack(losses).sum(), seen


def _objective(job: Job, state: LoopState, batch: Batch, seed: int) -> tuple[Tensor, Said]:
    """What is minimised of each row of a batch, shape `(rows,)`, and what the model said of the rows as they are."""
    labels = _labels(batch, job.device)
    outputs: list[Output] = []

    def losses() -> Tensor:
        # Dropout layers draw from the process's generator and take no other.
        torch.manual_seed(seed)
        outputs.append(_compute(state.forward, batch, job.device, job.precision))
        return job.task.losses(outputs[-1], labels, job.settings.label_smoothing)

    epsilon = job.settings.adversarial_epsilon
    if epsilon:
        reader = state.model.get_encoder() if state.model.config.is_encoder_decoder else state.model
        words = reader.get_input_embeddings()
        found = fast_gradient(words, losses, epsilon, batch["attention_mask"].sum(1)).total
    else:
        found = losses()
    with torch.no_grad():
        is_plain = not epsilon and not job.settings.label_smoothing
        own = found.detach() if is_plain else job.task.losses(outputs[0], labels)
        return found, job.task.predict(outputs[0], labels, own)


def _update(job: Job, state: LoopState) -> int:
    """Pulls, clips the gradient and moves the weights; returns the number of steps taken by then."""
    optim.pull(state.anchored, job.settings.l2_sp)
    if job.settings.max_grad_norm:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, job.settings.max_grad_norm)
    state.optimizer.step()
    return state.step + 1


def _collate(task: Task, encoded: Encoded, rows: NDArray[np.int64], pad_token_id: int) -> Batch:
    """A batch as the task makes it, with the states of its rows where the split has them."""
    batch, states = task.collate(encoded, rows, pad_token_id), states_of(encoded, rows)
    return batch if states is None else {**batch, STATES: states}


def _compute(forward: Forward, batch: Batch, device: str, precision: Precision) -> Output:
    with _in_precision(device, precision):
        return forward(batch)


def _in_precision(device: str, precision: Precision) -> torch.autocast:
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _labels(batch: Batch, device: str) -> Batch:
    """What losses and metrics need of a batch, where its logits are."""
    return {LABELS: to_device(batch[LABELS], device)}


def check_loss(loss: float, epoch: int, step: int) -> None:
    """Raises a `TrialError`, `diverged`, for a training loss that is no finite number."""
    if not math.isfinite(loss):
        raise TrialError(f"the training loss became {loss} in epoch {epoch}, by step {step}", "diverged")


def check_metrics(metrics: Mapping[str, float], epoch: int) -> None:
    """Raises a `TrialError`, `diverged`, for a validation metric that is no finite number."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrialError(f"the validation {name} became {value} in epoch {epoch}", "diverged")


def stops(job: Job, metrics: Sequence[Mapping[str, float]]) -> bool:
    """Whether early stopping ends a training after evaluations with these metrics; those of a probe do not count."""
    settings = job.settings.early_stopping
    if settings is None:
        return False
    name, mode = ("loss", "min") if settings.monitor == "loss" else (job.metric, job.mode)
    sign = -1.0 if mode == "min" else 1.0
    return stops_early([sign * m[name] for m in metrics[probe_epochs(job.settings) :]], settings)


def stops_early(scores: Sequence[float], settings: EarlyStopping) -> bool:
    """Whether training ends after the last of these evaluations: `patience` of them in a row brought nothing.

    Args:
        scores: One for each evaluation so far; higher is better.
        settings: An improvement is above the best so far, by at least `min_delta`.
    """
    best, waited = -math.inf, 0
    for score in scores:
        if score > best and score - best >= settings.min_delta:
            best, waited = score, 0
        else:
            waited += 1
    return waited >= settings.patience
