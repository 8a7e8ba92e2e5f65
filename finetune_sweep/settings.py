"""The settings of a training: what can be fixed in a sweep file, or searched.

Here too is what every section of a sweep file is made of: frozen models that know no other keys and convert nothing,
whose fields are marked, where they are defined, as entering the trial's key or not.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

RECIPE_VERSION: Final = 3
"""Raised when a default changes or a setting means something else; adding a setting leaves it."""


IN_KEY: Final[JsonDict] = {"enters_key": True}
NOT_IN_KEY: Final[JsonDict] = {"enters_key": False}
_PERCENT = re.compile(r"(100|[1-9]?[0-9])%")


class Model(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys, documented by the text under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, arbitrary_types_allowed=True
    )


def _check_depth(value: object) -> object:
    """Accepts a count of blocks, `embeddings`, `all` or a percentage."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_word = isinstance(value, str) and (value in {"embeddings", "all"} or _PERCENT.fullmatch(value))
    if not (is_count or is_word):
        raise ValueError(
            f"must be a number of blocks from 0, 'embeddings', 'all' or a percentage such as '50%', got {value!r}"
        )
    return value


def by_type(value: object) -> object:
    """Lets `linear` stand for `{type: linear}`."""
    return {"type": value} if isinstance(value, str) else value


FreezeDepth = Annotated[int | str, BeforeValidator(_check_depth)]


# ---------------------------------------------------------------------------------------------- training


class Constant(Model):
    """The same learning rate throughout, after a warmup. Trials that differ only in `epochs` share their training."""

    type: Literal["constant"] = Field(json_schema_extra=IN_KEY)
    """The name of the schedule."""
    warmup_steps: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """Optimizer steps over which the learning rate rises linearly from 0."""


class _Ahead(Model):
    """A schedule that looks at the length of the training."""

    warmup_steps: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1, json_schema_extra=IN_KEY)
    """The same as a fraction of all steps; `warmup_steps` and `warmup_ratio` exclude each other."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"give warmup_steps or warmup_ratio, not both, got {self.warmup_steps} and {self.warmup_ratio}"
            )
        return self


class Linear(_Ahead):
    """A linear rise over the warmup, then a linear fall to 0 at the last step (Devlin et al. 2019)."""

    type: Literal["linear"] = Field(json_schema_extra=IN_KEY)
    """The name of the schedule."""


class Cosine(_Ahead):
    """A linear rise over the warmup, then half a cosine to 0 at the last step (Loshchilov & Hutter 2017)."""

    type: Literal["cosine"] = Field(json_schema_extra=IN_KEY)
    """The name of the schedule."""


class Wsd(Model):
    """Warmup, a stable learning rate, and a decay at the end (Hu et al. 2024).

    The decay is 1 minus the square root of the part of it that is over (Hägele et al. 2024). Trials that differ only in
    `epochs` share all steps before their decays.
    """

    type: Literal["wsd"] = Field(json_schema_extra=IN_KEY)
    """The name of the schedule."""
    warmup_steps: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    decay_ratio: float = Field(0.2, gt=0, le=1, json_schema_extra=IN_KEY)
    """The fraction of all steps over which the learning rate falls to 0."""


class Plateau(Model):
    """The same learning rate, after a warmup, until the validation loss stops falling; then a part of it, and so on.

    It looks back alone, so trials that differ only in `epochs` share their training.
    """

    type: Literal["plateau"] = Field(json_schema_extra=IN_KEY)
    """The name of the schedule."""
    warmup_steps: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    factor: float = Field(0.5, gt=0, lt=1, json_schema_extra=IN_KEY)
    """What the learning rate is multiplied with."""
    patience: int = Field(1, ge=1, json_schema_extra=IN_KEY)
    """Evaluations without a new lowest validation loss after which that happens; then the count begins anew."""


LrSchedule = Annotated[
    Annotated[Constant | Linear | Cosine | Wsd | Plateau, Field(discriminator="type")],
    BeforeValidator(by_type),
]


class EarlyStopping(Model):
    """Ends a training when the validation result has not improved for a while."""

    patience: int = Field(ge=1, json_schema_extra=IN_KEY)
    """Evaluations without an improvement after which the training ends."""
    min_delta: float = Field(0.0, ge=0, json_schema_extra=IN_KEY)
    """The least change that counts as an improvement."""
    monitor: Literal["loss", "metric"] = Field("loss", json_schema_extra=IN_KEY)
    """What is watched: the validation loss, or the sweep's metric."""


