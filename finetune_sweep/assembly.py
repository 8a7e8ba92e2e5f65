"""A trial's model as a folder of its own: put together, and evaluated as whoever loads it will have it.

Both run in fresh processes, so that nothing but the folder decides what the second one finds.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_sweep.durable import explained
from finetune_sweep.errors import StorageError, VerificationError
from finetune_sweep.events import Metrics
from finetune_sweep.layout import CHANGED_TENSORS
from finetune_sweep.plan import Plan
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tasks.contract import ROBUST
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import pad_token_id, quiet_loading
from finetune_sweep.train import robustness
from finetune_sweep.train.data import rewritten
from finetune_sweep.train.robustness import Robustness
from finetune_sweep.trial import Trial
from finetune_sweep.tune.loaded import Loaded, planned_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Found:
    """What a checkpoint that was loaded from its folder gave, and what it was evaluated on.

    Its robustness is known where the plan's metric is one of perturbed rows.
    """

    metrics: Metrics
    host: str
    device: str
    hardware: Mapping[str, str | int]
    predictions: Predictions | None = None
    robustness: Robustness | None = None


def assemble(target: Path, plan: Plan, trial: Trial, checkpoint: Path) -> None:
    """Fills a folder with the complete model of a trial and its tokenizer, as transformers stores them.

    Args:
        target: The folder, which exists.
        plan: The sweep; its trials are not looked at.
        trial: What was trained.
        checkpoint: The folder with the tensors that training has changed.

    Raises:
        StorageError: The checkpoint is not one of this model at this depth, or the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from finetune_sweep.train import adapters, conflicts, layers, strategies

    loaded = Loaded(plan)
    pretrained = loaded.pretrained(trial.model)
    arch, new = conflicts.resolve(trial.training, pretrained.arch)[0], pretrained.new_parameters
    model = strategies.prepare(pretrained.model, new, trial.training, arch, trial.opened, trial.seed)
    live = layers.changed_tensors(model, arch, trial.opened)
    try:
        stored = load_file(checkpoint / CHANGED_TENSORS)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{checkpoint / CHANGED_TENSORS} cannot be read: {error}") from None
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (live, stored)]
    odd = {name for name, _ in shapes[0].items() ^ shapes[1].items()}
    odd |= {name for name, _ in model.named_parameters()} & set(new) - live.keys()
    if odd:
        raise StorageError(
            f"{checkpoint} holds other tensors than training changes; {len(odd)} differ, as {min(odd)}"
        )
    for name, tensor in live.items():
        tensor.copy_(stored[name])
    adapters.merge(model)
    rows = partial(loaded.encoded, "validation", pretrained.folder, trial.max_length)
    model = TASKS[plan.sweep.task].as_evaluated(model, rows)
    with explained(target), quiet_loading():
        model.save_pretrained(target)
        pretrained.processor.save_pretrained(target)


def evaluate_folder(folder: Path, plan: Plan, trial: Trial, split: str, threads: int) -> Found:
    """Evaluates a complete model from its folder alone, with the settings of its training's evaluations.

    Args:
        folder: What `from_pretrained` loads: weights, class names, tokenizer.
        plan: The sweep; its trials are not looked at.
        trial: Says where inputs are cut, and the precision.
        split: `validation` or `test`.
        threads: That torch computes with.

    Raises:
        UserError: The data are no longer those of the plan.
        VerificationError: Weights or class names are missing.
    """
    import torch

    from finetune_sweep.train import architecture, hardware, loop, packing

    torch.set_num_threads(threads)
    model = load_as_user(folder, plan)
    processor = load_processor(folder, TASKS[plan.sweep.task])
    task = robustness.task_for(plan.sweep.metric.name, TASKS[plan.sweep.task].bound(model, processor))
    rows = planned_data(plan).splits[split]
    is_robust = robustness.measures(plan.sweep.metric.name)
    if is_robust:
        rows = rewritten(rows, robustness.rewriting(split, task))
    model.to(plan.device)  # type: ignore[arg-type]  # transformers types only torch.device
    arch = architecture.describe(model.config.to_dict())
    predictions = loop.evaluate(
        packing.forward_of(model, arch, unpadding=plan.sweep.speed.unpadding and task.packs),
        task,
        task.encode(rows, processor, plan.classes, trial.max_length),
        device=plan.device,
        precision="bf16" if trial.training.precision == "bf16" else "fp32",
        pad_token_id=pad_token_id(processor),
    )
    metrics = task.score(predictions, plan.classes)
    measured = robustness.measure(TASKS[plan.sweep.task], predictions, plan.classes) if is_robust else None
    clean = robustness.clean_rows(predictions)
    return Found(metrics, socket.gethostname(), plan.device, hardware.describe(), clean, measured)


def with_robust_metric(plan: Plan) -> Plan:
    """The plan with the metric on perturbed rows, for `evaluate_folder` to measure robustness."""
    metric = plan.sweep.metric
    if robustness.measures(metric.name):
        return plan
    robust = metric.model_copy(update={"name": f"{ROBUST}{metric.name}"})
    return replace(plan, sweep=plan.sweep.model_copy(update={"metric": robust}))


def load_as_user(folder: Path, plan: Plan) -> PreTrainedModel:
    """Loads a complete model with nothing but its folder.

    Raises:
        VerificationError: Weights or class names are missing.
    """
    import transformers

    from finetune_sweep.train import pooling

    auto = getattr(transformers, TASKS[plan.sweep.task].auto_model)
    with quiet_loading():
        model: PreTrainedModel
        model, info = auto.from_pretrained(
            str(folder),
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=pooling.has_code(folder),
        )
    wrong = {reason: names for reason, names in info.items() if names}
    if wrong:
        raise VerificationError(f"{folder} is not loaded as it was stored: {wrong}")
    classes = tuple((model.config.id2label or {}).values())
    if plan.classes and classes != plan.classes:
        raise VerificationError(
            f"{folder} should have the classes {plan.classes}, but its config has {classes}"
        )
    return model
