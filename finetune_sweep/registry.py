"""The MLflow model registry: what lies in `best/` becomes a version of it, with the alias that it deserves."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from finetune_sweep import card
from finetune_sweep.assembly import load_as_user
from finetune_sweep.challenge import (
    CHALLENGER,
    CHAMPION,
    REPLACED_TAG,
    challenge,
    champions_before,
    registered_before,
    replaced_tag,
)
from finetune_sweep.durable import temporary_folder
from finetune_sweep.errors import SweepError, TrackingError, UserError
from finetune_sweep.events import Promoted
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout
from finetune_sweep.mlflow_store import make_client
from finetune_sweep.mlflow_uri import printable_uri, tracking_uri
from finetune_sweep.plan import Plan
from finetune_sweep.snapshot import KEY_TAG, TAG
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import quiet_loading

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

    from finetune_sweep.tasks.contract import Task

_ALL_TAGS: Final[Mapping[str, list[str]]] = {"ignore_labels": []}
"""For the pipeline: MLflow 3.17 fails on a text of which a pipeline says nothing, as it does where all tags are O."""
_SERVED: Final[Mapping[str, str]] = {
    "object-detection": "served_pictures.py",
    "image-to-text": "served_captions.py",
    "text2text-generation": "served.py",
    "text-classification": "served_texts.py",
}
"""What serves where transformers has no such pipeline, or MLflow's flavour does not know it, or gives other answers."""
_FINGERPRINT_TAG: Final = TAG + "fingerprint"


@dataclass(frozen=True)
class Registered:
    """A version in the MLflow model registry, and the trial that it holds."""

    model: str
    version: str
    key: str


def register(plan: Plan, journal: Journal, layout: Layout) -> Promoted:
    """Gives what lies in `best/` to the MLflow registry, unless it is there.

    It becomes `champion` if there is none, if the present one was measured on other data, if the user preferred this
    trial, or if it is better beyond doubt; else `challenger`. Where the weights that were registered last were only put
    into the folder anew, the alias is left where it is: a rollback may have moved it.

    Returns:
        What was promoted, with its version, as journalled.

    Raises:
        UserError: Nothing was promoted yet.
        TrackingError: MLflow did not take it; called again, this tries again.
    """
    promoted, name = journal.record.promoted, plan.sweep.registered_model
    if promoted is None:
        raise UserError(
            f"nothing of the sweep {plan.sweep.name!r} was promoted, so nothing can be registered"
        )
    otherwise = f"trial {promoted.key} lies in {layout.best}, but was not registered"
    with _mlflow(plan, layout, otherwise) as client:
        versions = [v for v in _versions(client, name) if _is_version_of(v, promoted, plan)]
        if any((name, str(v.version)) == (promoted.registered_model, promoted.version) for v in versions):
            return promoted
        given = registered_before(journal.entries, promoted, name, [str(v.version) for v in versions])
        if given is None:
            run_id = "" if versions else _run_id(journal, promoted, otherwise)
            version = versions[-1] if versions else _new_version(client, plan, layout, promoted, run_id)
            given = _with_alias(client, plan, layout, promoted, version)
    registered = replace(
        promoted, registered_model=name, version=given.version, alias=given.alias, note=given.note
    )
    journal.append(registered)
    return registered


def _run_id(journal: Journal, promoted: Promoted, otherwise: str) -> str:
    """The run in MLflow that a new version belongs to: the trial's, or where that has none, the sweep's."""
    run_id = journal.record.trials[promoted.key].mlflow_run_id or journal.record.mlflow_run_id
    if run_id is None:
        raise TrackingError(f"{otherwise}: neither the trial nor the sweep has a run in MLflow yet")
    return run_id


def _with_alias(
    client: MlflowClient, plan: Plan, layout: Layout, promoted: Promoted, version: ModelVersion
) -> Promoted:
    """Gives a version the alias that it deserves; what it takes the place of is noted first, for `rollback`."""
    name, number = plan.sweep.registered_model, str(version.version)
    champion = _champion(_versions(client, name))
    alias, note = _deserved(plan, layout, promoted, version, champion)
    if alias == CHAMPION and champion is not None and str(champion.version) != number:
        former = [str(champion.version), *champions_before(champion.tags)]
        client.set_model_version_tag(name, number, REPLACED_TAG, replaced_tag(former))
    client.set_registered_model_alias(name, alias, number)
    if alias == CHAMPION:
        client.delete_registered_model_alias(name, CHALLENGER)
    return replace(promoted, registered_model=name, version=number, alias=alias, note=note)