class Unfreeze(Model):
    """Opens frozen blocks from the last one down while the training goes on (Howard & Ruder 2018).

    It begins at `freeze_depth`. The embeddings count as one more block, below the first.
    """

    every_epochs: int = Field(1, ge=1, json_schema_extra=IN_KEY)
    """Epochs between two openings, and before the first."""
    blocks: int = Field(1, ge=1, json_schema_extra=IN_KEY)
    """Blocks that are opened at once."""
    to_depth: FreezeDepth = Field(0, json_schema_extra=IN_KEY)
    """What stays frozen to the end, as in `freeze_depth`."""


class LinearProbe(Model):
    """Trains what follows the blocks alone, before the rest begins (LP-FT, Kumar et al. 2022)."""

    epochs: int = Field(1, ge=1, json_schema_extra=IN_KEY)
    """So many of the training's `epochs`, the first ones."""
    learning_rate: float = Field(1e-3, gt=0, lt=10, json_schema_extra=IN_KEY)
    """The learning rate of these, without a schedule; that of the training begins after them."""


class Augment(Model):
    """Copies of the training rows whose texts are changed at random; validation and test rows stay as they are.

    For tasks with texts that may be changed: those where the labels stay, and the text is not what is to be written.

    Each copy of a row goes through all changes whose rate is above 0, in the order in which they stand here. They
    work on words, and on characters in scripts without spaces (Chinese, Japanese, Thai).
    """

    replacement: float = Field(0.0, ge=0, le=1, json_schema_extra=IN_KEY)
    """The chance of each word to give way to a similar one (synonym replacement, Wei & Zou 2019)."""
    insertion: float = Field(0.0, ge=0, le=1, json_schema_extra=IN_KEY)
    """For each word, the chance that one similar to some word of the text is inserted anywhere."""
    swap: float = Field(0.0, ge=0, le=1, json_schema_extra=IN_KEY)
    """The chance of each word to change places with another one."""
    deletion: float = Field(0.0, ge=0, le=1, json_schema_extra=IN_KEY)
    """The chance of each word to be left out; one always stays."""
    punctuation: float = Field(0.0, ge=0, le=1, json_schema_extra=IN_KEY)
    """From one mark up to this fraction of the words is inserted (AEDA, Karimi et al. 2021, where it is 0.3)."""
    typos: float = Field(0.0, ge=0, le=1, json_schema_extra=IN_KEY)
    """The chance of each letter to be mistyped on a keyboard."""
    copies: int = Field(1, ge=0, le=100, json_schema_extra=IN_KEY)
    """How many changed copies of each row are added to it; in a space, 0 is training without augmentation."""
    synonyms: str | None = Field(None, min_length=1, json_schema_extra=IN_KEY)
    """A file with lines `word: similar, similar` for `replacement` and `insertion`; without it, similar words are
    the nearest in the model's own embedding table. It enters the key by its content."""

    @property
    def rates(self) -> dict[str, float]:
        """The changes that take place, in their order."""
        rates = {name: getattr(self, name) for name in AUGMENT_RATES}
        return {name: rate for name, rate in rates.items() if rate}

    @model_validator(mode="after")
    def _has_effect(self) -> Augment:
        if not self.copies:
            raise ValueError(
                "copies 0 adds no row, so that no rate has an effect: raise it, or leave augment out"
            )
        if not self.rates:
            raise ValueError(
                f"copies {self.copies} without a rate repeats each row unchanged: give one of"
                f" {', '.join(AUGMENT_RATES)}, or leave augment out"
            )
        if self.synonyms is not None and not (self.replacement or self.insertion):
            raise ValueError(
                f"synonyms {self.synonyms!r} is read by replacement and insertion alone: give one of them a rate,"
                " or leave it out"
            )
        return self


