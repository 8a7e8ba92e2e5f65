"""What the frozen part of a model makes of each text, computed once and kept: for all trials, workers and sweeps.

States are those after the embeddings and some blocks, for every token of a split; after the last block only those of
the token that the head reads. They lie in the cache folder under what they depend on, as float32: that is what flows
between blocks in either precision, so what reads them computes as if it had just made them. A copy is made by one
process while others wait for it, from a copy after fewer blocks if there is one; it is checked by its hashes when a
process opens it first. The copies that were not used for the longest time make room for new ones, but for those that a
process has open: while they are mapped, their bytes stay on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from finetune_sweep.durable import MANIFEST, folder_aside, remove_folder
from finetune_sweep.tasks.arrays import Encoded, Ragged
from finetune_sweep.tasks.contract import Task
from finetune_sweep.train import data, hardware
from finetune_sweep.train.architecture import Architecture, Depth
from finetune_sweep.train.data import hash_of, is_sound, sole_owner
from finetune_sweep.train.memory import in_halves
from finetune_sweep.train.packing import STATES, Body, pack
from finetune_sweep.train.transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

_FORMAT: Final = 1  # raised when the states of a copy mean something else
_ROWS: Final = (
    64  # computed at once, always the same ones: else a copy is not kept, as its last digits would differ
)
_BYTES: Final = 4
_VALUES: Final = f"{STATES}.values.npy"
_Files = frozenset[tuple[str, int, int, int]]
"""Of a copy: names, inodes, bytes, and when they were written."""
_checked: Final[dict[Path, _Files]] = {}
"""The copies whose hashes this process has seen to be right."""
_in_parts: Final[set[Path]] = set()
"""The copies for which this process lacks the memory: they are not tried again."""


@dataclass(frozen=True)
class Place:
    """Where copies of a split's states lie, and how much room they may take.

    Args:
        folder: The part of the cache that is for states.
        identity: Of the model, the split and the length at which texts are cut.
        cap_bytes: All copies together take at most so much.
        min_free_bytes: So much of the disk stays free.
    """

    folder: Path
    identity: tuple[str, str, int]
    cap_bytes: int
    min_free_bytes: int


@dataclass(frozen=True)
class Source:
    """What states are computed with.

    Args:
        task: What makes batches.
        encoded: The split.
        model: With its pretrained tensors, on its device.
        arch: Where its parts are; it must be able to pack.
        precision: `fp32` or `bf16`.
    """

    task: Task
    encoded: Encoded
    model: PreTrainedModel
    arch: Architecture
    precision: str

    @property
    def pad_token_id(self) -> int:
        """What fills the rows of a batch."""
        return int(self.model.config.pad_token_id or 0)


def blocks_to_keep(depth: Depth) -> int | None:
    """After how many blocks states are kept for trials of a depth; None where that would spare nothing."""
    return depth if isinstance(depth, int) and depth > 0 else None


def with_states(source: Source, blocks: int, place: Place) -> Encoded | None:
    """A split with its states as the column `states`, computed or found; mapped into memory.

    Args:
        source: What computes them.
        blocks: How many blocks the states have behind them, at least 1.
        place: Where they are kept.

    Returns:
        None if they take more room than they may, or memory runs out; one state for each text is then held in memory.

    Raises:
        StorageError: If the disk refuses.
        TrialError: `out_of_memory` if the states of one row are too much.
    """
    home = place.folder / hash_of([_FORMAT, data.FORMAT, *place.identity, *_circumstances(source)])
    target = home / _name(source, blocks)
    with sole_owner(target):
        if not _is_whole(target):
            if target in _in_parts:
                return _in_memory(source, blocks, home)
            _remove_remains(target)
            try:
                with folder_aside(target) as aside:
                    _write(source, blocks, aside, home, place)
            except _NotKeptError as reason:
                if isinstance(reason, _InPartsError):
                    _in_parts.add(target)
                return _in_memory(source, blocks, home)
            _checked[target] = _files(target)
        os.utime(target / MANIFEST)
        states = _opened(target).columns[STATES]
    return Encoded({**source.encoded.columns, STATES: states})


def is_in_memory(encoded: Encoded) -> bool:
    """Whether the states of a split are in memory alone, and would have to be computed again."""
    column = encoded.columns.get(STATES)
    return isinstance(column, Ragged) and column.values.flags.owndata


class _NotKeptError(Exception):
    """A copy has no room, or could not be computed as it always is."""


class _InPartsError(_NotKeptError):
    """Memory ran out, so that a batch had to be computed in parts."""


def _name(source: Source, blocks: int) -> str:
    """Of a copy: those with one state a text are told from those with all, which more blocks can start from."""
    return f"{blocks:04d}-read" if blocks == source.arch.blocks else f"{blocks:04d}"


def _in_memory(source: Source, blocks: int, home: Path) -> Encoded | None:
    if blocks < source.arch.blocks:
        return None
    values = np.empty((len(source.encoded), source.arch.width), np.float32)
    for rows, parts in _computed(source, blocks, home):
        values[rows] = np.concatenate(parts)
    return Encoded({**source.encoded.columns, STATES: Ragged(values, np.arange(len(values) + 1))})


def _is_whole(folder: Path) -> bool:
    """Whether a copy is there and its bytes are what was written; a process reads them once, until a file changes."""
    files = _files(folder)
    if _checked.get(folder) == files:
        return True
    is_whole = is_sound(folder)
    if is_whole:
        _checked[folder] = files
    return is_whole


def _files(folder: Path) -> _Files:
    """What tells the files of a copy from changed ones; the time of the manifest is that of the last use."""
    found = [(file.name, file.stat()) for file in folder.glob("*")]
    return frozenset(
        (name, of.st_ino, of.st_size, 0 if name == MANIFEST else of.st_mtime_ns) for name, of in found
    )


def _opened(folder: Path) -> Encoded:
    """A copy, mapped; nobody deletes it until its states are let go of. Its lock is to be held by the caller."""
    copy = Encoded.load(folder)
    descriptor = os.open(folder / _VALUES, os.O_RDONLY)
    weakref.finalize(copy.columns[STATES], os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return copy


def states_of(encoded: Encoded, rows: NDArray[np.int64]) -> torch.Tensor | None:
    """The states of some rows end to end, shape `(tokens, hidden)`; None for a split without."""
    column = encoded.columns.get(STATES)
    if not isinstance(column, Ragged):
        return None
    if len(column.values) == len(column):  # one state for each row
        return torch.from_numpy(column.values[rows])
    return torch.from_numpy(np.concatenate([column[int(row)] for row in rows]))


def _circumstances(source: Source) -> list[str]:
    """What else decides on the digits of a state."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")]
    computer = hardware.computer(source.model.device.type)
    return [source.task.name, source.precision, source.model.device.type, computer, *versions]


