"""Running one pass, and the store of what passes gave, from which an interrupted benchmark goes on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from benchmarks.measure import Figures, measure
from benchmarks.ours import VARIANTS, Phases
from benchmarks.peers.recipe import Outcome, Recipe, read_outcomes
from benchmarks.suite import N0_NOOP_TRIALS, PEERS, ROOT, Pass, workload_file
from finetune_sweep.train import hardware

QUIET_CORES: Final = 0.3
"""With others busy on more cores than this, a pass gives no ratio."""
_SPACES: Final = sorted((ROOT / "search_spaces").glob("*.yaml"))
_FROM_OUTSIDE: Final = ("OMP_", "MKL_", "KMP_", "GOMP_", "RAY_", "MLFLOW_", "TUNE_")
_TAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True)
class Result:
    """What a pass gave.

    Args:
        source: Of which source it is: a result counts only for the one that measured it.
        machine: Processor and number of cores: a result counts only for machines of that kind.
        started: When, as `2026-01-31 23:59`.
        trials: Each with its evaluations.
        phases: Of our own side.
        ended: When the trials of N0's side of W-noop ended.
    """

    name: str
    source: str
    machine: str
    started: str
    figures: Figures
    trials: Sequence[Outcome]
    phases: Phases | None = None
    ended: Sequence[float] = ()

    @property
    def is_quiet(self) -> bool:
        """Whether the machine was left to it."""
        return self.figures.others_cores <= QUIET_CORES


_RESULT: Final = TypeAdapter(Result)


class PassFailed(Exception):  # noqa: N818 - it says what happened
    """A pass did not end as it should; the message has the end of its output."""


class Store:
    """The results of a benchmark, a JSON file for each attempt at a pass, and the folder in which passes work.

    Args:
        folder: Where passes work and what workloads share is kept; made if needed.
        results: Where results are kept; made if needed; `results` in `folder` if None.
        overrides: Changes of every workload, as for `--set`; only to try the benchmark itself. What they give is
            kept apart, in `folder`.
        attempts: How often a pass is tried until the machine is quiet; earlier runs do not count.
        any_source: Whether what another source gave is found too, the newest of each pass; only to look at it.
    """

    def __init__(
        self,
        folder: Path,
        results: Path | None = None,
        overrides: Sequence[str] = (),
        attempts: int = 2,
        *,
        any_source: bool = False,
    ) -> None:
        place = folder.absolute() / f"set-{_digest(*overrides)}" if overrides else folder.absolute()
        self._folder, self._overrides, self._attempts = place, tuple(overrides), attempts
        self._any_source = any_source
        self._tried: Counter[Pass] = Counter()
        self._results = place / "results" if overrides or results is None else results.absolute()
        for made in (self._folder, self._results):
            made.mkdir(parents=True, exist_ok=True)

    def attempts(self, which: Pass) -> list[Result]:
        """The stored attempts at a pass, by the source as it is now, on a machine of this kind."""
        source = "*" if self._any_source else source_of(which)
        files = sorted(self._results.glob(f"{which.name}.{source}.*.json"))
        found = [_RESULT.validate_json(file.read_bytes()) for file in files]
        here = [result for result in found if result.machine == machine()]
        newest = max(here, key=lambda result: result.started, default=None)
        return [result for result in here if newest is not None and result.source == newest.source]

    def result(self, which: Pass) -> Result | None:
        """The attempt that counts: the first quiet one, else the last; None if there is none."""
        attempts = self.attempts(which)
        return next((result for result in attempts if result.is_quiet), attempts[-1] if attempts else None)

    def is_done(self, which: Pass) -> bool:
        """Whether nothing is left to try: a quiet attempt, or as many as are made in one run."""
        return self._tried[which] >= self._attempts or any(r.is_quiet for r in self.attempts(which))

    def run(self, which: Pass) -> Result:
        """Makes an attempt at a pass and stores it.

        Raises:
            PassFailed: If it did not end as it should.
        """
        self._tried[which] += 1
        recipe, folder = self._material(which.workload), self._folder / "pass"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command, hogs = self._command(which, recipe, folder)
        source, started = source_of(which), time.strftime("%Y-%m-%d %H:%M")
        figures = measure(command, environment(folder), folder, hogs=hogs)
        output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        if figures.exit_code:
            raise PassFailed(
                f"{which.name} ended with exit code {figures.exit_code}: {output[-_TAIL_CHARACTERS:]}"
            )
        result = _collect(which, source, started, figures, folder)
        taken = len(list(self._results.glob(f"{which.name}.{result.source}.*.json")))
        file = self._results / f"{which.name}.{result.source}.{taken + 1}.json"
        file.with_suffix(".part").write_bytes(_RESULT.dump_json(result))
        file.with_suffix(".part").rename(file)
        shutil.rmtree(folder, ignore_errors=True)
        return result

    def _command(self, which: Pass, recipe: Recipe, folder: Path) -> tuple[list[str], int]:
        """The command of a pass, and the busy processes beside it."""
        peer, ours = PEERS.get(which.variant), VARIANTS.get(which.variant)
        if peer is not None:
            given = dataclasses.replace(
                recipe,
                bf16=peer.bf16 and (recipe.bf16 or peer.gpu > 0),
                gpu=peer.gpu,
                folder=str(folder),
                tracking_uri=tracking_uri(folder),
                trials=min(recipe.trials, N0_NOOP_TRIALS),
            )
            given.write(folder / "recipe.json")
            return [sys.executable, "-m", f"benchmarks.peers.{peer.module}", str(folder / "recipe.json")], 0
        file = str(workload_file(which.workload))
        line = [sys.executable, "-m", "benchmarks.ours", file, which.variant, recipe.model, str(folder)]
        return [*line, *self._overrides], ours.hogs if ours is not None else 0

    def _material(self, workload: str) -> Recipe:
        """What the passes of a workload share; made by a process of its own when it is first needed."""
        file = workload_file(workload)
        makers = [*sorted((ROOT / "finetune_sweep").rglob("*.py")), ROOT / "benchmarks" / "material.py"]
        folder = self._folder / "material" / f"{workload}-{_digest(*_texts([file, *_SPACES, *makers]))}"
        if not (folder / "recipe.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            line = [sys.executable, "-m", "benchmarks.material", str(file), str(folder)]
            subprocess.run([*line, *self._overrides], env=environment(folder), check=True, cwd=ROOT)
        return Recipe.read(str(folder / "recipe.json"))


def tracking_uri(folder: Path) -> str:
    """The MLflow database of a pass."""
    return f"sqlite:///{folder}/mlflow.db"


def environment(folder: Path) -> dict[str, str]:
    """What every side finds: nothing that steers threads, Ray or MLflow from outside, no network, no telemetry."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FROM_OUTSIDE)}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_TRACKING_URI": tracking_uri(folder),
    }


