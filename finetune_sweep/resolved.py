"""`sweep.lock.yaml`: all that a sweep's results depend on, resolved and with fingerprints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from finetune_sweep import yamlio
from finetune_sweep.layout import Layout, write_atomic
from finetune_sweep.mlflow_uri import printable_uri
from finetune_sweep.plan import Plan, models
from finetune_sweep.space import Choice, Domain
from finetune_sweep.spec import Sweep


def write(plan: Plan, layout: Layout) -> None:
    """Records what the results depend on beside the settings of each trial.

    Raises:
        StorageError: If the disk refuses.
    """
    from finetune_sweep.train import hardware

    content: dict[str, yamlio.Value] = {
        "sweep": {**plan.sweep.model_dump(mode="json", exclude={"space"}), "tracking": _tracking(plan.sweep)},
        "space": {d.name: _domain(d.domain) for d in plan.sweep.space.dimensions},
        "data": {"fingerprint": plan.fingerprint, "rows": dict(plan.rows)},
        "models": {model: _model(model, plan) for model in models(plan.sweep)},
        "device": plan.device,
        "precision": plan.precision,
        "machine": dict(hardware.describe()),
    }
    write_atomic(layout.resolved, yamlio.dump(content).encode())


def _model(model: str, plan: Plan) -> yamlio.Value:
    """What a model was: its content, and for one of the hub the commit that it came from."""
    from finetune_sweep.train import weights

    content: dict[str, yamlio.Value] = {"fingerprint": plan.models[model]}
    if model.startswith("hub:"):
        content["revision"] = weights.locate(model, Path(), Path(plan.sweep.cache or "")).name
    return content


def _tracking(sweep: Sweep) -> yamlio.Value:
    return {**sweep.tracking.model_dump(), "uri": printable_uri(sweep.tracking.uri)}


def _domain(domain: Domain) -> yamlio.Value:
    """A domain as it can be written in a file."""
    if isinstance(domain, Choice):
        return list(domain.values)
    return {name: value for name, value in dataclasses.asdict(domain).items() if value is not None}
