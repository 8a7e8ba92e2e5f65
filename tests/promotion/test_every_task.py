"""For every task: a trained model is promoted, loaded by its card's own lines, registered, and served by MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_sweep import registry, yamlio
from finetune_sweep.events import Tracked
from finetune_sweep.layout import Layout
from finetune_sweep.mlflow_store import make_client
from finetune_sweep.mlflow_uri import artifact_location, tracking_uri
from finetune_sweep.plan import make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import changeable_columns
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit
from tests.promotion.finished_sweep import Opened, Trained, here, hold
from tests.tasks.models import CASES, as_written

SWEEP = """
name: tiny
task: {task}
model: ./model
data: {{source: ./rows.parquet, max_length: 16, split: {{validation: 0.25, test: 0.25}}}}
metric: loss
training: {{learning_rate: 1e-2, epochs: 2, freeze_depth: 1, batch_size: 4}}
storage: ./runs
cache: ./cache
tracking: {{registered_model: tiny}}
selection: {{robustness: true}}
"""


def trained(task: str, folder: Path) -> Trained:
    CASES[task].model(folder / "model")
    as_written(CASES[task].train).to_parquet(str(folder / "rows.parquet"))
    (folder / "tiny.yaml").write_text(SWEEP.format(task=task))
    sweep = load_sweep(folder / "tiny.yaml")
    plan = make_plan(sweep)
    done = Trained(plan, Layout(Path(sweep.storage or ""), sweep.name))
    torch.set_num_threads(1)
    with hold(done) as held:
        done.layout.resolved.write_text(yamlio.dump({"name": sweep.name}))
        held.journal.append(*plan.events())
        for unit in plan.units:
            for events in run_unit(Assignment(unit), plan, done.layout, Loaded(plan)):
                held.journal.append(*events)
    return done


def serve(opened: Opened) -> Any:  # noqa: ANN401 - what a pipeline returns
    """Registers what was promoted, and asks the served model about its own example."""
    import mlflow

    uri = tracking_uri(opened.plan.sweep.tracking.uri, opened.layout.storage)
    client: Any = make_client(uri)
    experiment = client.create_experiment("tiny", artifact_location(uri, opened.layout.storage))
    run = client.create_run(experiment)
    client.set_terminated(run.info.run_id)
    opened.journal.append(Tracked("", run.info.run_id))
    registry.register(opened.plan, opened.journal, opened.layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        served: Any = mlflow.pyfunc.load_model("models:/tiny@champion")
        return served.predict(served.input_example)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"text-classification"}))
def test_a_model_of_the_task_is_promoted_loaded_and_served(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(trained(task, tmp_path)) as opened:
        promoted = opened.promote(here)
        assert promoted.test_metrics.keys() == TASKS[task].metrics.keys()
        is_measured = "## Robustness" in opened.card()
        assert is_measured == bool(changeable_columns(TASKS[task]))  # else all rows would be clean ones
        lines = re.findall(r"```python\n(.*?)```", opened.card(), re.DOTALL)[0]
        monkeypatch.chdir(opened.layout.root)
        Path("picture.png").write_bytes(CASES["image-tagging"].train["image"][0])
        exec(lines, {})  # noqa: S102 - the card's own words
        answer = serve(opened)
    classes = set(opened.plan.classes)
    match TASKS[task].pipeline:
        case "token-classification":
            assert set(str(answer[0]).split(",")) <= classes
        case "image-classification":
            assert answer.iloc[0, 0]["label"] in classes
        case "object-detection":
            assert {box["label"] for of_row in answer for box in of_row} <= classes
        case "text-generation" | "text2text-generation" | "image-to-text":
            assert isinstance(answer[0], str)
        case _:
            assert list(answer.columns) == ["label", "score"]
            assert answer["label"][0] in classes