def _lengths(source: Source, blocks: int) -> NDArray[np.int64]:
    """States of each row."""
    return (
        np.ones(len(source.encoded), np.int64) if blocks == source.arch.blocks else source.encoded.lengths()
    )


def _bytes(source: Source, blocks: int) -> int:
    return int(_lengths(source, blocks).sum()) * source.arch.width * _BYTES


def _write(source: Source, blocks: int, folder: Path, home: Path, place: Place) -> None:
    offsets = np.concatenate(([0], np.cumsum(_lengths(source, blocks))))
    shape = (int(offsets[-1]), source.arch.width)
    file = folder / _VALUES
    with sole_owner(place.folder / "room"):  # from here on the file counts
        if not _make_room(_bytes(source, blocks), place):
            raise _NotKeptError
        values = np.lib.format.open_memmap(file, "w+", np.float32, shape)
        _allocate(file)
    for rows, parts in _computed(source, blocks, home):
        if len(parts) > 1:
            raise _InPartsError
        (states,) = parts
        start = 0
        for row in rows:
            end = start + int(offsets[row + 1] - offsets[row])
            values[offsets[row] : offsets[row + 1]] = states[start:end]
            start = end
    values.flush()
    np.save(folder / f"{STATES}.offsets.npy", offsets)


def _allocate(file: Path) -> None:
    """Takes the disk space of a file that is one long hole: where there is none, that is told now."""
    if hasattr(os, "posix_fallocate"):  # Linux
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _computed(
    source: Source, blocks: int, home: Path
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.float32]]]]:
    """States of all rows, batch by batch; in more than one part where memory ran out."""
    first, before = _shallower(blocks, home)
    model, encoded = source.model, source.encoded
    model.eval()  # type: ignore[no-untyped-call]  # transformers'
    body = Body(model, source.arch, first, blocks)
    order = np.argsort(encoded.lengths(), kind="stable")

    def compute(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        batch = source.task.collate(encoded, rows, source.pad_token_id)
        packed = pack(batch, source.arch, source.pad_token_id, str(model.device))
        given = None if before is None else states_of(before, rows)
        with (
            torch.inference_mode(),
            torch.autocast(model.device.type, torch.bfloat16, enabled=source.precision == "bf16"),
        ):
            states = body(packed, None if given is None else to_device(given, model.device))
        if blocks == source.arch.blocks:
            states = states.index_select(0, packed.read)
        return states.float().cpu().numpy()

    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        yield rows, in_halves(rows, compute, "computing the states of frozen blocks")


def _shallower(blocks: int, home: Path) -> tuple[int | None, Encoded | None]:
    """The whole copy with the most blocks behind it below `blocks`."""
    for fewer in range(blocks - 1, 0, -1):
        folder = home / f"{fewer:04d}"
        if not folder.exists():
            continue
        with sole_owner(folder):  # nobody takes it away before it is mapped
            if _is_whole(folder):
                return fewer, _opened(folder)
    return None, None


def _make_room(needed_bytes: int, place: Place) -> bool:
    """Removes what was not used for the longest time until the copy fits; if it cannot fit, False and nothing else.

    Copies that others are making count with their whole size. To be called by one process at a time.
    """
    sizes = {folder: _size(folder) for folder in place.folder.glob("*/*") if folder.is_dir()}
    used, found = sum(sizes.values()), 0
    missing = _missing(needed_bytes, used, place)
    unused: list[Path] = []
    for folder in sorted(sizes, key=_used_at):
        if found >= missing:
            break
        with contextlib.ExitStack() as locks:
            if _hold(folder, locks):
                unused.append(folder)
                found += sizes[folder]
    if found < missing:
        return False
    used -= sum(sizes[folder] for folder in unused if _remove_unused(folder))
    return _missing(needed_bytes, used, place) <= 0


def _missing(needed_bytes: int, used_bytes: int, place: Place) -> int:
    """The bytes that have to go before a copy fits; none where that is not above 0."""
    free = shutil.disk_usage(place.folder).free
    return max(used_bytes + needed_bytes - place.cap_bytes, needed_bytes + place.min_free_bytes - free)


def _used_at(folder: Path) -> float:
    """When a copy was used last; one that is gone, or has no manifest, was never."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / MANIFEST).stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    """The bytes of a copy; what vanishes in the meantime takes none."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for file in folder.iterdir():
            total += file.stat().st_size
    return total


def _hold(folder: Path, locks: contextlib.ExitStack) -> bool:
    """Takes the locks of a copy; False if a process makes, opens or reads it.

    Also of what a process left that was killed while it made one: `folder_aside` names it `.NAME.PID.tmp`.
    """
    name = folder.name.split(".")[1] if folder.name.startswith(".") else folder.name
    try:
        for path, mode in ((folder.with_name(f"{name}.lock"), "wb"), (folder / _VALUES, "r+b")):
            fcntl.flock(locks.enter_context(path.open(mode)), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True  # it has no states yet, or none any more: nobody reads them
    except BlockingIOError:
        return False
    return True


def _remove_unused(folder: Path) -> bool:
    """Deletes a copy unless it is in use."""
    with contextlib.ExitStack() as locks:
        is_unused = _hold(folder, locks)
        if is_unused:
            remove_folder(folder)
    return is_unused


def _remove_remains(target: Path) -> None:
    """Deletes what a process that was killed in the middle has left."""
    for folder in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