def _deserved(
    plan: Plan, layout: Layout, promoted: Promoted, version: ModelVersion, champion: ModelVersion | None
) -> tuple[str, str]:
    """The alias that a version gets, and why."""
    if champion is None or str(champion.version) == str(version.version):
        return CHAMPION, ""
    tags = champion.tags
    if tags.get(_FINGERPRINT_TAG) != plan.fingerprint:
        return CHAMPION, "the champion before it was measured on other data, so they cannot be compared"
    if promoted.instead_of:
        return CHAMPION, "--trial chose it"
    old = (tags.get(TAG + "sweep", ""), tags.get(KEY_TAG, ""), int(tags.get(TAG + "epoch", "0")))
    return challenge(plan, layout, promoted, old)


def rollback(plan: Plan, layout: Layout) -> Registered:
    """Moves the alias `champion` back to the version that had it before; once more, to the one before that.

    `best/` stays as it is: `promote` with that version's trial puts it there.

    Returns:
        The version that has the alias now.

    Raises:
        UserError: No version has the alias, or it is not known that one had it before.
        TrackingError: MLflow could not be reached.
    """
    name = plan.sweep.registered_model
    with _mlflow(plan, layout, f"the alias {CHAMPION!r} of {name} was not moved") as client:
        versions = _versions(client, name)
        present = _champion(versions)
        if present is None:
            raise UserError(f"no version of the registered model {name!r} has the alias {CHAMPION!r}")
        by_number = {str(version.version): version for version in versions}
        former = [number for number in champions_before(present.tags) if number in by_number]
        if not former:
            raise UserError(
                f"no version of {name!r} was champion before version {present.version}, so there is nothing to go"
                " back to"
            )
        # What it goes back to from there, since that version may have been champion more than once.
        client.set_model_version_tag(name, former[0], REPLACED_TAG, replaced_tag(former[1:]))
        client.set_registered_model_alias(name, CHAMPION, former[0])
    return Registered(name, former[0], by_number[former[0]].tags.get(KEY_TAG, ""))


def _champion(versions: Sequence[ModelVersion]) -> ModelVersion | None:
    """The version that has the alias `champion`."""
    return next((version for version in versions if CHAMPION in (version.aliases or ())), None)


