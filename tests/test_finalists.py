"""The last round as a user sees it, with real Ray and real training; and who is in it, from plan and journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from finetune_sweep.events import Decided, Evaluated, TrialEnded
from finetune_sweep.journal import read
from tests.commands import command, layout, status

if TYPE_CHECKING:
    from tests.conftest import WriteSweep

SPACE = "{learning_rate: [1e-3, 1e-2, 3e-2], epochs: [1, 2]}"


def test_the_winner_is_chosen_on_fresh_seeds_and_only_what_is_new_is_run(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(space=SPACE, extra="selection: {finalists: 2, seeds: 2}\n")

    first = command("run", sweep, cwd=sweep.parent)
    assert (first.code, first.err) == (0, "")
    assert "6 runs on fresh seeds: 2 finalists and the baseline" in first.out
    seen = status(sweep)
    stages = [trial["stage"] for trial in seen["trials"]]
    assert [stages.count(name) for name in ("search", "finalist", "baseline")] == [6, 4, 2]
    assert {trial["state"] for trial in seen["trials"]} == {"finished"}
    verdict = seen["verdict"]
    by_key = {trial["key"]: trial for trial in seen["trials"]}
    assert by_key[verdict["winner"]]["stage"] in {"finalist", "baseline"}
    assert by_key[verdict["baseline"]]["stage"] == "baseline"
    assert verdict["sentence"] in " ".join(first.out.split())
    results = json.loads((layout(sweep).best / "eval_results.json").read_text())
    assert results["key"] == verdict["winner"]
    assert verdict["sentence"] in (layout(sweep).best / "README.md").read_text()

    again = command("run", sweep, cwd=sweep.parent)
    assert again.code == 0
    assert status(sweep)["verdict"] == verdict
    events = [entry.event for entry in read(layout(sweep))]
    assert sum(isinstance(event, Decided) for event in events) == 1
    trained = {event.key for event in events if isinstance(event, TrialEnded)}

    (layout(sweep).root / "predictions" / verdict["winner"]).rename(layout(sweep).root / "lost")
    more = command("run", sweep, "--set", "selection.seeds=3", cwd=sweep.parent)
    assert more.code == 0, more.err
    assert "3 runs on fresh seeds" in more.out
    events = [entry.event for entry in read(layout(sweep))]
    ended = [event.key for event in events if isinstance(event, TrialEnded)]
    assert len(ended) == len(set(ended)) == len(trained) + 3
    evaluated = [(key, event.epoch) for event in events if isinstance(event, Evaluated) for key in event.keys]
    assert len(evaluated) == len(set(evaluated))
