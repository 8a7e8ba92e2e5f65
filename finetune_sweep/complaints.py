"""What pydantic complains of, said as one sentence each: the rule, the value, the nearest right word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from finetune_sweep import settings
from finetune_sweep.errors import nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

FOREIGN_WORDS: Final = {
    "method": "search",
    "algorithm": "search",
    "sampler": "search",
    "parameters": "space",
    "search_space": "space",
    "hyperparameters": "space",
    "param_space": "space",
    "goal": "mode",
    "direction": "mode",
    "objective": "metric",
    "num_samples": "trials",
    "n_trials": "trials",
    "num_trials": "trials",
    "dataset": "data",
    "datasets": "data",
    "model_name": "model",
    "model_name_or_path": "model",
    "pretrained": "model",
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "frozen_layers": "freeze_depth",
    "freeze_layers": "freeze_depth",
    "lr_scheduler_type": "lr_schedule",
    "scheduler": "lr_schedule",
    "reduce_lr_on_plateau": "lr_schedule",
    "num_warmup_steps": "warmup_steps",
    "gradient_clip_val": "max_grad_norm",
    "max_seq_length": "max_length",
    "resources": "resources_per_trial",
    "optim": "optimizer",
    "experiment_name": "experiment",
    "path": "source",
}
"""What other tools call our settings, for the hint behind an unknown key."""


def complaints(error: ValidationError, section: type[BaseModel]) -> list[tuple[tuple[str, ...], str]]:
    """The places in the file, as keys from the top, and what is wrong there."""
    return [
        (plain(issue["loc"]), describe(issue, section)) for issue in _without_renamed(error.errors(), section)
    ]


def _without_renamed(issues: list[Any], section: type[BaseModel]) -> list[Any]:
    """Leaves out that a key is missing where another issue says which unknown key should have its name."""
    unknown = [issue for issue in issues if issue["type"] == "extra_forbidden"]
    meant = {
        (*issue["loc"][:-1], name)
        for issue in unknown
        for name in _siblings(section, issue["loc"])
        if f"'{name}'?" in hint(str(issue["loc"][-1]), _siblings(section, issue["loc"]))
    }
    return [issue for issue in issues if issue["type"] != "missing" or issue["loc"] not in meant]


_TAGS: Final = frozenset({"grid", "random", "tpe", "constant", "linear", "cosine", "wsd", "plateau"})


def plain(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """A pydantic location without the tags of unions, which do not stand in the file."""
    return tuple(
        str(part)
        for index, part in enumerate(loc)
        if not (part in _TAGS and index and loc[index - 1] in {"search", "lr_schedule"})
    )


def describe(issue: Any, section: type[BaseModel]) -> str:  # noqa: ANN401, PLR0911 - pydantic's ErrorDetails; a case each
    """One sentence for one of pydantic's errors: the rule, the value, the nearest right word."""
    value, context = issue["input"], issue.get("ctx", {})
    match issue["type"]:
        case "missing":
            return f"is required{_meaning(section, issue['loc'])}"
        case "extra_forbidden":
            return f"unknown key{hint(str(issue['loc'][-1]), _siblings(section, issue['loc']))}"
        case "literal_error":
            expected = context["expected"].replace("'", "")
            return f"must be one of {expected}, got {_short(value)}{nearest(str(value), _words(expected))}"
        case "union_tag_invalid":
            tags = context["expected_tags"].replace("'", "")
            return f"type must be one of {tags}, got {context['tag']!r}{nearest(str(context['tag']), _words(tags))}"
        case "union_tag_not_found":
            return f"needs a `type`, got {_short(value)}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            (sign, bound), *_ = ((_SIGNS[name], limit) for name, limit in context.items() if name in _SIGNS)
            return f"must be {sign} {bound:g}, got {_short(value)}"
        case "value_error":
            return str(context["error"])
        case "string_too_short":
            return "must not be empty"
        case kind if kind in _TYPES:
            return f"must be {_TYPES[kind]}, got {_short(value)}"
    return f"{issue['msg']}, got {_short(value)}"


_SIGNS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TYPES: Final = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "is_instance_of": "a mapping",
}


def _words(listed: str) -> list[str]:
    return listed.replace(" or ", ", ").split(", ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(section: type[BaseModel], loc: Iterable[int | str]) -> list[type[BaseModel]]:
    """The sections that a location may lie in."""
    sections = [section]
    for part in loc:
        inner = [
            nested
            for model in sections
            if str(part) in model.model_fields
            for nested in settings.nested_models(model.model_fields[str(part)].annotation)
        ]
        tagged = [model for model in sections if str(part) in _TAGS and _tag(model) == part]
        sections = inner or tagged or sections
    return sections


def _tag(model: type[BaseModel]) -> str:
    return model.__name__.lower()


def _siblings(section: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    return [name for model in _fields(section, loc[:-1]) for name in model.model_fields]


def _meaning(section: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    for model in _fields(section, loc[:-1]):
        if (found := model.model_fields.get(str(loc[-1]))) and found.description:
            return f": {' '.join(found.description.split())}"
    return ""


def hint(word: str, known: Sequence[str]) -> str:
    """A word that is not known, with the one that is meant: by its sound, or by what other tools call it."""
    foreign = FOREIGN_WORDS.get(word)
    if foreign in known:
        return f" '{word}' (did you mean '{foreign}'?)"
    listed = f" (known: {', '.join(known)})"
    return f" '{word}'{nearest(word, known) or listed}"
