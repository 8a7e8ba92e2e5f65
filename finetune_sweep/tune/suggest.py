"""Searches that learn from results, by Optuna: the study is made anew from the journal, and never stored.

Each suggestion is a function of the seed, its number and what the journal says, so a driver that was killed goes on
as if it had not been.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from finetune_sweep.errors import UserError
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.space import (
    Choice,
    Config,
    Domain,
    FloatRange,
    IntRange,
    Space,
    allows,
    canonical,
    is_active,
)
from finetune_sweep.spec import Tpe
from finetune_sweep.yamlio import Value

_SEEDS: Final = 2**32
_STRIDE: Final = 1_000_003
_STATES: Final = {
    "planned": TrialState.RUNNING,
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
}


def suggest(plan: Plan, record: SweepRecord, number: int) -> Config:
    """The configuration of a suggestion, given all results so far and the trials that still run.

    Args:
        plan: The sweep; its search is one that learns.
        record: What the journal says.
        number: Of the suggestion, from 0.
    """
    search = plan.sweep.search
    if not isinstance(search, Tpe):
        raise TypeError(f"a {search.type} search knows its configurations beforehand")
    optuna.logging.set_verbosity(logging.WARNING)
    seed = (search.seed * _STRIDE + number) % _SEEDS
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        # `group` makes the estimator look at conditional dimensions together with those that they depend on.
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=search.startup_trials, multivariate=True, group=True, seed=seed
        )
    study = optuna.create_study(direction=_direction(plan), sampler=sampler)
    study.add_trials(frozen_trials(plan, record))
    trial = study.ask()
    config: Config = {}
    for dimension in plan.sweep.space.dimensions:
        if is_active(dimension, config):
            drawn = trial._suggest(dimension.name, distribution(dimension.domain))  # noqa: SLF001 - by distribution
            config[dimension.name] = _value(dimension.domain, drawn)
    return config


def export(plan: Plan, record: SweepRecord, file: Path) -> int:
    """Writes the trials of a sweep as an Optuna study into a new sqlite file, for Optuna's tools.

    Returns:
        How many trials it has.

    Raises:
        UserError: If the file exists.
    """
    if file.exists():
        raise UserError(f"--optuna {file}: the file exists; give a new one")
    optuna.logging.set_verbosity(logging.WARNING)
    trials = frozen_trials(plan, record)
    study = optuna.create_study(
        study_name=plan.sweep.name, storage=f"sqlite:///{file.absolute()}", direction=_direction(plan)
    )
    study.set_user_attr("metric", plan.sweep.metric.name)
    study.add_trials(trials)
    return len(trials)


def distribution(domain: Domain) -> BaseDistribution:
    """A domain in Optuna's words; values that it cannot hold stand as JSON."""
    match domain:
        case Choice(values):
            return CategoricalDistribution([_category(value) for value in values])
        case IntRange(low, high, step, log):
            return IntDistribution(low, high, log=log, step=step)
        case FloatRange(low, high, step, log):
            return FloatDistribution(low, high, log=log, step=step)


def frozen_trials(plan: Plan, record: SweepRecord) -> list[FrozenTrial]:
    """The trials of the sweep as Optuna keeps them, in the order of the plan.

    One that diverged counts as bad as the worst that finished; a failed one as failed; the others as running.
    """
    finite = [trial.score for trial in record.current() if trial.score is not None]
    worst = (min if plan.mode == "max" else max)(finite, default=0.0)
    space = plan.sweep.space
    return [
        _frozen(trial, space, worst)
        for trial in record.current()
        if allows(space, dict(trial.planned.config))
    ]


def _frozen(trial: TrialRecord, space: Space, worst: float) -> FrozenTrial:
    config = trial.planned.config
    domains = {d.name: d.domain for d in space.dimensions if d.name in config}
    state = _STATES[trial.state]
    return create_trial(
        state=state,
        value=(worst if trial.state == "diverged" else trial.score) if state is TrialState.COMPLETE else None,
        params={name: _category(config[name]) for name in domains},
        distributions={name: distribution(domain) for name, domain in domains.items()},
        user_attrs={"key": trial.key, "state": trial.state, "seed": trial.planned.seed, **_metrics(trial)},
    )


def _metrics(trial: TrialRecord) -> Mapping[str, float]:
    return dict(trial.metrics) if trial.state == "finished" else {}


def _direction(plan: Plan) -> StudyDirection:
    return StudyDirection.MAXIMIZE if plan.mode == "max" else StudyDirection.MINIMIZE


def _category(value: Value) -> bool | int | float | str | None:
    return canonical(value) if isinstance(value, list | dict) else value


def _value(domain: Domain, drawn: Value) -> Value:
    """What Optuna drew, as the space writes it."""
    if not isinstance(domain, Choice):
        return drawn
    return next(value for value in domain.values if canonical(_category(value)) == canonical(drawn))
