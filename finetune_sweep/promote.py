"""The last stage: the winner becomes a checkpoint that anyone can load, if it gives its metrics again.

The pretrained model and the winner's changed tensors are put together in one fresh process, and evaluated in
another that loads the folder as its user will. Then the test split is read, once; the card is written; the
folder takes the place of `best/`; and the MLflow registry is told. What fails before that changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

from finetune_sweep import card
from finetune_sweep.card import Evidence, FinalTest
from finetune_sweep.errors import (
    StorageError,
    SweepError,
    TrackingError,
    UserError,
    VerificationError,
    nearest,
)
from finetune_sweep.events import Metrics, Promoted, TestIntended, TestRead
from finetune_sweep.journal import Journal
from finetune_sweep.layout import Layout, check_folder, explained, folder_aside, recover_folder
from finetune_sweep.plan import Plan, Trial
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.tasks import TASKS
from finetune_sweep.tracking import KEY_TAG, TAG, make_client, printable_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from transformers import PreTrainedModel

    from finetune_sweep.train.data import Prepared

P = ParamSpec("P")
R = TypeVar("R")

ALIAS: Final = "champion"
"""The alias of the promoted version in the registry."""
CONTINUOUS: Final = frozenset({"loss", "auroc"})
"""Metrics that move with the last digits of a logit; the others count predictions."""
TOLERANCE: Final = 1e-3
"""Relative, for continuous metrics of a checkpoint that was trained on other hardware."""
_FINGERPRINT_TAG: Final = TAG + "fingerprint"


class Fresh(Protocol):
    """Runs a function of a module in a process of its own, and raises what the function raises."""

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what the function returns."""


@dataclass(frozen=True)
class Options:
    """What the user may ask of a promotion.

    Args:
        key: The trial to promote; None for the best.
        again: Whether the test split is read although it was read for an earlier champion.
        dry_run: Whether to stop after the verification, and keep nothing.
        command: What the user typed, for the card.
    """

    key: str | None = None
    again: bool = False
    dry_run: bool = False
    command: str = "finetune-sweep run"


@dataclass(frozen=True)
class Found:
    """The metrics of a checkpoint that was loaded from its folder, and what it was evaluated on."""

    metrics: Metrics
    host: str
    device: str
    hardware: Mapping[str, str | int]


def promote(
    plan: Plan, journal: Journal, layout: Layout, fresh: Fresh, options: Options | None = None
) -> Promoted:
    """Puts the winner into `best/`: verified, tested, with its card. The registry is told by `register`.

    Returns at once if it lies there already and nothing that its card says has changed.

    Args:
        plan: The sweep.
        journal: Of the sweep, held by this process.
        layout: Of the sweep.
        fresh: Runs the work in processes that share no state with this one.
        options: What the user asked for.

    Returns:
        What was promoted, as journalled; of a dry run, as it would be, without the test metrics.

    Raises:
        UserError: There is no such finished trial, or the data are no longer those of the plan.
        StorageError: The winner's checkpoint is missing or damaged, or the disk refuses.
        VerificationError: The checkpoint does not give the recorded metrics again.
    """
    options = options or Options()
    winner = find_winner(plan, journal.record, options.key)
    prepared = _prepare(plan)
    promotion = _Promotion(plan, journal, layout, fresh, options, winner)
    if options.dry_run:
        with tempfile.TemporaryDirectory(".tmp", ".best.", layout.root) as folder:
            promotion.verified(Path(folder))
        return Promoted(winner.key, winner.metrics, {}, plan.sweep.registered_model, "")
    recover_folder(layout.best)
    standing = _standing(plan, journal.record, layout, winner, prepared, options)
    return standing or promotion.carry_out(prepared)


def pending(plan: Plan, journal: Journal, layout: Layout, options: Options) -> TrialRecord | None:
    """The trial whose checkpoint `promote` would need; None if what it would do is done.

    Raises:
        UserError: There is no such finished trial, or the data are no longer those of the plan.
    """
    winner = find_winner(plan, journal.record, options.key)
    standing = _standing(plan, journal.record, layout, winner, _prepare(plan), options)
    return winner if options.dry_run or standing is None else None


def _standing(
    plan: Plan, record: SweepRecord, layout: Layout, winner: TrialRecord, prepared: Prepared, options: Options
) -> Promoted | None:
    """The promotion as journalled, if `best/` holds the winner and its card would say the same."""
    promoted = record.promoted
    if promoted is None or promoted.key != winner.key:
        return None
    try:
        check_folder(layout.best)
        results = json.loads((layout.best / card.RESULTS).read_bytes())
    except (StorageError, OSError, ValueError):
        return None
    expected = (winner.key, len(card.finished(plan, record)), dict(prepared.fingerprints))
    if (results["key"], results["finished_trials"], results["fingerprints"]) != expected:
        return None
    unread = "test" in prepared.fingerprints and results["test"] is None
    return None if unread and options.again else promoted


