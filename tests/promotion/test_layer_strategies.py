"""What strategies for the pretrained blocks made is promoted: a plain model, and a card that says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from finetune_sweep import yamlio
from finetune_sweep.layout import Layout
from finetune_sweep.plan import make_plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.train.weights import read_config
from finetune_sweep.tune.assignment import Assignment
from finetune_sweep.tune.loaded import Loaded
from finetune_sweep.tune.worker import run_unit
from tests.promotion.finished_sweep import Trained, here, hold
from tests.promotion.test_every_task import serve
from tests.tasks.models import CASES

SWEEP = """
name: tiny
task: {task}
model: ./model
data: {{source: ./rows.parquet, max_length: 16, split: {{validation: 0.25, test: 0.25}}}}
space: {space}
metric: loss
training: {{learning_rate: 1e-2, epochs: 2, batch_size: 4}}
storage: ./runs
cache: ./cache
"""


def trained(space: str, folder: Path, task: str = "text-classification") -> Trained:
    CASES[task].model(folder / "model")
    CASES[task].train.to_parquet(str(folder / "rows.parquet"))
    (folder / "tiny.yaml").write_text(SWEEP.format(space=space, task=task))
    sweep = load_sweep(folder / "tiny.yaml")
    plan = make_plan(sweep)
    done = Trained(plan, Layout(Path(sweep.storage or ""), sweep.name))
    torch.set_num_threads(1)
    loaded = Loaded(plan)
    with hold(done) as held:
        done.layout.resolved.write_text(yamlio.dump({"name": sweep.name}))
        held.journal.append(*plan.events())
        for unit in plan.units:
            for events in run_unit(Assignment(unit), plan, done.layout, loaded):
                held.journal.append(*events)
    return done


@pytest.mark.parametrize(
    ("space", "said", "blocks"),
    [
        ("{drop_layers: [1], freeze_depth: [all]}", "`freeze_depth` all, `drop_layers` 1.", 1),
        (
            "{lora: [{r: 2, target_modules: all-linear}], reinit_layers: [1]}",
            "`reinit_layers` 1, `lora` r 2, ",
            2,
        ),
        ("{shrink_perturb: [0.5], reinit_pooler: [true]}", "`reinit_pooler` true, `shrink_perturb` 0.5.", 2),
        (
            "{freeze_depth: [all], unfreeze: [{}]}",
            "`freeze_depth` all, `unfreeze` every_epochs 1, blocks 1, to_depth 0.",
            2,
        ),
        (
            "{linear_probe: [{}], l2_sp: [0.1], layerwise_lr_decay: [0.9]}",
            "`linear_probe` epochs 1, learning_rate 0.001, `l2_sp` 0.1, `layerwise_lr_decay` 0.9.",
            2,
        ),
    ],
)
def test_what_was_trained_is_promoted_as_a_plain_model(
    space: str, said: str, blocks: int, tmp_path: Path
) -> None:
    with hold(trained(space, tmp_path)) as opened:
        opened.promote(here)  # verified: the folder gives the recorded metrics, to the last digit
        card = opened.card()
    assert "**What was done to the pretrained blocks.** " + said in card
    model, info = AutoModelForSequenceClassification.from_pretrained(
        opened.layout.best, output_loading_info=True
    )
    assert model.config.num_hidden_layers == blocks
    assert not any(info.values())


@pytest.mark.parametrize(
    "task", ["text-to-text", "causal-lm", "token-classification", "image-classification"]
)
def test_models_of_every_kind_of_task_are_promoted_without_a_block_and_with_adapters(
    task: str, tmp_path: Path
) -> None:
    with hold(trained("{drop_layers: [1], lora: [{r: 2}]}", tmp_path, task)) as opened:
        opened.promote(here)  # verified, as above
        config = read_config(opened.layout.best)
    blocks = [config[key] for key in ("num_hidden_layers", "n_layer", "num_decoder_layers") if key in config]
    assert blocks == [1]


@pytest.mark.parametrize("task", ["text-classification", "text-regression"])
def test_another_head_is_promoted_with_its_code_loaded_by_the_lines_of_the_card_and_served(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = "{pooling: [mean], head: [mlp], drop_layers: [1], lora: [{r: 2}]}"
    with hold(trained(space, tmp_path, task)) as opened:
        opened.promote(here)  # verified, as above
        lines = re.findall(r"```python\n(.*?)```", opened.card(), re.DOTALL)[0]
        assert 'from_pretrained("./best", trust_remote_code=True)' in lines
        assert {"pooled.py", "config.json"} <= {file.name for file in opened.layout.best.iterdir()}
        monkeypatch.chdir(opened.layout.root)
        names: dict[str, Any] = {}
        exec(lines, names)  # noqa: S102 - our own card
        assert len(names["predict"]("a b")) == 1
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForSequenceClassification.from_pretrained(opened.layout.best, trust_remote_code=False)
        given = {"text": "a b", "text_pair": "a"} if task == "text-regression" else "a b"
        assert len(serve(opened).predict([given])) == 1


def test_trials_of_several_strategies_do_not_disturb_each_other_and_the_card_compares(tmp_path: Path) -> None:
    """In one process, with a model that is loaded once: each comes to what it comes to alone."""
    together, apart = tmp_path / "together", tmp_path / "apart"
    together.mkdir()
    apart.mkdir()
    space = "{{drop_layers: [{}], lora.r: [{}]}}"
    with hold(trained(space.format("0, 1", "2, 0"), together)) as opened:
        opened.promote(here)
        card, ranking = opened.card(), opened.journal.record.ranking()
    assert len(ranking) == 4
    assert " from the best trial with another strategy (drop_layers=" in card
    assert "That is one seed each, so it may be noise" in card
    with hold(trained(space.format("0", "0"), apart)) as opened:
        (alone,) = opened.journal.record.ranking()
    assert {trial.key: trial.score for trial in ranking}[alone.key] == alone.score


def test_trials_that_hold_on_to_their_weights_in_other_ways_have_other_strategies(tmp_path: Path) -> None:
    with hold(trained("{l2_sp: [0.0, 0.1]}", tmp_path)) as opened:
        opened.promote(here)
        assert " from the best trial with another strategy (l2_sp=" in opened.card()
