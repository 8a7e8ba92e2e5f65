"""What a sweep file may say: every option once, with its type, its default and its documentation.

The models are frozen, know no other keys, and convert nothing: `"3"` is not a number. Each field is marked,
where it is defined, as entering the trial's key or not (`enters_key`): what cannot change a trial's result does not.
`sweepfile.py` reads files into them; the reference of the YAML in the documents is generated from here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune_sweep.settings import IN_KEY, NOT_IN_KEY, Model, Training, by_type, setting_names
from finetune_sweep.space import Space
from finetune_sweep.speed import Speed

TaskName = Literal[
    "text-classification",
    "text-tagging",
    "text-regression",
    "token-classification",
    "text-to-text",
    "causal-lm",
    "image-classification",
    "image-tagging",
    "image-captioning",
    "object-detection",
]
Device = Literal["auto", "cuda", "mps", "cpu"]
_TRACKING_SCHEMES = frozenset({"sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit, got {value!r}"
        )
    return value


Name = Annotated[str, AfterValidator(_check_name)]


# -------------------------------------------------------------------------------------------------- data


class Split(Model):
    """How splits that the source does not have are cut."""

    validation: float = Field(0.1, gt=0, lt=1, json_schema_extra=IN_KEY)
    """The fraction that becomes the validation split."""
    test: float = Field(0.1, ge=0, lt=1, json_schema_extra=IN_KEY)
    """The fraction that becomes the test split; 0 for none."""
    seed: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """The seed of the cut."""
    group_by: str | None = Field(None, json_schema_extra=IN_KEY)
    """A column whose values must not be spread over two splits (a document, a patient)."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Split:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation + test must leave rows to train on, got {self.validation} + {self.test}"
            )
        return self


class Limit(Model):
    """At most so many rows a split, drawn with the classes in their proportions."""

    train: int | None = Field(None, ge=2, json_schema_extra=IN_KEY)
    """Rows to train on."""
    validation: int | None = Field(None, ge=2, json_schema_extra=IN_KEY)
    """Rows to validate on."""
    test: int | None = Field(None, ge=2, json_schema_extra=IN_KEY)
    """Rows of the test split."""
    seed: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """The seed of the draw."""


class Clean(Model):
    """What is mended in the data before anything else; each step reports what it did."""

    strip: bool = Field(default=True, json_schema_extra=IN_KEY)
    """White space around texts is removed."""
    drop_empty: bool = Field(default=True, json_schema_extra=IN_KEY)
    """Rows without text are dropped."""
    drop_duplicates: bool = Field(default=True, json_schema_extra=IN_KEY)
    """Rows that repeat another row of their split, text and label, are dropped."""
    drop_leaked: bool = Field(default=True, json_schema_extra=IN_KEY)
    """Training rows whose text also stands in validation or test are dropped."""


