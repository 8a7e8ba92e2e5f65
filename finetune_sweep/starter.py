"""A first sweep for somebody's data: looks at a file or a folder and writes a YAML file that runs as it is.

Which columns are the text and the label is guessed from the first rows. Counts, classes and lengths are those
of the data as a sweep prepares them, so whatever a sweep would refuse is refused here.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep import yamlio
from finetune_sweep.errors import UserError, nearest
from finetune_sweep.examples import MODELS
from finetune_sweep.spec import Data, Split
from finetune_sweep.starter_rows import Guess, guess_columns, guess_task, refuse_regression
from finetune_sweep.starter_table import peek, peeked_file
from finetune_sweep.sweepfile import default_cache

if TYPE_CHECKING:
    from finetune_sweep.train.data import Prepared

_FEW_ROWS: Final = 500
_VERY_FEW_TO_TRAIN: Final = 200
_FEW_TO_TRAIN: Final = 2000
_MANY_TO_TRAIN: Final = 4000
_LENGTHS: Final = (32, 64, 128, 256, 512)
_EXAMPLE: Final = "minilm-l6"
_SAME_ON_THE_HUB: Final = "sentence-transformers/all-MiniLM-L6-v2"


def write_sweep(data: Path, output: Path | None, cache: Path | None = None) -> Path:
    """Writes a sweep over texts or pictures; which task it is for is told from the data.

    Args:
        data: A csv, tsv, json, jsonl, parquet or CoNLL file, COCO json, or a folder of splits, of classes, or of
            pictures with a table.
        output: The file to write; by default it is named for the data, in the working directory.
        cache: Where the prepared data are kept, for the run that follows.

    Returns:
        The file that was written, absolute.

    Raises:
        UserError: The data are for none of the tasks that are guessed, or the file exists.
    """
    from finetune_sweep.tasks import TASKS
    from finetune_sweep.train.data import prepare

    if not data.exists():
        hint = " (data on the hub go into `source` of a sweep file)" if str(data).startswith("hub:") else ""
        raise UserError(f"{data}: no such file or folder{_beside(data)}{hint}")
    name = _name(data)
    target = (output if output is not None else Path(f"{name}.yaml")).absolute()
    if target.exists():
        raise UserError(f"{target} exists and is not overwritten; name another file with --output")
    source, folder = data.resolve(), target.parent.resolve()
    shown = str(source.relative_to(folder) if source.is_relative_to(folder) else source)
    guess = guess_task(source)
    settings = _settings(source) if guess is None else Data(source=str(source), columns=dict(guess.columns))
    task = "text-classification" if guess is None else guess.task
    prepared = prepare(settings, TASKS[task], Path(), cache or default_cache())
    if guess is None:
        refuse_regression(prepared.classes, str(settings.columns.get("label", "label")))
        text = _sweep_text(name, shown, settings, prepared)
    else:
        text = _short_text(name, shown, guess, prepared)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    return target


def _settings(data: Path) -> Data:
    """The `data:` section that the first rows suggest."""
    peeked = peeked_file(data)
    if peeked is None:
        return Data(source=str(data))
    rows = peek(peeked)
    if not rows:
        raise UserError(f"{peeked}: holds no rows")
    split = Split(validation=0.2, test=0.2) if len(rows) < _FEW_ROWS else Split()
    return Data(source=str(data), columns=guess_columns(rows, peeked), split=split)


def _beside(path: Path) -> str:
    names = (other.name for other in path.parent.iterdir()) if path.parent.is_dir() else ()
    return nearest(path.name, names)


def _name(data: Path) -> str:
    """A name for the sweep, from that of the data."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", data.resolve().stem if data.is_file() else data.resolve().name)
    return plain.strip("._-")[:64] or "sweep"


# ------------------------------------------------------------------------------------------------ the YAML


