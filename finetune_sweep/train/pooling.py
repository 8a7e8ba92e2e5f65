"""Another head in the place of a model's own: putting it there, and knowing a folder that has one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from finetune_sweep.train import pooled
from finetune_sweep.train.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CODE: Final = Path(pooled.__file__)


def with_head(
    model: PreTrainedModel,
    arch: Architecture,
    pooling: Literal["default", "cls", "mean", "max"],
    head: Literal["default", "linear", "mlp"],
) -> PreTrainedModel:
    """A classifier of the same pretrained modules with another head, whose weights are still to be drawn.

    Args:
        model: A classifier of texts; its pretrained modules lose their pooler.
        arch: Where they are.
        pooling: `default` reads the token that the model's own head reads.
        head: `default` is one layer.
    """
    from transformers.initialization import no_init_weights

    given = model.config
    config = pooled.PooledConfig(
        body=given.to_dict(),
        prefix=arch.family.prefix,
        pooling={"default": arch.family.reads, "cls": "first"}.get(pooling, pooling),
        mlp=head == "mlp",
        width=arch.width,
        dropout=_dropout(given),
        id2label=given.id2label,
        label2id=given.label2id,
        problem_type=given.problem_type,
    )
    config.pad_token_id = given.pad_token_id
    pooled.PooledConfig.register_for_auto_class()  # type: ignore[no-untyped-call]  # transformers'
    pooled.PooledClassifier.register_for_auto_class("AutoModelForSequenceClassification")  # type: ignore[no-untyped-call]  # transformers'
    with no_init_weights():
        made = pooled.PooledClassifier(config)
    body = model.get_submodule(arch.family.prefix)
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # type: ignore[assignment]  # as transformers does it without a pooler
    made._modules[arch.family.prefix] = body  # noqa: SLF001 - what lies there was built from the same configuration
    return made


def _dropout(config: object) -> float:
    """What the model's own head would drop, by the names that families have for it."""
    for name in (
        "classifier_dropout",
        "classifier_dropout_prob",
        "seq_classif_dropout",
        "hidden_dropout_prob",
    ):
        if isinstance(value := getattr(config, name, None), float):
            return value
    return 0.0


def has_code(folder: Path) -> bool:
    """Whether a folder has the code that heads of ours need, to the last character."""
    code = folder / _CODE.name
    return code.is_file() and code.read_bytes() == _CODE.read_bytes()