class Data(Model):
    """Where the examples come from, and what is made of them."""

    source: str | None = Field(None, min_length=1, json_schema_extra=IN_KEY)
    """`example:NAME`, `hub:ORG/NAME`, a file (csv, tsv, json, jsonl, parquet, CoNLL, COCO json) or a folder."""
    files: dict[str, str] | None = Field(None, json_schema_extra=IN_KEY)
    """Instead of `source`: one file for each of `train`, `validation`, `test`."""
    columns: dict[str, str | int] = Field(default_factory=dict, json_schema_extra=IN_KEY)
    """The task's columns, and what they are called in the source; in CoNLL files a number, the first is 1."""
    max_length: int = Field(128, ge=4, le=131072, json_schema_extra=IN_KEY)
    """Tokens after which an input is cut. Searchable as `data.max_length`."""
    split: Split = Field(Split.model_construct(), json_schema_extra=IN_KEY)
    """How missing splits are cut."""
    limit: Limit | None = Field(None, json_schema_extra=IN_KEY)
    """An upper bound on the rows, for quick sweeps."""
    clean: Clean = Field(Clean.model_construct(), json_schema_extra=IN_KEY)
    """What is cleaned."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.source is None) == (self.files is None):
            raise ValueError(
                "needs `source` (example:NAME, hub:ORG/NAME, a file or a folder), or `files: {train: ...}`"
            )
        if self.files is not None:
            unknown = sorted(set(self.files) - {"train", "validation", "test"})
            if unknown or "train" not in self.files:
                raise ValueError(
                    f"files: must name train, and may name validation and test, got {', '.join(self.files)}"
                )
        return self


# ------------------------------------------------------------------------------------------------ search


class Grid(Model):
    """Every combination of the space, once."""

    type: Literal["grid"] = Field(json_schema_extra=NOT_IN_KEY)
    """The name of the search."""
    max_trials: int | None = Field(None, ge=1, json_schema_extra=NOT_IN_KEY)
    """Only the first so many trials of the grid."""
    max_hours: float | None = Field(None, gt=0, json_schema_extra=NOT_IN_KEY)
    """No further trial is started after so many hours of one run."""


class Random(Model):
    """Independent draws from the space. More `trials` later keep the first ones."""

    type: Literal["random"] = Field(json_schema_extra=NOT_IN_KEY)
    """The name of the search."""
    trials: int = Field(ge=1, le=1_000_000, json_schema_extra=NOT_IN_KEY)
    """How many configurations are drawn."""
    seed: int = Field(0, ge=0, json_schema_extra=NOT_IN_KEY)
    """The seed of the draws."""
    max_hours: float | None = Field(None, gt=0, json_schema_extra=NOT_IN_KEY)
    """No further trial is started after so many hours of one run."""


class Tpe(Model):
    """The tree-structured Parzen estimator: draws where good trials lay denser than bad ones (Bergstra et al. 2011).

    It is Optuna's, multivariate, and knows of the trials that are still running. More `trials` later go on from the
    ones that are there.
    """

    type: Literal["tpe"] = Field(json_schema_extra=NOT_IN_KEY)
    """The name of the search."""
    trials: int = Field(ge=1, le=100_000, json_schema_extra=NOT_IN_KEY)
    """How many configurations are suggested. One that was suggested before is not trained again."""
    seed: int = Field(0, ge=0, json_schema_extra=NOT_IN_KEY)
    """The seed of the suggestions."""
    startup_trials: int = Field(10, ge=1, json_schema_extra=NOT_IN_KEY)
    """So many are drawn at random before the estimator is asked."""
    max_hours: float | None = Field(None, gt=0, json_schema_extra=NOT_IN_KEY)
    """No further trial is started after so many hours of one run."""


Search = Annotated[Annotated[Grid | Random | Tpe, Field(discriminator="type")], BeforeValidator(by_type)]


class Metric(Model):
    """What the search maximises or minimises on the validation split."""

    name: str = Field(min_length=1, json_schema_extra=NOT_IN_KEY)
    """One of the task's metrics."""
    mode: Literal["max", "min"] | None = Field(None, json_schema_extra=NOT_IN_KEY)
    """The better direction; the task knows it, so this only states it again."""
    epoch: Literal["best", "last"] = Field("best", json_schema_extra=NOT_IN_KEY)
    """Whether a trial counts by its best evaluation (ties: the earliest) or its last."""


def _metric(value: object) -> object:
    """Lets `accuracy` stand for `{name: accuracy}`."""
    return {"name": value} if isinstance(value, str) else value


class Selection(Model):
    """How the winner is chosen among the trials."""

    finalists: int = Field(0, ge=0, le=100, json_schema_extra=NOT_IN_KEY)
    """So many of the best configurations are run again on fresh seeds, and a baseline beside them; the winner is chosen
    by its mean over these. 0 takes the best trial as it is."""
    seeds: int = Field(3, ge=1, le=100, json_schema_extra=NOT_IN_KEY)
    """How many fresh seeds each of them is run on."""
    prefer: Literal["best", "cheapest"] = Field("best", json_schema_extra=NOT_IN_KEY)
    """Which of them wins: the one with the highest mean, or the cheapest to train of those that cannot be told apart
    from it."""
    robustness: bool = Field(default=False, json_schema_extra=NOT_IN_KEY)
    """Whether the promoted model is measured on perturbed validation rows too, for its card; that takes as long as 16
    evaluations. An error for a task without [texts that may be changed](tasks.md)."""

    @model_validator(mode="after")
    def _prefers_among_some(self) -> Selection:
        if self.prefer != "best" and not self.finalists:
            raise ValueError(
                f"prefer: {self.prefer} chooses among finalists, and there are none; set `finalists`, such as 3"
            )
        return self


class Resources(Model):
    """What one trial occupies; the slots of the machine or the cluster follow from it."""

    cpu: float = Field(1, gt=0, json_schema_extra=NOT_IN_KEY)
    """Processor cores; the threads of a trial are the whole cores of it, at least one."""
    gpu: float = Field(0, ge=0, json_schema_extra=NOT_IN_KEY)
    """GPUs: a whole number, or a fraction below 1 to share one."""

    @model_validator(mode="after")
    def _whole_above_one(self) -> Resources:
        for name, value in (("cpu", self.cpu), ("gpu", self.gpu)):
            if value > 1 and value != int(value):
                raise ValueError(f"{name} must be a fraction up to 1 or a whole number, got {value}")
        return self

    @property
    def threads(self) -> int:
        """The threads that a trial computes with."""
        return max(1, int(self.cpu))