@contextlib.contextmanager
def _mlflow(plan: Plan, layout: Layout, otherwise: str) -> Iterator[MlflowClient]:
    """A client; whatever MLflow or an artifact store's library raises becomes a `TrackingError`."""
    uri = tracking_uri(plan.sweep.tracking.uri, layout.storage)
    try:
        yield make_client(uri)
    except SweepError:
        raise
    except Exception as error:
        reason = printable_uri(f"{type(error).__name__}: {error}")
        raise TrackingError(f"{otherwise}: MLflow at {printable_uri(uri)} failed ({reason})") from error


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model, oldest first; none if there is no such model."""
    if not client.search_registered_models(f"name = '{name}'"):
        return []
    aliases = client.get_registered_model(name).aliases
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    for version in found:
        # A search leaves the aliases out.
        version.aliases = [alias for alias, number in aliases.items() if str(number) == str(version.version)]
    return found


def _is_version_of(version: ModelVersion, promoted: Promoted, plan: Plan) -> bool:
    return {KEY_TAG: promoted.key, **_weights_tags(promoted, plan)}.items() <= version.tags.items()


def _weights_tags(promoted: Promoted, plan: Plan) -> dict[str, str]:
    """What tells the weights of one trial apart: the data, and the epoch after which they were taken."""
    return {_FINGERPRINT_TAG: plan.fingerprint, TAG + "epoch": str(promoted.epoch)}


def _new_version(
    client: MlflowClient, plan: Plan, layout: Layout, promoted: Promoted, run_id: str
) -> ModelVersion:
    """Uploads `best/` as a model of a run, and makes it the newest version of the registered model.

    MLflow's `log_model` would use an address that the whole process shares, and open a run that has ended.
    """
    from mlflow.entities import LoggedModelOutput

    name, run = plan.sweep.registered_model, client.get_run(run_id)
    tags = {KEY_TAG: promoted.key, **_weights_tags(promoted, plan), TAG + "sweep": plan.sweep.name}
    for split, metrics in (("validation", promoted.metrics), ("test", promoted.test_metrics)):
        tags |= {f"{TAG}{split}_{metric}": str(value) for metric, value in metrics.items()}
    logged = client.create_logged_model(
        run.info.experiment_id, plan.sweep.name, run_id, tags, dict(run.data.params), plan.sweep.task
    )
    with temporary_folder() as folder:
        local = folder / "model"
        _save_for_registry(local, plan, layout.best, run_id, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(local))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return client.create_model_version(name, logged.artifact_location, run_id, tags, model_id=logged.model_id)


def _save_for_registry(target: Path, plan: Plan, folder: Path, run_id: str, model_id: str) -> None:
    """Writes a model in MLflow's own form; given the folder of a checkpoint instead, MLflow 3.17 fails."""
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model

    task = TASKS[plan.sweep.task]
    results = json.loads((folder / card.RESULTS).read_bytes())
    inputs = results["inputs"]
    model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
    requirements = [_requirement(package) for package in ("mlflow", "torch", "transformers")]
    if task.pipeline in _SERVED:
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(Path(__file__).with_name(_SERVED[task.pipeline])),
            artifacts={"model": str(folder)},
            mlflow_model=model,
            signature=_signature(task, inputs),
            input_example=_input_example(task, inputs),
            pip_requirements=requirements,
        )
        return
    pictures = any(column.kind == "image" for column in task.columns)
    parts: dict[str, Any] = {
        "model": load_as_user(folder, plan),
        "image_processor" if pictures else "tokenizer": load_processor(folder, task),
    }
    if task.pipeline == "token-classification":  # its pipeline takes no length of its own
        parts["tokenizer"].model_max_length = results["max_length"]
    with quiet_loading():
        mlflow.transformers.save_model(
            parts,
            str(target),
            task=task.pipeline,
            mlflow_model=model,
            model_card=ModelCard.load(folder / card.CARD),
            signature=_signature(task, inputs),
            model_config=_pipeline_settings(task, plan),
            input_example=task.input_example(),
            pip_requirements=requirements,
        )


def _pipeline_settings(task: Task, plan: Plan) -> dict[str, object] | None:
    """What the pipeline is told in each call; of pictures it gives five classes unless told otherwise."""
    if task.pipeline == "token-classification":
        return dict(_ALL_TAGS)
    return {"top_k": len(plan.classes)} if task.columns[-1].kind == "labels" else None


def _input_example(task: Task, inputs: Sequence[str]) -> object:
    """What the served model takes: the task's example, or where it was trained on two texts, a row of both."""
    if "text_pair" not in inputs:
        return task.input_example()
    return [dict.fromkeys(card.PAIR, task.input_example()[0])]


def _signature(task: Task, inputs: Sequence[str]) -> ModelSignature:
    """What goes in and out: texts, or pictures by address or in base64; a label and its score, or a text.

    For classes of pictures MLflow 3.17 gives a table of mappings, the likeliest first, and boxes and several classes
    at once are lists of mappings: no schema describes them.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    two = "text_pair" in inputs
    given = Schema([ColSpec("string", name) for name in card.PAIR] if two else [ColSpec("string")])
    match task.pipeline:
        case "token-classification" | "text-generation" | "text2text-generation" | "image-to-text":
            return ModelSignature(given, Schema([ColSpec("string")]))
        case "text-classification" if task.columns[-1].kind != "labels":
            return ModelSignature(given, Schema([ColSpec("string", "label"), ColSpec("double", "score")]))
        case _:
            return ModelSignature(given)


def _requirement(package: str) -> str:
    """The version in use; a build such as `+cpu` is not on the index that a server installs from."""
    return f"{package}=={importlib.metadata.version(package).partition('+')[0]}"
