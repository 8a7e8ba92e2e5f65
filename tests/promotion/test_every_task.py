"""For every task: a trained model is promoted, loaded by its card's own lines, registered, and served by MLflow."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from finetune_sweep import promote, registry, yamlio
from finetune_sweep.events import Tracked
from finetune_sweep.layout import VALIDATION_PREDICTIONS, Layout
from finetune_sweep.mlflow_store import make_client
from finetune_sweep.mlflow_uri import artifact_location, tracking_uri
from finetune_sweep.plan import make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.tasks import TASKS, wording
from finetune_sweep.tasks.arrays import Predictions
from finetune_sweep.tasks.contract import changeable_columns
from finetune_sweep.tasks.writing import Writing
from finetune_sweep.train import scratch
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded, planned_data
from finetune_sweep.tune.worker import run_unit
from tests.promotion.finished_sweep import Opened, Trained, here, hold
from tests.tasks.models import CASES, as_written

if TYPE_CHECKING:
    from datasets import Dataset

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SWEEP = """
name: tiny
task: {task}
model: ./model
data: {{source: ./rows.parquet, max_length: 16, split: {{validation: 0.25, test: 0.25}}}}
metric: loss
training: {{learning_rate: 1e-2, epochs: 2, freeze_depth: 1, batch_size: 4, precision: fp32}}
storage: ./runs
cache: ./cache
tracking: {{registered_model: tiny}}
selection: {{robustness: true}}
"""


SEARCH: Final = {"num_beams": 3, "min_length": 9, "no_repeat_ngram_size": 1, "repetition_penalty": 5.0}
"""How pretrained folders say that their models search for other texts than those they are fine-tuned for."""


def trained(
    task: str, folder: Path, rows: Dataset | None = None, model: Callable[[Path], object] | None = None
) -> Trained:
    (model or CASES[task].model)(folder / "model")
    if isinstance(TASKS[task], Writing):
        settings = folder / "model" / "generation_config.json"
        said = json.loads(settings.read_text()) if settings.exists() else {}
        settings.write_text(json.dumps({**said, **SEARCH, "forced_bos_token_id": 3}))
    as_written(rows or CASES[task].train).to_parquet(str(folder / "rows.parquet"))
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


def serve(opened: Opened) -> Any:  # noqa: ANN401 - a model of MLflow
    """Registers what was promoted, and loads it as a server does."""
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
        return mlflow.pyfunc.load_model("models:/tiny@champion")


def numbers(opened: Opened, *texts: str) -> list[float]:
    """What the promoted model says of a text, or of two, cut as in training."""
    folder = str(opened.layout.best)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(*texts, truncation=True, max_length=16, return_tensors="pt")
    logits = model(**given).logits[0]
    found = logits.sigmoid() if opened.plan.sweep.task == "text-tagging" else logits
    return [float(number) for number in found.detach()]


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
        served = serve(opened)
        answer = served.predict(served.input_example)
    classes = set(opened.plan.classes)
    match TASKS[task].pipeline:
        case "token-classification":
            assert set(str(answer[0]).split(",")) <= classes
        case "image-classification":
            assert answer.iloc[0, 0]["label"] in classes
        case "object-detection":
            assert {box["label"] for of_row in answer for box in of_row} <= classes
        case "text-generation":
            assert isinstance(answer[0], str)
        case "text2text-generation" | "image-to-text":
            check_written(opened, served)
        case _:
            check_texts(opened, served)


def check_written(opened: Opened, served: Any) -> None:  # noqa: ANN401 - a model of MLflow
    """What is served writes the very texts that the metrics were measured on."""
    (winner, *_) = opened.ranking
    folder = opened.layout.predictions(winner.key, promote.epoch_of(winner))
    evaluated = wording.texts_of(Predictions.load(folder / VALIDATION_PREDICTIONS).values)
    rows = planned_data(opened.plan).splits["validation"]
    if "image" in rows.column_names:
        given = [base64.b64encode(content).decode() for content in rows["image"]]
    else:
        given = list(rows["text"])
    assert any(evaluated)
    assert served.predict(given) == evaluated


def test_a_model_of_few_positions_writes_no_farther(tmp_path: Path) -> None:
    def tiny_bart(folder: Path) -> None:
        shutil.copytree(scratch.model_folder(ROOT / "sweeps" / "tiny_bart", folder.parent / "new"), folder)

    with hold(trained("text-to-text", tmp_path, model=tiny_bart)) as opened:
        opened.promote(here)
        served = serve(opened)
    settings = json.loads((opened.layout.best / "generation_config.json").read_text())
    assert 0 < settings["max_new_tokens"] <= opened.plan.sweep.data.max_length < 64
    assert isinstance(served.predict(["a b c " * 100])[0], str)  # its 64 positions are those of a text, too
    check_written(opened, served)


def check_texts(opened: Opened, served: Any) -> None:  # noqa: ANN401 - a model of MLflow
    """What is served says of texts what the model says; also of those that are too long, or read like Python."""
    if opened.plan.sweep.task == "text-tagging":
        texts = ["a b c", "12", "d " * 40]
        found = [{one["label"]: one["score"] for one in of_text} for of_text in served.predict(texts)]
        expected = [dict(zip(opened.plan.classes, numbers(opened, text), strict=True)) for text in texts]
        assert found == [pytest.approx(each, abs=1e-6) for each in expected]
        return
    pairs = [("a b", "c"), ("a b", "d e f d e f"), ("a " * 40, "b")]
    answer = served.predict([{"text": text, "text_pair": other} for text, other in pairs])
    assert list(answer["label"]) == ["number"] * 3
    assert list(answer["score"]) == pytest.approx([numbers(opened, *pair)[0] for pair in pairs], abs=1e-6)
    assert answer["score"][0] != pytest.approx(answer["score"][1], abs=1e-4)
    assert '"text_pair": "Another."' in opened.card()


def test_of_tagged_pictures_all_classes_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = CASES["image-tagging"].train.remove_columns("labels")
    rows = rows.add_column("labels", [[f"{row % 7}", f"{row % 5}"] for row in range(len(rows))])
    with hold(trained("image-tagging", tmp_path, rows)) as opened:
        opened.promote(here)
        served = serve(opened)
        monkeypatch.chdir(opened.layout.root)
        Path("picture.png").write_bytes(rows["image"][0])
        said: list[Any] = []
        exec(re.findall(r"```python\n(.*?)```", opened.card(), re.DOTALL)[0], {"print": said.append})  # noqa: S102
    answer = served.predict([base64.b64encode(rows["image"][0]).decode()])
    found = {one["label"]: one["score"] for one in answer.iloc[0]}
    model = AutoModelForImageClassification.from_pretrained(str(opened.layout.best))
    of_pictures: Any = AutoImageProcessor
    processor = of_pictures.from_pretrained(str(opened.layout.best))
    given = processor(Image.open(opened.layout.root / "picture.png").convert("RGB"), return_tensors="pt")
    expected = dict(zip("0123456", model(**given).logits[0].sigmoid().tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-6)
    assert {one["label"]: one["score"] for one in said[0]} == pytest.approx(expected, abs=1e-6)