def _sweep_text(name: str, source: str, settings: Data, prepared: Prepared) -> str:
    """The sweep file."""
    train = prepared.splits["train"]
    rates, epochs, size = _searched(len(train))
    lines = [
        f"# Fine-tunes a text classifier on {_comment(source)}. It runs as it is; change what you like.",
        *_seen_lines(prepared),
        f"name: {_scalar(name)}",
        "task: text-classification",
        _model_line(),
        *_data_lines(source, settings, prepared),
        _line("space:", f"what is searched: every combination is a trial{size}"),
        f"  learning_rate: [{rates}]",
        _line("  freeze_depth: [0, 50%]", "the part of the model that stays as pretrained: none, or half"),
        _line(f"  epochs: [{epochs}]", "a shorter training is a part of a longer one, and costs nothing"),
        "search: {type: grid}",
        _metric_line(Counter(train["label"])),
        f"training: {{lr_schedule: {{type: constant, warmup_steps: {min(20, len(train) // 16)}}}}}",
        _selection_line(len(train)),
        _line("resources_per_trial: {cpu: 1}", "gpu: 1 gives each trial a GPU"),
    ]
    return "\n".join(lines) + "\n"


def _line(setting: str, comment: str) -> str:
    return f"{setting:<35}  # {comment}"


_STARTS: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "text-tagging": ("", "2e-5, 5e-5, 1e-4", "micro_f1", "over all classes of all rows"),
    "token-classification": ("", "2e-5, 5e-5, 1e-4", "f1", "of whole entities"),
    "image-classification": (
        _line("model: hub:google/vit-base-patch16-224-in21k", "or ./folder"),
        "5e-5, 2e-4",
        "accuracy",
        "of the validation rows",
    ),
    "image-tagging": (
        _line("model: hub:google/vit-base-patch16-224-in21k", "or ./folder"),
        "5e-5, 2e-4",
        "micro_f1",
        "over all classes of all rows",
    ),
    "image-captioning": (
        _line("model: ./vit-gpt2", "a folder; docs/tasks.md has the lines that make it"),
        "3e-5, 1e-4",
        "rougeL",
        "words in common, in order",
    ),
    "object-detection": (
        _line("model: hub:hustvl/yolos-tiny", "or ./folder"),
        "2e-5, 5e-5",
        "map",
        "average precision",
    ),
}
"""What a first sweep starts from: the model, "" for that of texts; learning rates; the metric, and what it is."""


def _short_text(name: str, source: str, guess: Guess, prepared: Prepared) -> str:
    """The sweep file of another task than text classification."""
    model, rates, metric, meaning = _STARTS[guess.task]
    rows = ", ".join(f"{split} {len(part):,}" for split, part in prepared.splits.items())
    columns = ", ".join(f"{column}: {_scalar(str(theirs))}" for column, theirs in guess.columns.items())
    lines = [
        f"# Fine-tunes a model for {guess.task} on {_comment(source)}; `task` was guessed from the data.",
        f"# Rows: {rows}." + (f" {len(prepared.classes)} classes." if prepared.classes else ""),
        *(f"# {_comment(line)}" for line in (*prepared.report, *prepared.notes)),
        f"name: {_scalar(name)}",
        f"task: {guess.task}",
        model or _model_line(),
        "data:",
        f"  source: {_scalar(source)}",
        *([f"  columns: {{{columns}}}"] if columns else []),
        _line("space:", "what is searched: every combination is a trial"),
        f"  learning_rate: [{rates}]",
        _line("  freeze_depth: [0, 50%]", "the part of the model that stays as pretrained: none, or half"),
        _line(f"metric: {metric}", meaning),
        "training: {epochs: 3, lr_schedule: {type: linear, warmup_steps: 20}}",
        _line("resources_per_trial: {cpu: 1}", "gpu: 1 gives each trial a GPU"),
    ]
    return "\n".join(lines) + "\n"


