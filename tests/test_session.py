"""What a driver's session does around its steps."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from finetune_sweep import session
from finetune_sweep.display import open_display
from finetune_sweep.errors import UserError
from finetune_sweep.events import TrialEnded, UnitStarted
from finetune_sweep.journal import Journal
from finetune_sweep.lock import SweepLock
from finetune_sweep.mlflow_store import Store
from finetune_sweep.plan import make_plan
from finetune_sweep.session import Session, drive, layout_of
from finetune_sweep.signals import Signals
from finetune_sweep.snapshot import Snapshot
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tracking import Mirror
from finetune_sweep.tune.engine import Engine
from tests.records import WORKER, evaluated

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_sweep.spec import Sweep
    from tests.conftest import WriteSweep

pytestmark = pytest.mark.usefixtures("environment_as_before")
RATES = "{learning_rate: {low: 1e-4, high: 1e-2}, epochs: [1]}"


def late_after(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, first_s: float = 60.0) -> int:
    """How many runs MLflow lacks after 200 trials were journalled and it was waited for, five seconds without news."""
    monkeypatch.setattr(session, "_MIRROR_TIMEOUT_S", 5.0)
    monkeypatch.setattr(session, "_MIRROR_SLICE_S", 0.25)
    deliver = Store.deliver

    def slowly(self: Store, key: str, snapshot: Snapshot) -> None:
        time.sleep(0.05)
        deliver(self, key, snapshot)

    monkeypatch.setattr(Store, "deliver", slowly)
    plan, layout = make_plan(sweep), layout_of(sweep)
    with SweepLock(layout) as lock, closing(Journal(layout, lock.owner)) as journal:
        mirror = Mirror(sweep, layout, journal.entries)
        mirror.start()
        journal.append(*plan.events())
        mirror.flush(first_s)  # a new database takes seconds
        for key in (trial.key for trial in plan.trials):
            end = TrialEnded(key, "finished", 1, 1, 0.5)
            journal.append(UnitStarted(key, (key,), WORKER), evaluated((key,), 1, 0.5), end)
        held = Session(plan, layout, journal, Engine(sweep), mirror, open_display(sweep.name), Signals())
        held.deliver()
        return len(mirror.close(0.0))


def test_mlflow_is_waited_for_as_long_as_it_gets_more(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 runs take ten seconds, and there may be no news for five."""
    sweep = load_sweep(write_sweep(space=RATES, search="{type: random, trials: 200}"))

    assert late_after(sweep, monkeypatch) == 0
    assert capsys.readouterr().out.count("waiting for MLflow") == 1


def test_mlflow_that_is_away_is_not_waited_for_for_ever(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = {"tracking.uri": f"http://127.0.0.1:{port}"}
    sweep = load_sweep(write_sweep(space=RATES, search="{type: random, trials: 3}"), options=options)

    assert late_after(sweep, monkeypatch, first_s=1.0) == 4


def test_a_session_starts_ray_at_once_unless_the_last_one_was_complete(write_sweep: WriteSweep) -> None:
    sweep = load_sweep(write_sweep(), options={"storage": str(write_sweep().parent / "runs")})
    started = []

    def steps(_session: Session) -> int:
        started.append("ray" in {thread.name for thread in threading.enumerate()})
        return 1 if len(started) == 1 else 0

    for _ in range(3):
        drive(sweep, None, steps)

    assert started == [True, True, False]


def test_a_mistake_in_the_data_is_told_and_ray_which_was_starting_is_ended(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("review,verdict\n", encoding="utf-8")
    sweep = load_sweep(write_sweep(data=str(tmp_path / "empty.csv")))

    with pytest.raises(UserError, match=r"empty\.csv"):
        drive(sweep, None, lambda _: 0)

    assert "ray" not in {thread.name for thread in threading.enumerate()}
