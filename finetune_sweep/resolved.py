"""`sweep.lock.yaml`: all that a sweep's results depend on, resolved and with fingerprints.

The one beside a promoted model also says what that model is: enough to train it again, and to compare.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_sweep import yamlio
from finetune_sweep.durable import write_atomic
from finetune_sweep.errors import UserError
from finetune_sweep.events import Metrics, WorkerInfo
from finetune_sweep.layout import Layout
from finetune_sweep.mlflow_uri import printable_uri
from finetune_sweep.plan import Plan, models
from finetune_sweep.space import Choice, Domain
from finetune_sweep.spec import Sweep
from finetune_sweep.trial import Trial

NAME: Final = "sweep.lock.yaml"
"""What the file is called."""


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


def write_beside(folder: Path, layout: Layout, champion: Champion) -> None:
    """Writes the sweep's file into the folder of a promoted model, with what is to be known of that.

    The machine in it is the driver's: of a model that another one trained, it says nothing.

    Raises:
        StorageError: If the disk refuses.
    """
    content = yamlio.load(layout.resolved).value
    trial = champion.trial
    own: dict[str, yamlio.Value] = {
        "key": trial.key,
        "epoch": champion.epoch,
        "seed": trial.seed,
        "model": trial.model,
        "max_length": trial.max_length,
        "training": trial.training.model_dump(mode="json"),
        "metrics": dict(champion.metrics),
        "mean": champion.mean,
        "spread": champion.spread,
        "host": champion.worker.host if champion.worker else "",
        "device": champion.worker.device if champion.worker else "",
        "threads": champion.worker.threads if champion.worker else 1,
        "fingerprints": dict(champion.fingerprints),
    }
    sweep = content if isinstance(content, dict) else {}
    if own["host"] != socket.gethostname():
        sweep["machine"] = {}
    write_atomic(folder / layout.resolved.name, yamlio.dump({**sweep, "trial": own}).encode())


@dataclass(frozen=True)
class Champion:
    """What is promoted.

    Args:
        trial: One run of one configuration.
        epoch: After which its weights were taken.
        metrics: Of the validation rows.
        worker: What trained it.
        fingerprints: The sha256 over the rows of each split.
        mean: Of the sweep's metric over fresh seeds; None if nobody measured it.
        spread: Its standard deviation from seed to seed; None likewise.
    """

    trial: Trial
    epoch: int
    metrics: Metrics
    worker: WorkerInfo | None
    fingerprints: Mapping[str, str]
    mean: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Lock:
    """What the file beside a promoted model says, as far as training it again needs it.

    `sweep` is the sweep of that one trial: nothing is searched. `machine` is the one that trained it; empty if that is
    not known.
    """

    sweep: Sweep
    key: str
    epoch: int
    metrics: Metrics
    mean: float | None
    spread: float | None
    host: str
    device: str
    threads: int
    fingerprints: Mapping[str, str]
    model: str
    machine: Mapping[str, str | int]


def read_beside(folder: Path) -> Lock:
    """Reads what `write_beside` wrote.

    Raises:
        UserError: If there is no such file, or it is not one of a promoted model.
    """
    file = folder / NAME
    if not file.is_file():
        raise UserError(
            f"{folder} holds no {NAME}: give the folder of a promoted model, such as runs/NAME/best"
        )
    content = yamlio.load(file).value
    try:
        return _lock(content)  # type: ignore[arg-type]  # what it is not becomes one of these errors
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{file} does not say how the model was trained ({type(error).__name__}: {error})"
        ) from None


def _lock(content: dict[str, dict[str, dict[str, object]]]) -> Lock:
    trial, models_of = content["trial"], content["models"]
    written: dict[str, object] = {**content["sweep"], "training": trial["training"], "seed": trial["seed"]}
    written |= {"model": trial["model"], "search": {"type": "grid"}, "selection": {"finalists": 0}}
    written["data"] = {**content["sweep"]["data"], "max_length": trial["max_length"]}
    sweep = Sweep.model_validate(written)
    known: dict[str, Any] = dict(trial)
    machine: Any = content["machine"]
    return Lock(
        sweep=sweep,
        key=known["key"],
        epoch=known["epoch"],
        metrics=known["metrics"],
        mean=known.get("mean"),
        spread=known["spread"],
        host=known["host"],
        device=known["device"],
        threads=known["threads"],
        fingerprints=known["fingerprints"],
        model=str(models_of[str(trial["model"])]["fingerprint"]),
        machine=machine,
    )


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