def find_winner(plan: Plan, record: SweepRecord, key: str | None = None) -> TrialRecord:
    """The best trial of the sweep, or the one that the user prefers.

    Raises:
        UserError: No trial is finished, or this one is not.
    """
    ranking = card.finished(plan, record)
    if not ranking:
        raise UserError(f"no trial of the sweep {plan.sweep.name!r} is finished, so none can be promoted")
    if key is None:
        return ranking[0]
    by_key = {trial.key: trial for trial in ranking}
    if key not in by_key:
        state = f" (it is {record.trials[key].state})" if key in record.trials else nearest(key, by_key)
        best = ", ".join(f"{trial.key} ({trial.planned.label}: {trial.score:g})" for trial in ranking[:3])
        raise UserError(
            f"--trial must be a finished trial of the sweep, got {key!r}{state}; the best are {best}"
        )
    return by_key[key]


@dataclass(frozen=True)
class _Promotion:
    """One promotion while it is carried out."""

    plan: Plan
    journal: Journal
    layout: Layout
    fresh: Fresh
    options: Options
    winner: TrialRecord

    @property
    def trial(self) -> Trial:
        return next(trial for trial in self.plan.trials if trial.key == self.winner.key)

    def carry_out(self, prepared: Prepared) -> Promoted:
        self._remove_leftovers()
        with folder_aside(self.layout.best) as aside:
            found = self.verified(aside)
            test = self._final_test(aside, prepared.fingerprints.get("test", ""))
            card.write(self._evidence(prepared, found, test), aside)
            with explained(aside):
                shutil.copyfile(self.layout.resolved, aside / self.layout.resolved.name)
        model = self.plan.sweep.registered_model
        promoted = Promoted(self.winner.key, self.winner.metrics, test.metrics, model, "")
        self.journal.append(promoted)
        return promoted

    def verified(self, folder: Path) -> Found:
        """Fills a folder with the complete model, and makes sure that it gives the recorded metrics."""
        if self.winner.checkpoint is None:
            raise StorageError(
                f"trial {self.winner.key} has no checkpoint any more; `run` trains it again for one"
            )
        checkpoint = self.layout.root / self.winner.checkpoint
        check_folder(checkpoint)
        self.fresh(assemble, folder, self._context, self.trial, checkpoint)
        found = self._evaluate(folder, "validation")
        verify(self.winner, found)
        return found

    @property
    def _context(self) -> Plan:
        """What another process needs of the plan."""
        return replace(self.plan, trials=())

    def _evaluate(self, folder: Path, split: str) -> Found:
        threads = (
            self.winner.worker.threads if self.winner.worker else self.plan.sweep.resources_per_trial.threads
        )
        return self.fresh(evaluate_folder, folder, self._context, self.trial, split, threads)

    def _final_test(self, folder: Path, fingerprint: str) -> FinalTest:
        """Reads the test split, unless it was read before; the intent is journalled first."""
        if not fingerprint:
            note = "There is no test split: nothing here was measured on rows that no choice has seen."
            return FinalTest("", {}, note)
        key = self.winner.key
        intended = [entry.event for entry in self.journal.entries if isinstance(entry.event, TestIntended)]
        earlier = sorted({event.key for event in intended if event.fingerprint == fingerprint} - {key})
        note = "Read once for this model, after it had been chosen."
        if earlier:
            note += f" It was also read for {', '.join(earlier)}, so it is no longer untouched."
        for read in self.journal.record.test_reads:
            if (read.key, read.fingerprint) == (key, fingerprint):
                return FinalTest(fingerprint, read.metrics, note)
        if earlier and not self.options.again:
            note = (
                f"Not read for this model: it was read for an earlier champion ({', '.join(earlier)}), and"
                " read for every new one it becomes a second validation split. `--again` reads it anyway."
            )
            return FinalTest(fingerprint, {}, note)
        self.journal.append(TestIntended(key, fingerprint))
        metrics = self._evaluate(folder, "test").metrics
        self.journal.append(TestRead(key, fingerprint, metrics))
        return FinalTest(fingerprint, metrics, note)

    def _evidence(self, prepared: Prepared, found: Found, test: FinalTest) -> Evidence:
        return Evidence(
            plan=self.plan,
            record=self.journal.record,
            trial=self.trial,
            fingerprints=prepared.fingerprints,
            validation=self.winner.metrics,
            test=test,
            hardware=found.hardware,
            command=self.options.command,
        )

    def _remove_leftovers(self) -> None:
        """Deletes what killed promotions left beside `best/`."""
        for folder in self.layout.root.glob(f".{self.layout.best.name}.*.tmp"):
            shutil.rmtree(folder, ignore_errors=True)


