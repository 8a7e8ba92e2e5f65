from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from finetune_sweep import plan, yamlio
from finetune_sweep.record import SweepRecord
from finetune_sweep.sweepfile import load_sweep, training_of

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
TRIALS: Mapping[str, int] = {
    "bert": 12,
    "bert_paper": 54,
    "bert_random": 20,
    "choose_model": 8,
    "bert_hub": 36,
    "augmentation": 8,
    "unfreezing": 20,
    "keras_recipe": 1,
    "layer_strategies": 18,
    "lora": 17,
    "mnist": 2,
    "mnist_hub": 9,
    "emoji": 2,
    "captions_hub": 4,
    "scenes": 2,
    "scenes_hub": 4,
    "addresses": 4,
    "addresses_hub": 4,
    "pairs": 2,
    "pairs_hub": 6,
    "places": 2,
    "places_hub": 6,
    "pronunciations": 2,
    "summaries": 2,
    "summaries_hub": 4,
    "smollm2": 2,
    "smollm2_hub": 4,
    "bert_tpe": 0,  # they follow from the results
}


def spaces_of(sweep: Path) -> set[Path]:
    """The files that a sweep's `space` names."""
    document = yamlio.load(sweep).value
    assert isinstance(document, dict)
    space = document.get("space", [])
    parts = space if isinstance(space, list) else [space]
    return {(sweep.parent / part).resolve() for part in parts if isinstance(part, str)}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("reading a sweep file asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_sweep_is_known_here() -> None:
    assert {sweep.stem for sweep in SWEEPS} == set(TRIALS)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_sweep_loads_and_has_its_number_of_trials(file: Path) -> None:
    sweep = load_sweep(file, (), plan.check_words)
    configurations = list(plan.configurations(sweep, SweepRecord()))
    assert sweep.name == file.stem
    assert len(configurations) == TRIALS[file.stem]
    for config in configurations:
        training_of(sweep, config)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_sweep_is_commented_and_short(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 25


def test_every_search_space_is_used_by_a_sweep() -> None:
    assert set().union(*map(spaces_of, SWEEPS)) == set(SPACES)


def test_the_quick_sweep_stays_quick() -> None:
    sweep = load_sweep(ROOT / "sweeps" / "bert.yaml")
    limit = sweep.data.limit
    assert limit is not None
    assert (limit.train or 0) <= 600
    assert (limit.validation or 0) <= 256
    assert sweep.training.lr_schedule.type == "constant"
