"""What a user sees of a sweep in MLflow's web pages: a real result, a real server, a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow.entities import Run
    from playwright.sync_api import Locator, Page, ViewportSize

    from tests.conftest import WriteSweep

TIMEOUT_S = 300
PAGE_TIMEOUT_MS = 60_000
SPACE = "{learning_rate: [1e-3, 3e-3, 1e-2], epochs: [1, 2]}"
LABELS = {f"learning_rate={rate} epochs={epochs}" for rate in (0.001, 0.003, 0.01) for epochs in (1, 2)}
BROWSER_OPTIONS = [
    "--no-sandbox",  # a container's root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WHEEL = 90  # pixels: two rows of the six that are drawn
WHEEL_MS = 300
WIDE: ViewportSize = {"width": 9000, "height": 1200}  # columns that are out of sight are not drawn
NORMAL: ViewportSize = {"width": 1600, "height": 1200}

# The table of runs is drawn as several grids side by side; what belongs together has one row index.
TABLE = """() => {
  const rows = {};
  for (const cell of document.querySelectorAll('.ag-row .ag-cell')) {
    const row = rows[cell.closest('.ag-row').getAttribute('row-index')] ??= {};
    row[cell.getAttribute('col-id')] = cell.innerText.trim().split('\\n').at(-1);
  }
  return Object.values(rows);
}"""

# The metrics to compare are two grids, names and values, of which only what is scrolled to is drawn. In MLflow 3.17
# the names follow one turn of the wheel late, so what belongs together is told by its place in the whole grid.
GRIDS = """(section) => {
  const [names, values] = [...section.querySelectorAll('.ReactVirtualized__Grid__innerScrollContainer')];
  const place = (cell, side) => parseFloat(cell.style[side]);
  return [...names.children].map((name) => [
    name.innerText.trim(),
    [...values.children]
      .filter((cell) => place(cell, 'top') === place(name, 'top'))
      .sort((one, other) => place(one, 'left') - place(other, 'left'))
      .map((cell) => cell.innerText.trim()),
  ]);
}"""
ROWS = """(section) => [...section.querySelectorAll('tr')].map((row) => [
  row.querySelector('th').innerText.trim(),
  [...row.querySelectorAll('td')].map((cell) => cell.innerText.trim()),
])"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """`mlflow server` on the database in a folder; its processes are a group, which ends with it."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--host",
        "127.0.0.1",
        "--workers",
        "1",
    ]
    line = [sys.executable, "-m", "mlflow", "server", *options, "--port", str(port)]
    env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(line, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(url, process, folder / "server.log")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310 - http, on loopback
            return
        time.sleep(0.2)
    pytest.fail(f"mlflow server does not answer:\n{log.read_text()}")


@contextlib.contextmanager
def browser_page(folder: Path, url: str) -> Iterator[Page]:
    """A page of Debian's Chromium that reaches nothing but the server; a failure leaves a picture of it."""
    browser_path = shutil.which("chromium")
    assert browser_path is not None, "there is no chromium: tests/ui/install.sh installs it"
    expect.set_options(timeout=PAGE_TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, headless=True, args=BROWSER_OPTIONS
        )
        page = browser.new_page(viewport=NORMAL)
        page.set_default_timeout(PAGE_TIMEOUT_MS)
        page.route(
            lambda address: address.startswith("http") and not address.startswith(url),
            lambda route: route.abort(),
        )
        try:
            yield page
        except BaseException:
            page.screenshot(path=folder / "failure.png")
            print(f"what the browser showed: {folder / 'failure.png'}")  # noqa: T201 - pytest shows it
            raise
        finally:
            browser.close()


def test_a_sweep_can_be_read_and_compared_in_the_browser(write_sweep: WriteSweep, tmp_path: Path) -> None:
    """One story, since its beginning is slow: the table of runs, the sweep's page, the best four, the model."""
    sweep = write_sweep(space=SPACE)
    line = [sys.executable, "-m", "finetune_sweep", "run", str(sweep)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    with mlflow_server(tmp_path) as url, browser_page(tmp_path, url) as page:
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        start = f"{url}/#/experiments/{experiment.experiment_id}/runs"
        runs = list(client.search_runs([experiment.experiment_id], order_by=["metrics.score DESC"]))
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if run is not parent]
        check_table(page, start, children)
        check_parent(page, f"{start}/{parent.info.run_id}", parent)
        check_comparison(page, url, children[:4])
        check_registered_model(page, url)


def check_table(page: Page, start: str, children: list[Run]) -> None:
    """The sweep is one row, its trials unfold beneath it, and no column has a gap in any of them."""
    page.set_viewport_size(WIDE)
    page.goto(f"{start}?workflowType=machine_learning")
    expect(page.get_by_text("7 matching runs")).to_be_visible()
    parent = page.locator(".ag-row").filter(has=page.get_by_role("link", name="tiny", exact=True)).first
    expect(parent).to_be_visible()
    assert [row["attributes.`Run Name`"] for row in table(page)] == ["tiny"]

    parent.get_by_role("button").first.click()
    for label in LABELS:
        expect(page.get_by_role("link", name=label, exact=True)).to_be_visible()
    page.get_by_role("button", name="Columns", exact=True).click()
    for group in ("Metrics", "Parameters"):
        node = page.locator(".du-bois-light-tree-treenode").filter(has_text=re.compile(rf"^{group} \("))
        node.locator(".du-bois-light-tree-checkbox").click()
    page.keyboard.press("Escape")
    expect(page.locator(".ag-row [col-id='params.`weight_decay`']").first).to_be_visible()

    rows = {row["attributes.`Run Name`"]: row for row in table(page)}
    assert set(rows) == {"tiny", *LABELS}
    assert len({(frozenset(run.data.params), frozenset(run.data.metrics)) for run in children}) == 1
    for run in children:
        row = rows[run.info.run_name]
        for name, value in run.data.params.items():
            assert row[f"params.`{name}`"] == value
        for name, number in run.data.metrics.items():
            assert float(row[f"metrics.`{name}`"]) == pytest.approx(number)
    assert [label for label in LABELS if rows[label]["attributes.`Models`"] == "tiny"] == [
        children[0].info.run_name
    ]


def table(page: Page) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = page.evaluate(TABLE)
    return rows


def check_parent(page: Page, address: str, parent: Run) -> None:
    page.set_viewport_size(NORMAL)
    page.goto(f"{address}?workflowType=machine_learning")
    for label in LABELS:
        expect(page.get_by_role("link", name=label, exact=True)).to_be_visible()
    expect(page.get_by_text("Finished", exact=True)).to_be_visible()
    expect(page.get_by_text("reviews.csv").first).to_be_visible()
    for name in ("best_score", "trials_finished", "test_accuracy"):
        assert name in parent.data.metrics
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def check_comparison(page: Page, url: str, best: list[Run]) -> None:
    """All params and metrics stand there, for each of the runs, also those that are equal."""
    runs = quote(json.dumps([run.info.run_id for run in best]))
    experiments = quote(json.dumps([best[0].info.experiment_id]))
    page.goto(f"{url}/#/compare-runs?runs={runs}&experiments={experiments}")
    expect(page.get_by_text("Comparing 4 Runs from 1 Experiment")).to_be_visible()
    for run in best:
        expect(page.get_by_role("cell", name=run.info.run_name, exact=True)).to_be_visible()

    params: dict[str, list[str]] = dict(section(page, "Parameters").evaluate(ROWS))
    assert params == {name: [run.data.params[name] for run in best] for name in best[0].data.params}
    metrics = scrolled(section(page, "Metrics"))
    assert set(metrics) == set(best[0].data.metrics)
    for name, values in metrics.items():
        expected = [run.data.metrics[name] for run in best]
        assert [float(value) for value in values] == pytest.approx(expected, rel=2e-3, abs=6e-4), name


def section(page: Page, name: str) -> Locator:
    """A part of the comparison, with what is equal in all runs."""
    switch = page.get_by_role("switch", name=f"{name} - Show diff only")
    switch.set_checked(False)
    found = page.locator(".du-bois-light-collapse-content-box").filter(has=switch)
    found.scroll_into_view_if_needed()
    return found


def scrolled(grid: Locator) -> dict[str, list[str]]:
    """The rows of a grid that draws only some of them at a time, read by turning the mouse wheel."""
    rows: dict[str, list[str]] = {}
    values = grid.locator(".ReactVirtualized__Grid").last
    height: int = values.evaluate("grid => grid.scrollHeight")
    values.hover()
    for _ in range(0, height, WHEEL):
        rows |= {name: texts for name, texts in grid.evaluate(GRIDS) if texts}
        grid.page.mouse.wheel(0, WHEEL)
        grid.page.wait_for_timeout(WHEEL_MS)
    return rows


def check_registered_model(page: Page, url: str) -> None:
    page.goto(f"{url}/#/models/tiny")
    version = page.get_by_role("row").filter(has=page.get_by_role("link", name="Version 1", exact=True))
    expect(version).to_contain_text("champion")
    expect(version).to_contain_text("finetune_sweep.validation_accuracy")
