"""Strategies on the models of other tasks than those of a class: pairs, detectors, writers, and heads over words."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from finetune_sweep.phases import opened, phases
from finetune_sweep.settings import Training
from finetune_sweep.tasks import TASKS
from finetune_sweep.train import adapters, weights
from finetune_sweep.train.architecture import describe
from finetune_sweep.train.conflicts import check, resolve
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.packing import PaddedModel
from finetune_sweep.train.pairs import DECODERS, ENCODERS
from finetune_sweep.train.state import Evaluation, Job, LoopState, Stage
from finetune_sweep.train.trainable import count_trained, taken
from tests.tasks.models import CASES, tiny_captioner
from tests.tasks.test_contract import Made
from tests.train.runs import assert_same_weights

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
TASKS_HERE = ("image-captioning", "token-classification", "causal-lm", "text-to-text", "object-detection")
STRATEGIES: Mapping[str, dict[str, object]] = {
    "lora": {"lora": {"r": 2}, "freeze_depth": 1},
    "drop_layers": {"drop_layers": 1},
    "unfreeze": {"freeze_depth": "all", "unfreeze": {}, "epochs": 5},
}
EVERY = [
    (task, "vit-gpt2", strategy)
    for task in TASKS_HERE
    for strategy in STRATEGIES
    if (task, strategy) != ("object-detection", "drop_layers")  # a YOLOS cannot
]
QUICK = {("dinov2", "bert", "drop_layers"), ("vit", "xlm-roberta", "lora"), ("dinov2", "roberta", "unfreeze")}
PAIRS = [
    pytest.param(
        ("image-captioning", f"{reads}-{writes}", strategy),
        marks=() if (reads, writes, strategy) in QUICK else pytest.mark.slow,
        id=f"{reads}-{writes}-{strategy}",
    )
    for reads in ENCODERS
    for writes in DECODERS
    for strategy in STRATEGIES
    if (reads, writes) != ("vit", "gpt2")
]


@dataclass(frozen=True)
class Run:
    """A training that was not interrupted, and how to begin it again."""

    made: Made
    job: Job
    state: LoopState
    evaluations: tuple[Evaluation, ...]
    frozen: Mapping[str, Tensor]

    def begin(self) -> LoopState:
        """The state before the first step."""
        return start(self.job, *self.made.task.build_model(self.made.folder, self.made.classes))


@pytest.fixture(params=[*(pytest.param(each, id="-".join(each)) for each in EVERY), *PAIRS])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    task, pair, strategy = request.param
    reads, _, writes = pair.partition("-")
    case = CASES[task]
    if task == "image-captioning":
        case = replace(case, model=partial(tiny_captioner, reads=reads, writes=writes))
    made = Made(TASKS[task], case, tmp_path)
    model, new = made.task.build_model(made.folder, made.classes)
    values = {"learning_rate": 5e-3, "batch_size": 8, "epochs": 4, **STRATEGIES[strategy]}
    settings = Training.model_validate(values)
    arch = describe(model.config.to_dict())
    names = [name for name, _ in model.named_parameters() if name not in new]
    check(settings, arch, names, reads_one_state=made.task.packs)
    left, depth = resolve(settings, arch)
    job = replace(made.job(), settings=settings, depth=opened(settings, depth), arch=left)
    passed = phases(settings, depth, left.blocks)
    if len(passed) > 1:
        stages = tuple(Stage(phase.first_epoch, phase.depth, job.train, job.validation) for phase in passed)
        job = replace(job, stages=stages)
    count = job.depth if isinstance(job.depth, int) else 0
    frozen = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters(remove_duplicate=False)  # a matrix may have two names
        if (isinstance(part := left.part_of(name), int) and part < count) or (part == "embeddings" and count)
    }
    state = start(job, model, new)
    return Run(made, job, state, tuple(fit(job, state)), frozen)


def test_the_contract_holds(run: Run, tmp_path: Path) -> None:
    """What is frozen stays, the loss falls, a cut changes nothing, and what is stored says the same once loaded."""
    named = run.state.model.named_parameters(remove_duplicate=False)
    after = {name.replace(".base_layer.", "."): value for name, value in named}
    assert [name for name, value in run.frozen.items() if not torch.equal(value, after[name])] == []
    assert run.evaluations[-1].train_loss < run.evaluations[0].train_loss

    cut, resumed = run.begin(), run.begin()
    next(fit(run.job, cut))
    resumed.load_state_dict(cut.state_dict())
    list(fit(run.job, resumed))
    assert tuple(resumed.history) == run.evaluations
    assert_same_weights(resumed.model.state_dict(), run.state.model.state_dict())

    whole = copy.deepcopy(run.state.model)
    adapters.merge(whole)
    whole.save_pretrained(tmp_path / "saved")
    loading: Any = getattr(transformers, run.made.task.auto_model)
    again = loading.from_pretrained(tmp_path / "saved")
    batch = run.made.task.collate(run.made.encoded, np.arange(4), run.made.pad)
    logits = []
    for model in (whole, again):
        torch.nn.Module.eval(model)
        with torch.no_grad():
            logits.append(PaddedModel(model)(batch).logits)
    assert torch.equal(*logits)
    if not run.job.stages:
        shapes = taken(weights.parameter_shapes(tmp_path / "saved"), run.job.arch, run.made.task)
        parameters = list(run.state.model.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        counted = count_trained(shapes, run.job.arch, run.job.depth, run.job.settings)
        assert counted == (trained, sum(parameter.numel() for parameter in parameters))