class Tracking(Model):
    """Where MLflow keeps the record."""

    uri: str = Field("sqlite:///mlflow.db", json_schema_extra=NOT_IN_KEY)
    """An MLflow tracking URI; a relative sqlite file lies beside the storage folder."""
    experiment: str | None = Field(None, min_length=1, json_schema_extra=NOT_IN_KEY)
    """The experiment; by default the name of the sweep."""
    registered_model: str | None = Field(None, min_length=1, json_schema_extra=NOT_IN_KEY)
    """The registered model whose alias `champion` moves; by default the name of the sweep."""

    @model_validator(mode="after")
    def _is_usable(self) -> Tracking:
        if self.uri.partition(":")[0].partition("+")[0] not in _TRACKING_SCHEMES or ":" not in self.uri:
            raise ValueError(
                f"uri must be a database (sqlite:///mlflow.db) or a server (http://...), got {self.uri!r}"
            )
        if self.registered_model is not None and set(self.registered_model) & set("/:'"):
            raise ValueError(
                "registered_model must not hold '/', ':' or an apostrophe, which MLflow refuses, got"
                f" {self.registered_model!r}"
            )
        return self


class Sweep(Model):
    """One YAML file: one search over one task, one winner."""

    name: Name = Field(json_schema_extra=NOT_IN_KEY)
    """The sweep's name, and the name of its folder in the storage."""
    task: TaskName = Field(json_schema_extra=IN_KEY)
    """What the model is fine-tuned to do."""
    model: str = Field(min_length=1, json_schema_extra=IN_KEY)
    """`example:NAME`, `hub:ORG/NAME[@revision]`, a folder, or `scratch:FOLDER` for new weights.
    Searchable: then it is not needed here."""
    data: Data = Field(json_schema_extra=IN_KEY)
    """The labelled examples."""
    space: Space = Field(Space(()), json_schema_extra=NOT_IN_KEY)
    """The dimensions that are searched: written here, a file, or a list of both where later ones override."""
    search: Search = Field(Grid(type="grid"), json_schema_extra=NOT_IN_KEY)
    """How the space is searched."""
    metric: Annotated[Metric, BeforeValidator(_metric)] = Field(json_schema_extra=NOT_IN_KEY)
    """What is optimised on the validation split."""
    training: Training = Field(Training.model_construct(), json_schema_extra=IN_KEY)
    """The settings that are fixed."""
    seed: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """The seed of every trial: order of the data, new weights, dropout."""
    resources_per_trial: Resources = Field(Resources.model_construct(), json_schema_extra=NOT_IN_KEY)
    """What a trial occupies."""
    max_concurrent: int | None = Field(None, ge=1, json_schema_extra=NOT_IN_KEY)
    """At most so many trials at once; by default as many as the resources allow."""
    device: Device = Field("auto", json_schema_extra=NOT_IN_KEY)
    """`auto` is cuda when the trial has a GPU, else mps where there is one, else cpu."""
    selection: Selection = Field(Selection.model_construct(), json_schema_extra=NOT_IN_KEY)
    """How the winner is chosen."""
    retries: int = Field(2, ge=0, le=100, json_schema_extra=NOT_IN_KEY)
    """How often a trial whose worker was lost is run again."""
    trial_timeout_s: float = Field(1800, gt=0, json_schema_extra=NOT_IN_KEY)
    """Seconds without a step after which a worker hangs: it is ended, and its trial is run again as `retries` says."""
    keep_checkpoints: int = Field(3, ge=1, json_schema_extra=NOT_IN_KEY)
    """How many of the sweep's best trials keep their checkpoint on disk."""
    min_free_bytes: int = Field(500_000_000, ge=0, json_schema_extra=NOT_IN_KEY)
    """The sweep stops, and can go on later, when the storage has less free than this."""
    tracking: Tracking = Field(Tracking.model_construct(), json_schema_extra=NOT_IN_KEY)
    """Where MLflow keeps the record."""
    speed: Speed = Field(Speed.model_construct(), json_schema_extra=NOT_IN_KEY)
    """What spares work, and how to do without it."""
    storage: str | None = Field(None, min_length=1, json_schema_extra=NOT_IN_KEY)
    """The folder that holds sweeps; by default `runs` in the working directory."""
    cache: str | None = Field(None, min_length=1, json_schema_extra=NOT_IN_KEY)
    """The folder for what can be computed again; by default in the user's cache folder."""

    @property
    def experiment(self) -> str:
        """The MLflow experiment."""
        return self.tracking.experiment or self.name

    @property
    def registered_model(self) -> str:
        """The name in the MLflow model registry."""
        return self.tracking.registered_model or self.name


def searchable(name: str) -> bool:
    """Whether a dimension of a space may have this name: a setting of `training`, `model` or `data.max_length`."""
    return name in {"model", "data.max_length"} or name in setting_names(Training)


def default_storage() -> Path:
    """`runs` in the working directory."""
    return Path("runs").absolute()
