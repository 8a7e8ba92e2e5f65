"""Where the files of a sweep lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_sweep.errors import StorageError, UserError

CHANGED_TENSORS: Final = "changed.safetensors"
"""The file in a trial's checkpoint."""
VALIDATION_PREDICTIONS: Final = "validation.npz"
"""The file in the folder of a run's predictions."""


@dataclass(frozen=True)
class Layout:
    """The paths of one sweep.

    Args:
        storage: The folder that holds sweeps, absolute.
        sweep: The sweep's name; it has been checked to be a plain file name.
    """

    storage: Path
    sweep: str

    @property
    def root(self) -> Path:
        """The sweep's folder."""
        return self.storage / self.sweep

    @property
    def lock(self) -> Path:
        """Who drives the sweep."""
        return self.root / "lock"

    @property
    def resolved(self) -> Path:
        """The resolved spec, versions, model and data fingerprints, hardware."""
        return self.root / "sweep.lock.yaml"

    @property
    def journal(self) -> Path:
        """The folder of the journal's segments."""
        return self.root / "journal"

    @property
    def stop(self) -> Path:
        """Stands there while the driver asks its workers to store where they are, and to stop."""
        return self.root / "stop"

    @property
    def best(self) -> Path:
        """The promoted checkpoint, a complete Hugging Face folder."""
        return self.root / "best"

    def within(self, relative: str) -> Path:
        """The folder of a trial's checkpoint that the journal names.

        Raises:
            StorageError: If it leads elsewhere.
        """
        path, trials = self.root / relative, (self.root / "trials").resolve()
        if trials not in path.resolve().parents:
            raise StorageError(
                f"the journal of {self.root} names {relative!r}, which leads out of its trials"
            )
        return path

    def segments(self) -> list[Path]:
        """The journal's segments, oldest first."""
        return sorted(self.journal.glob("[0-9]*.jsonl"))

    def next_segment(self) -> Path:
        """The path of a segment after all that exist."""
        existing = self.segments()
        number = int(existing[-1].stem) + 1 if existing else 1
        return self.journal / f"{number:06d}.jsonl"

    def trial(self, key: str) -> Path:
        """The folder of a trial's checkpoints."""
        return self.root / "trials" / key

    def hang(self, key: str) -> Path:
        """Where a worker that was ended because it hung has written what it was doing."""
        return self.trial(key) / "hang.txt"

    def hangs(self) -> list[Path]:
        """What such workers have left."""
        return sorted(self.root.glob("trials/*/hang.txt"))

    def checkpoint(self, key: str, epoch: int) -> Path:
        """The checkpoint of a trial after an epoch, counted from 1."""
        return self.trial(key) / f"epoch-{epoch:04d}"

    def predictions(self, key: str, epoch: int) -> Path:
        """What the model of a finalist's run said of each validation row after an epoch."""
        return self.root / "predictions" / key / f"epoch-{epoch:04d}"


def parse_storage(reference: str) -> Path:
    """The folder that a storage option names.

    Raises:
        UserError: If it is a store that is not supported yet.
    """
    scheme, separator, rest = reference.partition("://")
    if separator and scheme != "file":
        raise UserError(
            f"storage {scheme}:// is not supported yet, got {reference!r}; give a folder, also a shared one"
        )
    return Path(rest if separator else reference).expanduser().absolute()
