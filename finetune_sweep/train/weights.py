"""From a model reference to a folder with its files, and what can be read there without loading it.

Only safetensors are read, and code that comes with a model is never run: pickled weights are neither
fetched nor opened.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune_sweep import examples
from finetune_sweep.errors import UserError
from finetune_sweep.train import scratch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Their order is part of a model's fingerprint, and so of every trial's key."""
_PROCESSOR = "preprocessor_config.json"
_FETCHED = (
    "config.json",
    "generation_config.json",
    INDEX,
    "model*.safetensors",
    _PROCESSOR,
    *TOKENIZER_FILES,
)
# Who wrote the folder, and where it lay then, changes nothing in the model.
_PROVENANCE = frozenset({"transformers_version", "_name_or_path"})
# Constants that older files carry beside the parameters.
_BUFFER = re.compile(
    r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq|position_ids|embeddings\.token_type_ids|final_logits_bias)$"
)
_HUB = re.compile(r"hub:(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def locate(reference: str, base: Path, cache: Path) -> Path:
    """Finds the files of a pretrained model; fetches or converts them when needed.

    Args:
        reference: ``example:NAME``, ``hub:organisation/name[@revision]``, ``./folder``, ``/folder``, or
            ``scratch:./folder`` for new weights.
            Files from the hub go to the hub's own cache; the folder there bears the commit's name.
        base: What a relative folder is relative to: the folder of the sweep file.
        cache: The cache folder, where converted examples are kept.

    Returns:
        A folder with ``config.json``, safetensors and a tokenizer (or an image processor).

    Raises:
        UserError: The reference is none of these, cannot be reached, or holds something else.
    """
    if reference.startswith("example:"):
        return examples.model_folder(reference.removeprefix("example:"), cache)
    if reference.startswith(scratch.PREFIX):
        source = base / Path(reference.removeprefix(scratch.PREFIX)).expanduser()
        return _checked(scratch.model_folder(source.resolve(), cache), reference)
    if reference.startswith("hub:"):
        return _checked(_download(reference), reference)
    if reference.startswith(("./", "../", "/", "~/")) or reference in {".", ".."}:
        return _checked((base / Path(reference).expanduser()).resolve(), reference)
    raise UserError(_unknown(reference, base))


def fingerprint(folder: Path) -> str:
    """Identifies a model by its content: configuration, tokenizer and weights.

    The digest of a weights file is remembered by path, size and time of change, within this process.

    Returns:
        A sha256 in hexadecimal digits.

    Raises:
        UserError: The folder cannot be read as a model.
    """
    config = {key: value for key, value in read_config(folder).items() if key not in _PROVENANCE}
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tokenizer = [folder / name for name in (*TOKENIZER_FILES, _PROCESSOR) if (folder / name).is_file()]
    for file in [*tokenizer, *_weight_files(folder)]:
        status = file.stat()
        digest = _digest(file, status.st_size, status.st_mtime_ns)
        total.update(f"\n{file.name} {digest}".encode())
    return total.hexdigest()


def read_config(folder: Path) -> Mapping[str, object]:
    """Reads ``config.json``.

    Raises:
        UserError: It is missing or not a JSON object.
    """
    return _read_object(folder / "config.json")


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Reads name and shape of all parameters from the headers of the weights; loads no weights.

    Raises:
        UserError: A weights file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = [name for name in tensors.keys() if not _BUFFER.search(name)]  # noqa: SIM118 - no mapping
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}") from error
    return shapes


def _unknown(reference: str, base: Path) -> str:
    forms = "example:NAME, hub:organisation/name[@revision], ./folder or /folder"
    if reference in examples.MODELS:
        hint = f" (did you mean 'example:{reference}'?)"
    elif (base / reference).is_dir():
        hint = f" (did you mean './{reference}'?)"
    elif _HUB.fullmatch(f"hub:{reference}"):
        hint = f" (did you mean 'hub:{reference}'?)"
    else:
        hint = ""
    return f"a model is written as {forms}, but got '{reference}'{hint}"


@functools.lru_cache(maxsize=64)
def _download(reference: str) -> Path:
    """Asks the hub once a process: the commit that a branch led to first is the one for all trials."""
    from huggingface_hub import errors, snapshot_download

    parts = _HUB.fullmatch(reference)
    if parts is None:
        raise UserError(
            f"a model of the hub is written as hub:organisation/name[@revision], but got '{reference}'"
        )
    repository, revision = parts["repository"], parts["revision"]
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(_FETCHED), ignore_patterns=["*/*"]
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{reference}: its owner asks for an agreement first, at the model's page on the hub"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{reference} does not exist, or is private and needs `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{reference}: the hub has no revision '{revision}' of it") from error
    except errors.HFValidationError as error:
        raise UserError(f"{reference} is no name that the hub knows: {_first_line(error)}") from error
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise UserError(f"{reference} cannot be reached: {_first_line(error.__cause__ or error)}") from error
    return Path(folder)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _checked(folder: Path, reference: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"model {reference}: there is no folder {folder}")
    names = sorted(entry.name for entry in folder.iterdir())
    if "config.json" not in names:
        raise UserError(_lacks(reference, folder, "config.json", names))
    if WEIGHTS not in names and INDEX not in names:
        raise UserError(_lacks(reference, folder, f"{WEIGHTS} (pickled weights are not read)", names))
    if not {*TOKENIZER_FILES, _PROCESSOR}.intersection(names):
        raise UserError(
            _lacks(
                reference,
                folder,
                f"tokenizer.json or other file of a tokenizer, nor {_PROCESSOR} of pictures",
                names,
            )
        )
    return folder


def _lacks(reference: str, folder: Path, what: str, names: Iterable[str]) -> str:
    shown = list(names)
    there = ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
    return f"model {reference}: {folder} has no {what}; it holds {there or 'nothing'}"


def _read_object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of a model in the order of their names: one, or the shards that its index lists."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    index = folder / INDEX
    shards = _read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} must map parameters to files under weight_map, but has {shards!r}")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{index} names the weights file '{name}', which is not in {folder}")
    return tuple(folder / name for name in names)


@functools.lru_cache(maxsize=1024)
def _digest(file: Path, size_bytes: int, changed_ns: int) -> str:  # noqa: ARG001 - part of what is remembered
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
