"""The finished sweep, and the same with its best trial promoted; each test has a copy of its own."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from finetune_sweep.layout import Layout
from finetune_sweep.promote import Options
from tests.promotion.finished_sweep import Opened, P, R, Trained, hold, train


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(
        tmp_path_factory.mktemp("template"), "source: ./rows.csv\n  split: {validation: 0.2, test: 0.2}"
    )


@pytest.fixture
def trained(template: Trained, tmp_path: Path) -> Trained:
    layout = Layout(tmp_path / "runs", template.layout.sweep)
    shutil.copytree(template.layout.root, layout.root)
    return Trained(template.plan, layout)


@pytest.fixture
def sweep(trained: Trained) -> Iterator[Opened]:
    with hold(trained) as held:
        yield held


@pytest.fixture(scope="session")
def promoted_template(template: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The best trial promoted, with the work done in another process."""
    layout = Layout(tmp_path_factory.mktemp("promoted") / "runs", template.layout.sweep)
    shutil.copytree(template.layout.root, layout.root)

    def in_the_pool(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return pool.submit(function, *args, **kwargs).result()

    spawn = multiprocessing.get_context("spawn")
    with hold(Trained(template.plan, layout)) as held, ProcessPoolExecutor(1, spawn) as pool:
        held.promote(
            in_the_pool, Options(command="finetune-sweep run tiny.yaml --tracking-uri http://me:pw@host")
        )
    return Trained(template.plan, layout)


@pytest.fixture
def promoted(promoted_template: Trained, tmp_path: Path) -> Iterator[Opened]:
    layout = Layout(tmp_path / "promoted" / "runs", promoted_template.layout.sweep)
    shutil.copytree(promoted_template.layout.root, layout.root)
    with hold(Trained(promoted_template.plan, layout)) as held:
        yield held
