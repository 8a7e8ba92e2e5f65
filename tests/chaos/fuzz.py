"""Sweep files that nobody meant: real ones mutated, random structures, and a corpus of hostile ones.

Whatever a file says, loading and planning it gives a sweep or a `UserError`, and touches nothing else.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from finetune_sweep.errors import UserError
from finetune_sweep.layout import parse_storage
from finetune_sweep.plan import make_plan
from finetune_sweep.sweepfile import load_sweep

ROOT: Final = Path(__file__).parents[2]
HOSTILE: Final = Path(__file__).parent / "hostile"
SECRET: Final = "the-canary-sings"  # noqa: S105 - a mark to look for
TOKEN: Final = "hunter2-hunter2"  # noqa: S105 - the same
PIECES: Final = (
    *":-#'\"|>&*!%@`?,[]{}~\t\\\0\x85\ufeff\u202e\U0001f600",
    ": ",
    "- ",
    "!!python/object/apply:os.system [id]",
    "<<: *x",
    "\n",
    "\n---\n",
    "  ",
    "null",
    "true",
    ".nan",
    "-.inf",
    "1e999",
    "0x10",
    "9" * 30,
    "9" * 400,
    "0x" + "f" * 5000,
    "-1",
    "../../x",
    "[]",
    "{}",
    "{low: 1, high: 0}",
    "when: {epochs: [1]}",
)
_VOCABULARY: Final = """
    name task model data source files columns text label split validation test seed limit train
    max_length space search type grid random tpe trials metric mode epoch training learning_rate epochs
    batch_size optimizer lr_schedule warmup_steps freeze_depth early_stopping patience low high log step
    count values when resources_per_trial cpu gpu max_concurrent retries keep_checkpoints min_free_bytes
    tracking uri experiment registered_model storage cache device adamw sgd constant linear accuracy
    loss text-classification example:minilm-l6 example:acl-aspects 5e-5 50% all embeddings
"""
WORDS: Final = tuple(_VOCABULARY.split())


# ------------------------------------------------------------------------------------------------------- fuzzed


def mutated(texts: list[str]) -> st.SearchStrategy[str]:
    """A real file with some lines and characters deleted, doubled, moved or replaced."""
    edit = st.tuples(
        st.sampled_from(["delete", "insert", "replace", "double", "swap", "indent"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.sampled_from([*PIECES, *WORDS]),
    )

    def apply(text: str, edits: list[tuple[str, int, int, str]]) -> str:
        for kind, first, second, piece in edits:
            text = _edited(text, kind, (first, second), piece)
        return text

    return st.builds(apply, st.sampled_from(texts), st.lists(edit, min_size=1, max_size=6))


def _edited(text: str, kind: str, places: tuple[int, int], piece: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    line, other = (place % len(lines) for place in places)
    at = places[0] % (len(text) + 1)
    match kind:
        case "delete":
            return text[:at] + text[at + places[1] % 12 :]
        case "insert":
            return text[:at] + piece + text[at:]
        case "replace":
            return text[:at] + piece + text[at + len(piece) :]
        case "double":
            return "".join([*lines[:line], lines[other], *lines[line:]])
        case "indent":
            lines[line] = "  " + lines[line]
        case _:
            lines[line], lines[other] = lines[other], lines[line]
    return "".join(lines)


def structures() -> st.SearchStrategy[str]:
    """Mappings and lists of the words that a sweep file knows, of numbers and of any text, in JSON."""
    scalars: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(WORDS),
    )
    values = st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(WORDS), inner, max_size=5)
        ),
        max_leaves=12,
    )
    return st.dictionaries(st.sampled_from(WORDS), values, max_size=8).map(json.dumps)


def fuzz(folder: Path, examples: int, number: int) -> list[str]:
    """Loads so many files, half of each kind; returns what came out that is neither a sweep nor a `UserError`."""
    (folder / "sweeps").mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "search_spaces", folder / "search_spaces", dirs_exist_ok=True)
    file = folder / "sweeps" / "fuzzed.yaml"
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "sweeps").glob("*.yaml"))]
    wrong: list[str] = []
    settled = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    @settled
    @given(st.one_of(mutated(texts), structures()))
    def load(text: str) -> None:
        file.write_bytes(text.encode(errors="surrogatepass"))
        try:
            load_sweep(file)
        except UserError as error:
            if not str(error).strip():
                wrong.append(f"a UserError without a word for {text!r}")
        except Exception as error:  # noqa: BLE001 - any other exception is what is looked for
            wrong.append(f"{type(error).__name__}: {error} for {text!r}")

    load()
    return wrong


# ------------------------------------------------------------------------------------------------------ hostile


class _Bomb:
    """What a pickle runs when it is read: it writes into the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:  # noqa: ANN401 - pickle's
        return (Path.write_text, (self.canary, "read by pickle"))