def source_of(which: Pass) -> str:
    """A digest of the files that a pass depends on: for ours the package, for a peer its scripts."""
    folder = ROOT / "benchmarks" / "peers" if which.variant in PEERS else ROOT / "finetune_sweep"
    modules = [] if which.variant in PEERS else ["ours", "instruments", "workers"]
    own = [ROOT / "benchmarks" / f"{name}.py" for name in modules]
    return _digest(*_texts([*sorted(folder.rglob("*.py")), *own, workload_file(which.workload), *_SPACES]))


@functools.cache
def machine() -> str:
    """The kind of this machine, as far as times depend on it."""
    known = hardware.describe()
    gpu = "" if known["gpu"] == "none" else f", {known['gpu']}"
    return f"{known['processor']}, {known['cores']} cores{gpu}"


def _texts(files: Sequence[Path]) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in files]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def _collect(which: Pass, source: str, started: str, figures: Figures, folder: Path) -> Result:
    """What a pass left in its folder."""
    files = {name: folder / f"{name}.json" for name in ("phases", "ended")}
    texts = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.exists()}
    return Result(
        name=which.name,
        source=source,
        machine=machine(),
        started=started,
        figures=figures,
        trials=read_outcomes(folder) if (folder / "outcomes.json").exists() else [],
        phases=TypeAdapter(Phases).validate_json(texts["phases"]) if "phases" in texts else None,
        ended=json.loads(texts.get("ended", "[]")),
    )