AUGMENT_RATES: Final = ("replacement", "insertion", "swap", "deletion", "punctuation", "typos")
"""The changes of `Augment`, in their order."""


class Lora(Model):
    """Small matrices beside the pretrained ones are trained in their place (Hu et al. 2022).

    A weight W of an adapted layer becomes W + lora_alpha / r * B A, with A of r rows and B of r columns. Blocks that
    start from new weights, and the head, are trained whole; embeddings are not trained. Promotion adds the matrices up.
    """

    r: int = Field(8, ge=0, le=4096, json_schema_extra=IN_KEY)
    """The rank; in a space, 0 is training without LoRA."""
    lora_alpha: float = Field(16.0, gt=0, json_schema_extra=IN_KEY)
    """What the product of the small matrices is multiplied with, times r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1, json_schema_extra=IN_KEY)
    """Dropout before A."""
    target_modules: Literal["attention", "all-linear"] = Field("attention", json_schema_extra=IN_KEY)
    """`attention` adapts the query and value of each block, as the paper does (of GPT-2 also the key, which lies in one
    matrix with them; of ConvNeXt, which has no attention, its two pointwise layers); `all-linear` all matrices."""

    @model_validator(mode="after")
    def _has_effect(self) -> Lora:
        if not self.r:
            raise ValueError("r 0 adapts nothing: give a rank from 1, or leave lora out")
        return self


LAYER_SETTINGS: Final = (
    "freeze_depth",
    "drop_layers",
    "reinit_layers",
    "reinit_pooler",
    "shrink_perturb",
    "pooling",
    "head",
    "lora",
)
"""Those that are checked against the model's blocks, and against each other."""