def write_corpus(folder: Path) -> list[Path]:
    """The corpus beside what it names, and the canary; `hostile/` has the small files, the others are made here."""
    canary = folder / "canary.txt"
    canary.write_text(f"{SECRET}\n", encoding="utf-8")
    for path in HOSTILE.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("CANARY", str(canary)).replace("TOKEN", TOKEN)
        (folder / path.name).write_text(text, encoding="utf-8")
    rest = (
        "task: text-classification\nmodel: example:minilm-l6\n"
        "data: {source: example:acl-aspects, columns: {text: sentence, label: aspect}}\n"
    )
    bombs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    made = {
        "ten_megabytes": f"name: big\n{rest}space: {{learning_rate: [{'1e-3, ' * 1_700_000}]}}\n",
        "a_long_text": f"name: {'x' * 10_000_000}\n{rest}",
        "deep_lists": f"name: deep\n{rest}space: {'[' * 100_000}",
        "deep_mappings": f"name: deep\n{rest}space: {'{a: ' * 100_000}",
        "alias_bomb": "\n".join(["a0: &a0 [x]", *bombs]),
        "a_long_number": f"name: n\n{rest}space: {{learning_rate: {{low: 1e-5, high: 1{'0' * 400}}}}}\nmetric: loss\n",
        "a_long_hexadecimal": f"name: n\n{rest}space: {{epochs: [0x{'f' * 5000}]}}\nmetric: loss\n",
        "many_keys": "\n".join(f"key{number}: {number}" for number in range(50_000)),
        "many_cells": f"name: cells\n{rest}space: {{"
        + ", ".join(
            f"{name}: {{low: 1, high: 1000, step: 1}}" for name in ("epochs", "batch_size", "freeze_depth")
        )
        + "}\nmetric: accuracy\n",
    }
    for name, text in made.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    _write_trojans(folder, canary)
    return sorted(folder.glob("*.yaml"))


def _write_trojans(folder: Path, canary: Path) -> None:
    """Models and data that would run code if they were loaded as such."""
    bomb = pickle.dumps(_Bomb(canary))
    code = f"open({str(canary)!r}, 'w').write('run as code')\n"
    model = folder / "trojan"
    model.mkdir()
    config = {
        "model_type": "trojan",
        "architectures": ["Trojan"],
        "auto_map": {"AutoConfig": "trojan.Trojan", "AutoModelForSequenceClassification": "trojan.Trojan"},
    }
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = {"tokenizer_class": "Trojan", "auto_map": {"AutoTokenizer": ["trojan.Trojan", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (model / "trojan.py").write_text(code, encoding="utf-8")
    (model / "pytorch_model.bin").write_bytes(bomb)
    data = folder / "rows"
    data.mkdir()
    (data / "rows.py").write_text(code, encoding="utf-8")
    (data / "train.pkl").write_bytes(bomb)
    (folder / "rows.pkl").write_bytes(bomb)
    (folder / "rows.npy").write_bytes(bomb)
    (folder / "rows.csv").write_bytes(b"text,label\n\x00\xff\xfe,a\n" * 9)


_opened: list[str] = []
_watched: list[str] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(args[0], str) and args[0] in _watched:
        _opened.append(args[0])


@contextmanager
def _watching(path: Path) -> Iterator[list[str]]:
    """The times that a file is opened while the block runs. Python keeps the hook; it does nothing afterwards."""
    if not hasattr(_watch, "is_installed"):
        sys.addaudithook(_watch)
        _watch.is_installed = True  # type: ignore[attr-defined]
    _opened.clear()
    _watched.append(str(path))
    try:
        yield _opened
    finally:
        _watched.clear()


def attack(folder: Path) -> tuple[int, list[str]]:
    """Loads and plans each file of the corpus; returns how many there are, and what came of them that must not."""
    files = write_corpus(folder)
    outside = _tree(folder.parent)
    wrong = []
    with _watching(folder / "canary.txt") as opened:
        for file in files:
            wrong += _attacked(file, folder / "storage")
        if opened:
            wrong.append(f"the canary was opened {len(opened)} times")
    if (folder / "canary.txt").read_text(encoding="utf-8") != f"{SECRET}\n":
        wrong.append("the canary was changed")
    new = {path for path in _tree(folder.parent) - outside if not path.is_relative_to(folder / "storage")}
    wrong += [f"{path} was created" for path in sorted(new)]
    return len(files), wrong


def _tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def _attacked(file: Path, storage: Path) -> list[str]:
    options: dict[str, str | None] = {"cache": str(storage / "cache")}
    said = ""
    try:
        sweep = load_sweep(file, options=options)
        parse_storage(sweep.storage or "runs")
        make_plan(sweep)
    except UserError as error:
        said = str(error)
    except BaseException as error:  # noqa: BLE001 - anything else is what is looked for, SystemExit too
        return [f"{file.name}: {type(error).__name__}: {str(error)[:300]}"]
    found = [f"{file.name} makes it print {secret}" for secret in (SECRET, TOKEN) if secret in said]
    if len(said) > 20_000:
        found.append(f"{file.name} makes it print {len(said)} characters")
    return found