def verify(recorded: TrialRecord, found: Found) -> None:
    """Compares metrics with the recorded ones: to the last digit on the host and kind of device that trained.

    Elsewhere sums may be taken in another order: there, `CONTINUOUS` metrics may differ by `TOLERANCE`.

    Raises:
        VerificationError: One of them differs; names all of these.
    """
    worker = recorded.worker
    is_same = worker is not None and (worker.host, worker.device) == (found.host, found.device)
    differing = []
    for name, expected in recorded.metrics.items():
        value = found.metrics.get(name, float("nan"))
        allowed = abs(expected) * TOLERANCE if name in CONTINUOUS and not is_same else 0.0
        if not abs(value - expected) <= allowed:
            differing.append(f"{name} was recorded as {expected!r}, found {value!r}")
    if differing:
        raise VerificationError(
            f"trial {recorded.key} is not promoted: its checkpoint, loaded afresh, gives other validation"
            f" metrics: {'; '.join(differing)}. Other versions of libraries can be the cause."
        )


# ------------------------------------------------------------------------------ what runs in fresh processes


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

    from finetune_sweep.tasks.contract import load_tokenizer, quiet_loading
    from finetune_sweep.train import architecture, layers, weights
    from finetune_sweep.tune.worker import CHANGED_TENSORS

    pretrained = weights.locate(trial.model, Path(), _cache(plan))
    model, new_parameters = TASKS[plan.sweep.task].build_model(pretrained, plan.classes)
    arch = architecture.describe(weights.read_config(pretrained))
    live = layers.changed_tensors(model, arch, trial.depth)
    try:
        stored = load_file(checkpoint / CHANGED_TENSORS)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{checkpoint / CHANGED_TENSORS} cannot be read: {error}") from None
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (live, stored)]
    if shapes[0] != shapes[1] or not set(new_parameters) <= live.keys():
        odd = sorted(
            {name for name, _ in shapes[0].items() ^ shapes[1].items()} | (set(new_parameters) - live.keys())
        )
        raise StorageError(
            f"{checkpoint} holds other tensors than training changes; {len(odd)} differ, as {odd[0]}"
        )
    for name, tensor in live.items():
        tensor.copy_(stored[name])
    with explained(target), quiet_loading():
        model.save_pretrained(target)
        load_tokenizer(pretrained).save_pretrained(target)


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

    from finetune_sweep.tasks.contract import load_tokenizer
    from finetune_sweep.train import hardware, loop

    torch.set_num_threads(threads)
    task = TASKS[plan.sweep.task]
    model = load_as_user(folder, plan)
    tokenizer = load_tokenizer(folder)
    rows = _prepare(plan).splits[split]
    predictions = loop.evaluate(
        model.to(plan.device),  # type: ignore[arg-type]  # transformers types only torch.device
        task,
        task.encode(rows, tokenizer, plan.classes, trial.max_length),
        device=plan.device,
        precision="bf16" if trial.training.precision == "bf16" else "fp32",
        pad_token_id=int(tokenizer.pad_token_id),
    )
    metrics = task.score(predictions, plan.classes)
    return Found(metrics, socket.gethostname(), plan.device, hardware.describe())


