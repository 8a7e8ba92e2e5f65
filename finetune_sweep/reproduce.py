"""The command `reproduce`: a promoted model, trained again from the lock beside it and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep import resolved
from finetune_sweep.errors import UserError, VerificationError
from finetune_sweep.plan import Plan, make_plan
from finetune_sweep.resolved import Lock
from finetune_sweep.sweepfile import default_cache
from finetune_sweep.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from finetune_sweep.train.heads import Trained
    from finetune_sweep.train.state import Evaluation

_SPREADS: Final = 2.0
"""How many standard deviations from seed to seed count as within their spread."""


def reproduce(folder: Path, say: Callable[[str], None]) -> None:
    """Trains a promoted model again and says how near the result is.

    Equal to the last digit is what the same hardware with the same versions gives in fp32, and there nothing less will
    do. Elsewhere sums are taken in another order, and what is left is that the metric lies within two standard
    deviations of the spread from seed to seed: of what was recorded, or of the mean over the seeds, as the promoted run
    is the best of several.

    Args:
        folder: Of the promoted model.
        say: Told what happens, line by line.

    Raises:
        UserError: The data, the pretrained model or the recipe are no longer those of the lock.
        VerificationError: The result is not equal where it has to be; elsewhere it differs by more than the spread, or
            no spread is known.
        TrialError: The training failed.
    """
    lock = resolved.read_beside(folder)
    plan, trial = _planned(lock)
    say(f"data and weights are those of the lock: {plan.fingerprint}, {lock.model}")
    evaluation, trained = _train(plan, trial, lock, say)
    differing = [
        f"{name} was {value!r}, now {evaluation.metrics.get(name)!r}"
        for name, value in lock.metrics.items()
        if evaluation.metrics.get(name) != value
    ]
    unequal = _unequal_tensors(folder, trained.changed)
    if not differing and not unequal:
        say(
            f"equal to the last digit: {len(lock.metrics)} metrics and {len(trained.changed)} trained tensors"
        )
        return
    if not differing:
        differing = [f"{unequal} of {len(trained.changed)} trained tensors differ, though no metric does"]
    _judge(lock, plan, evaluation, differing, say)


def _planned(lock: Lock) -> tuple[Plan, Trial]:
    """The one trial, if nothing that decides its result has changed."""
    from finetune_sweep.tune.loaded import planned_data

    sweep = lock.sweep
    if sweep.cache is None or not Path(sweep.cache).parent.is_dir():
        sweep = sweep.model_copy(update={"cache": str(default_cache())})
    plan = make_plan(sweep)
    found = planned_data(plan).fingerprints
    for split, expected in lock.fingerprints.items():
        if found.get(split) != expected:
            raise UserError(
                f"the data changed: the fingerprint of the {split} rows was {expected}, now it is"
                f" {found.get(split, 'none')} ({sweep.data.source or sweep.data.files})"
            )
    trial = plan.trial({})
    if plan.models[sweep.model] != lock.model:
        raise UserError(
            f"the pretrained model {sweep.model} changed: its fingerprint was {lock.model}, now it is"
            f" {plan.models[sweep.model]}"
        )
    if trial.key != lock.key:
        raise UserError(
            f"this version would train another trial: {lock.key} is in the lock, its settings now make"
            f" {trial.key}; use the version of finetune_sweep that trained it"
        )
    return replace(plan, trials=(trial,)), trial


def _train(plan: Plan, trial: Trial, lock: Lock, say: Callable[[str], None]) -> tuple[Evaluation, Trained]:
    """Trains up to the epoch whose weights were promoted, in the way that the sweep did."""
    import torch

    from finetune_sweep.tune.fused import train_alone
    from finetune_sweep.tune.loaded import Loaded

    torch.set_num_threads(lock.threads)
    reached = 0
    for evaluation, trained in train_alone(trial, plan, Loaded(plan)):
        metric, reached = plan.sweep.metric.name, evaluation.epoch
        say(f"epoch {reached} of {lock.epoch}: {metric} {evaluation.metrics[metric]:.4f}")
        if reached == lock.epoch:
            return evaluation, trained
    raise VerificationError(
        f"the training ended after epoch {reached}, before epoch {lock.epoch}, whose weights were promoted"
    )


def _unequal_tensors(folder: Path, trained: Mapping[str, Tensor]) -> int:
    """How many of the trained tensors are not those of the folder, bit by bit."""
    import torch
    from safetensors.torch import load_file

    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    return sum(name not in stored or not torch.equal(t.cpu(), stored[name]) for name, t in trained.items())


def _judge(
    lock: Lock, plan: Plan, evaluation: Evaluation, differing: list[str], say: Callable[[str], None]
) -> None:
    """Says whether what is not equal is near enough, where it need not be equal."""
    metric = plan.sweep.metric.name
    what = f"not equal to the last digit ({'; '.join(differing)})"
    reason = _why_unequal(lock, plan)
    if reason is None:
        raise VerificationError(
            f"{what}, although the hardware and the versions are those of the lock, and fp32 gives the same there"
        )
    what += f"; {reason}"
    expected = {"what was recorded": lock.metrics[metric]}
    if lock.mean is not None:
        expected["the mean over fresh seeds"] = lock.mean
    away, of = min((abs(evaluation.metrics[metric] - value), name) for name, value in expected.items())
    if lock.spread is None:
        raise VerificationError(
            f"{what}; no spread from seed to seed is known (finalists: 0) to judge that by"
        )
    if away > _SPREADS * lock.spread:
        raise VerificationError(
            f"{what}; {metric} is {away:.4g} away from {of}, more than {_SPREADS:g} times the spread from seed to seed"
            f" ({lock.spread:.4g})"
        )
    say(
        f"{what}; {metric} is {away:.4g} away from {of}, within {_SPREADS:g} times the spread ({lock.spread:.4g})"
    )


def _why_unequal(lock: Lock, plan: Plan) -> str | None:
    """What excuses another result: None where hardware, versions and precision leave nothing that could."""
    from finetune_sweep.train import hardware

    found = {"device": plan.device, **hardware.describe()}
    then = {"device": lock.device, **lock.machine}
    if not lock.machine:
        return f"what trained it is not known ({lock.host or 'another sweep'})"
    others = [
        f"{name} was {then.get(name)!r}, now {found.get(name)!r}"
        for name in sorted(found.keys() | then.keys())
        if found.get(name) != then.get(name)
    ]
    if others:
        return f"the hardware or the versions are others ({'; '.join(others)})"
    precision = plan.trials[0].training.precision
    return f"{precision} is not exact" if precision != "fp32" else None