class Training(Model):
    """How a model is fine-tuned. Each setting can be fixed here or be a dimension of the space."""

    learning_rate: float = Field(3e-5, gt=0, lt=10, json_schema_extra=IN_KEY)
    """The peak learning rate."""
    batch_size: int = Field(16, ge=1, le=65536, json_schema_extra=IN_KEY)
    """Examples per optimizer step (the effective batch, whatever fits into memory at once)."""
    epochs: int = Field(3, ge=1, le=10000, json_schema_extra=IN_KEY)
    """Passes over the training data."""
    freeze_depth: FreezeDepth = Field(0, json_schema_extra=IN_KEY)
    """What stays as pretrained: 0 nothing, `embeddings`, k the embeddings and the first k blocks, `50%` half of
    the blocks (rounded down), `all` everything but what follows the blocks."""
    unfreeze: Unfreeze | None = Field(None, json_schema_extra=IN_KEY)
    """Gradual unfreezing of what `freeze_depth` freezes; `null` for none."""
    linear_probe: LinearProbe | None = Field(None, json_schema_extra=IN_KEY)
    """A probe before the fine-tuning proper, which then begins with a fresh optimizer; `null` for none."""
    drop_layers: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """So many of the last blocks are left out, also of the promoted model (Sajjad et al. 2020)."""
    reinit_layers: int = Field(0, ge=0, json_schema_extra=IN_KEY)
    """So many of the last blocks (of those that are left) start from new weights (Zhang et al. 2021)."""
    reinit_pooler: bool = Field(default=False, json_schema_extra=IN_KEY)
    """The pretrained pooler, what stands between the last block and the classifier, starts from new weights."""
    shrink_perturb: float = Field(1.0, gt=0, le=1, json_schema_extra=IN_KEY)
    """Each pretrained weight that is trained starts as this part of it, and the rest of a newly drawn one (Ash & Adams
    2020); 1 leaves it."""
    pooling: Literal["default", "cls", "mean", "max"] = Field("default", json_schema_extra=IN_KEY)
    """What the head reads of a text: the state of its first token, the mean or the maximum over all; `default` is the
    model's own way."""
    head: Literal["default", "linear", "mlp"] = Field("default", json_schema_extra=IN_KEY)
    """What makes logits of that: one layer, or two with a tanh between; `default` is the model's own head, or `linear`
    beside a `pooling`."""
    lora: Lora | None = Field(None, json_schema_extra=IN_KEY)
    """Low-rank adapters in the place of the pretrained weights; `null` trains these."""
    weight_decay: float = Field(0.01, ge=0, le=10, json_schema_extra=IN_KEY)
    """Decoupled weight decay; biases and norms are left out."""
    max_grad_norm: float = Field(1.0, ge=0, json_schema_extra=IN_KEY)
    """The gradient's norm is clipped to this; 0 turns clipping off."""
    optimizer: Literal["adamw", "sgd", "adafactor"] = Field("adamw", json_schema_extra=IN_KEY)
    """`adamw` (Loshchilov & Hutter 2019), `sgd` without momentum, or `adafactor` (Shazeer & Stern 2018), whose
    learning rate is a part of each tensor's root mean square: 1e-3 is a usual one."""
    lr_schedule: LrSchedule = Field(Constant(type="constant"), json_schema_extra=IN_KEY)
    """How the learning rate moves over the steps."""
    layerwise_lr_decay: float = Field(1.0, gt=0, le=1, json_schema_extra=IN_KEY)
    """Each block has the learning rate of the one above times this; what follows the blocks has the full one."""
    l2_sp: float = Field(0.0, ge=0, le=1000, json_schema_extra=IN_KEY)
    """A pull of pretrained weights back to their pretrained values, in the place of `weight_decay`, which then acts on
    new weights alone (L2-SP, Li et al. 2018)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1, json_schema_extra=IN_KEY)
    """This part of the target is spread evenly over the classes in training (Szegedy et al. 2016)."""
    adversarial_epsilon: float = Field(0.0, ge=0, le=1000, json_schema_extra=IN_KEY)
    """Each text is learned also with its word embeddings moved by a step of this length that raises its loss (fast
    gradient method, Miyato et al. 2017); 0 for no such step."""
    early_stopping: EarlyStopping | None = Field(None, json_schema_extra=IN_KEY)
    """When to end before the last epoch; `null` for never."""
    augment: Augment | None = Field(None, json_schema_extra=IN_KEY)
    """Changed copies of the training rows; `null` for none. An error for a task without
    [texts that may be changed](tasks.md)."""
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", json_schema_extra=IN_KEY)
    """`auto` is bf16 where the hardware has it natively, else fp32; the resolved one enters the key."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=65536, json_schema_extra=NOT_IN_KEY)
    """Parts in which a batch is computed, to save memory. The effective batch stays `batch_size`."""

    @property
    def passes(self) -> int:
        """How often an epoch passes over each row: once, and once in each of its copies."""
        return 1 + (self.augment.copies if self.augment else 0)

    @model_validator(mode="after")
    def _parts_fit(self) -> Training:
        if self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) must not exceed"
                f" batch_size ({self.batch_size})"
            )
        return self


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of all settings of a section, nested ones dotted, in the order of their definition."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for nested in nested_models(field.annotation):
            names += [n for n in setting_names(nested, f"{prefix}{name}.") if n not in names]
    return names


def leaf_names(model: type[BaseModel]) -> list[str]:
    """Names of the settings of a section that are values, not sections."""
    names = setting_names(model)
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def is_fractional(name: str) -> bool:
    """Whether a setting is a number with a fraction, so that a range from 0 to 1 means what lies between."""
    sections: list[type[BaseModel]] = [Training]
    *parents, last = name.split(".")
    for parent in parents:
        sections = [
            nested
            for section in sections
            if parent in section.model_fields
            for nested in nested_models(section.model_fields[parent].annotation)
        ]
    return any(
        last in section.model_fields and section.model_fields[last].annotation is float
        for section in sections
    )


def nested_models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - a type expression has no narrower type
    """The sections that a field may hold: one, the members of a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in nested_models(part)]