def load_as_user(folder: Path, plan: Plan) -> PreTrainedModel:
    """Loads a complete model with nothing but its folder.

    Raises:
        VerificationError: Weights or class names are missing.
    """
    import transformers

    from finetune_sweep.tasks.contract import quiet_loading

    auto = getattr(transformers, card.AUTO_MODELS[plan.sweep.task])
    with quiet_loading():
        model: PreTrainedModel
        model, info = auto.from_pretrained(
            str(folder), output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    wrong = {reason: names for reason, names in info.items() if names}
    if wrong:
        raise VerificationError(f"{folder} is not loaded as it was stored: {wrong}")
    classes = tuple((model.config.id2label or {}).values())
    if classes != plan.classes:
        raise VerificationError(
            f"{folder} should have the classes {plan.classes}, but its config has {classes}"
        )
    return model


def _prepare(plan: Plan) -> Prepared:
    from finetune_sweep.train.data import prepare

    prepared = prepare(plan.sweep.data, TASKS[plan.sweep.task], Path(), _cache(plan))
    if prepared.fingerprint != plan.fingerprint:
        raise UserError(
            f"the data changed since the plan: their fingerprint was {plan.fingerprint}, now it is"
            f" {prepared.fingerprint}"
        )
    return prepared


def _cache(plan: Plan) -> Path:
    return Path(plan.sweep.cache or "")


# ---------------------------------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Registered:
    """A version in the MLflow model registry, and the trial that it holds."""

    model: str
    version: str
    key: str


def register(plan: Plan, journal: Journal, layout: Layout) -> Promoted:
    """Gives what lies in `best/` to the MLflow registry, unless it is there, with the alias `champion`.

    The alias of a version that was journalled before is left where it is: a rollback may have moved it.

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
        versions = [v for v in _versions(client, name) if _is_version_of(v, promoted.key, plan)]
        if any((name, str(v.version)) == (promoted.registered_model, promoted.version) for v in versions):
            return promoted
        if versions:
            version = versions[-1]
        else:
            trial = journal.record.trials[promoted.key]
            run_id = trial.mlflow_run_id or journal.record.mlflow_run_id
            if run_id is None:
                raise TrackingError(f"{otherwise}: neither the trial nor the sweep has a run in MLflow yet")
            version = _create_version(client, plan, layout, promoted, client.get_run(run_id))
        client.set_registered_model_alias(name, ALIAS, str(version.version))
    registered = replace(promoted, registered_model=name, version=str(version.version))
    journal.append(registered)
    return registered


def rollback(plan: Plan, layout: Layout) -> Registered:
    """Moves the alias `champion` back to the version before the one that has it.

    `best/` stays as it is: `promote` with that version's trial puts it there.

    Returns:
        The version that has the alias now.

    Raises:
        UserError: No version has the alias, or there is none before it.
        TrackingError: MLflow could not be reached.
    """
    name = plan.sweep.registered_model
    with _mlflow(plan, layout, f"the alias {ALIAS!r} of {name} was not moved") as client:
        versions = _versions(client, name)
        present = [v for v in versions if ALIAS in (v.aliases or ())]
        if not present:
            raise UserError(f"no version of the registered model {name!r} has the alias {ALIAS!r}")
        older = [v for v in versions if int(v.version) < int(present[-1].version)]
        if not older:
            raise UserError(
                f"{name!r} has no version before {present[-1].version}, so there is nothing to go back to"
            )
        client.set_registered_model_alias(name, ALIAS, str(older[-1].version))
    return Registered(name, str(older[-1].version), older[-1].tags.get(KEY_TAG, ""))


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


def _is_version_of(version: ModelVersion, key: str, plan: Plan) -> bool:
    return (version.tags.get(KEY_TAG), version.tags.get(_FINGERPRINT_TAG)) == (key, plan.fingerprint)


def _create_version(
    client: MlflowClient, plan: Plan, layout: Layout, promoted: Promoted, run: Run
) -> ModelVersion:
    """Uploads `best/` as a model of a run, and makes it the newest version of the registered model.

    MLflow's `log_model` would use an address that the whole process shares, and open a run that has ended.
    """
    from mlflow.entities import LoggedModelOutput

    name, run_id = plan.sweep.registered_model, run.info.run_id
    tags = {KEY_TAG: promoted.key, _FINGERPRINT_TAG: plan.fingerprint, TAG + "sweep": plan.sweep.name}
    for split, metrics in (("validation", promoted.metrics), ("test", promoted.test_metrics)):
        tags |= {f"{TAG}{split}_{metric}": str(value) for metric, value in metrics.items()}
    logged = client.create_logged_model(
        run.info.experiment_id, plan.sweep.name, run_id, tags, dict(run.data.params), plan.sweep.task
    )
    with tempfile.TemporaryDirectory(prefix="finetune_sweep-") as folder:
        local = Path(folder) / "model"
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

    from finetune_sweep.tasks.contract import load_tokenizer, quiet_loading

    parts = {"model": load_as_user(folder, plan), "tokenizer": load_tokenizer(folder)}
    with quiet_loading():
        mlflow.transformers.save_model(
            parts,
            str(target),
            task=plan.sweep.task,
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            model_card=ModelCard.load(folder / card.CARD),
            signature=_signature(),
            input_example=TASKS[plan.sweep.task].input_example(),
            pip_requirements=[_requirement(package) for package in ("mlflow", "torch", "transformers")],
        )


def _signature() -> ModelSignature:
    """Texts in; a label and its score out."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    outputs = Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    return ModelSignature(Schema([ColSpec("string")]), outputs)


def _requirement(package: str) -> str:
    """The version in use; a build such as `+cpu` is not on the index that a server installs from."""
    return f"{package}=={importlib.metadata.version(package).partition('+')[0]}"