def _searched(rows: int) -> tuple[str, str, str]:
    """Learning rates and epochs for a number of training rows, and what the file says about how many they are.

    A few hundred rows have a validation split so small that settings close to each other score alike.
    """
    if rows < _VERY_FEW_TO_TRAIN:
        return "5e-5, 2e-4", "4, 8", "; few, as rows are few"
    if rows < _FEW_TO_TRAIN:
        return "5e-5, 1e-4, 2e-4", "2, 4, 6", ""
    return "2e-5, 5e-5, 1e-4", "2, 3, 4", ""


def _selection_line(rows: int) -> str:
    if rows < _VERY_FEW_TO_TRAIN:
        return _line("selection: {finalists: 0}", "so few validation rows tell no settings apart")
    return _line(
        "selection: {finalists: 3, seeds: 3}", "the best few again, beside a baseline, on fresh seeds"
    )


def _seen_lines(prepared: Prepared) -> Iterator[str]:
    """Comments: what `init` saw in the data."""
    counts = Counter(prepared.splits["train"]["label"])
    rows = ", ".join(f"{split} {len(part):,}" for split, part in prepared.splits.items())
    classes = ", ".join(f"{label} ({counts[label]:,})" for label in prepared.classes[:10])
    more = f" and {len(prepared.classes) - 10} more" if len(prepared.classes) > 10 else ""
    yield f"# Rows: {rows}. {len(prepared.classes)} classes, in training: {_comment(classes)}{more}."
    yield from (f"# {_comment(line)}" for line in (*prepared.report, *prepared.notes))


def _model_line() -> str:
    packages = MODELS[_EXAMPLE].packages
    if any(importlib.util.find_spec(package.place.partition("/")[0]) for package in packages):
        return _line(f"model: example:{_EXAMPLE}", "small, English; or hub:ORG/NAME, or ./folder")
    return _line(f"model: hub:{_SAME_ON_THE_HUB}", "small, English; or ./folder")


def _data_lines(source: str, settings: Data, prepared: Prepared) -> Iterator[str]:
    train = prepared.splits["train"]
    yield "data:"
    yield f"  source: {_scalar(source)}"
    if settings.columns:
        columns = ", ".join(f"{name}: {_scalar(str(column))}" for name, column in settings.columns.items())
        yield _line(f"  columns: {{{columns}}}", "which columns hold the text and its class")
    yield _line(f"  max_length: {_max_length(train['text'])}", "tokens; what is longer is cut")
    split = settings.split
    if split != Split() and any("training rows" in note for note in prepared.notes):
        yield _line(f"  split: {{validation: {split.validation}, test: {split.test}}}", "large: rows are few")
    if len(train) > _MANY_TO_TRAIN:
        limit = f"{{train: {_MANY_TO_TRAIN}, validation: {_MANY_TO_TRAIN // 4}}}"
        yield _line(f"  limit: {limit}", "for speed; take it out to use all rows")


def _metric_line(counts: Mapping[str, int]) -> str:
    if max(counts.values()) > 3 * min(counts.values()):
        return _line("metric: macro_f1", "all classes count alike, as their sizes differ much")
    return _line("metric: accuracy", "of the validation rows; the test rows are used once, for the winner")


def _max_length(texts: Sequence[str]) -> int:
    """The least of a few lengths that 95 % of the texts stay below, by about 1.4 tokens a word."""
    tokens = sorted(max(1.4 * len(text.split()), len(text) / 5) + 2 for text in texts)
    most = tokens[int(0.95 * (len(tokens) - 1))]
    return next((length for length in _LENGTHS if length >= most), _LENGTHS[-1])


def _scalar(text: str) -> str:
    """A text as YAML, in quotes where it would not be read as this text."""
    is_plain = re.fullmatch(r"[\w./-]*[A-Za-z][\w./-]*", text, re.ASCII) is not None and text[0] != "-"
    return text if is_plain and yamlio.parse_scalar(text) == text else json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    """A text that can stand in a comment: one line, nothing that YAML refuses."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
