"""The contract of every strategy, on every architecture; and each by numbers that are worked out by hand."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    MODEL_MAPPING,
)

from finetune_sweep.errors import UserError
from finetune_sweep.phases import phases
from finetune_sweep.settings import LAYER_SETTINGS, Training
from finetune_sweep.tasks.arrays import Batch, Encoded, Ragged, Said
from finetune_sweep.tasks.contract import Output
from finetune_sweep.tasks.image_classification import ImageClassification
from finetune_sweep.tasks.text_classification import TextClassification
from finetune_sweep.train import adapters, pooled, strategies, weights
from finetune_sweep.train.architecture import Architecture, Depth, Part, describe, is_frozen
from finetune_sweep.train.conflicts import check, opened, resolve
from finetune_sweep.train.effect import trains_pretrained
from finetune_sweep.train.families import FAMILIES
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.packing import Logits, PackedModel, PaddedModel
from finetune_sweep.train.state import Evaluation, Job, LoopState, Stage
from finetune_sweep.train.strategies import STRATEGIES, prepare
from finetune_sweep.train.trainable import count_trained, taken
from tests.train.runs import assert_same_weights, bert, example_of_the_guide, gpt2, job_for, split
from tests.train.test_architecture import PICTURES, tiny
from tests.train.test_prefix_cache import on_states
from tests.train.test_steps import cached

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

MODELS = tuple(name for name in FAMILIES if name not in {"camembert", "encoder-decoder"})
"""A CamemBERT is a RoBERTa. Two BERTs as one have no classifier: test_two_sided.py. Pairs that read pictures and write
texts are in test_strategies_of_tasks.py."""

CASES: dict[str, dict[str, object]] = {
    "everything": {},
    "no embeddings": {"freeze_depth": "embeddings"},
    "the head": {"freeze_depth": "all"},
    "drop_layers": {"drop_layers": 1},
    "reinit_layers": {"reinit_layers": 1, "freeze_depth": "embeddings"},
    "reinit_pooler": {"reinit_pooler": True, "freeze_depth": "all"},
    "shrink_perturb": {"shrink_perturb": 0.5, "freeze_depth": 1},
    "pooling": {"pooling": "mean", "freeze_depth": "embeddings"},
    "head": {"head": "mlp", "freeze_depth": "all"},
    "lora": {"lora": {"r": 2, "lora_alpha": 4.0}, "freeze_depth": 1},
    "lora of all": {"lora": {"r": 2, "target_modules": "all-linear"}, "reinit_layers": 1},
    "together": {"drop_layers": 1, "reinit_layers": 1, "shrink_perturb": 0.8, "freeze_depth": "embeddings"},
    "shrink_perturb of all": {"shrink_perturb": 0.5},
    "l2_sp": {"l2_sp": 0.1},
    "layerwise_lr_decay": {"layerwise_lr_decay": 0.9},
    "unfreeze": {"freeze_depth": "all", "unfreeze": {"blocks": 3}},
    "linear_probe": {"linear_probe": {"learning_rate": 1e-2}},
    "adversarial_epsilon": {"adversarial_epsilon": 0.1},
    "label_smoothing": {"label_smoothing": 0.1},
    "adafactor": {"optimizer": "adafactor", "learning_rate": 0.1},
}
METHODS = (
    "l2_sp",
    "layerwise_lr_decay",
    "unfreeze",
    "linear_probe",
    "adversarial_epsilon",
    "label_smoothing",
    "adafactor",
)
"""Cases that act on the steps: the model is that of the first case, so it is not stored and loaded again for each."""
IMPOSSIBLE: Mapping[str, dict[str, str]] = {
    "albert": {
        "reinit_layers": "3 blocks of albert in a row share their weights; write 0 or 3",
        "shrink_perturb": "are frozen together or not at all; write 0, all or embeddings",
        "together": "2 blocks of albert without its last block in a row share their weights; write 0 or 2",
        "lora": "are frozen together or not at all; write 0, all or embeddings",
        "lora of all": "3 blocks of albert in a row share their weights; write 0 or 3",
    },
    "t5": {"drop_layers": "its last stack has 1; write 0", "together": "its last stack has 1; write 0"},
    "yolos": {"drop_layers": "position embeddings", "together": "position embeddings"},
}
"""What cannot be done with the blocks of a model, and what is said of it."""
UNDRAWN = {"yolos": ("cls_token", "detection_tokens", "position_embeddings")}
"""Parameters that a model does not draw, which weakening leaves as they are."""
UNUSED = {"dinov2": ("mask_token",), "yolos": ("bbox_predictor",)}
"""Parameters that these trainings give no gradient."""

FLAT = ("key.bias", "key_proj.bias", "k_lin.bias", "k_proj.bias")
"""They shift all scores of a softmax alike: their gradients are rounding errors, which Adafactor does not scale up."""


@dataclass(frozen=True)
class Boxes(ImageClassification):
    """What a detector says of a picture, as one class: a task for what is called with pictures alone."""

    def losses(self, output: Output, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Of the mean over all boxes."""
        return super().losses(Logits(output.logits.mean(1)[:, :2]), batch, label_smoothing)

    def predict(self, output: Output, batch: Batch, losses: Tensor) -> Said:
        """The mean over all boxes."""
        return super().predict(Logits(output.logits.mean(1)[:, :2]), batch, losses)


def pictures(model: PreTrainedModel, rows: int, seed: int) -> Encoded:
    """Noise that is bright or dark, which is the class."""
    size = model.config.image_size
    size = size if isinstance(size, int) else size[0]
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    pixels = rng.integers(0, 128, (rows, 3, size, size)) + 127 * labels[:, None, None, None]
    scale, shift = np.full((rows, 3), 1 / 127, np.float32), np.full((rows, 3), -1, np.float32)
    return Encoded({"pixels": pixels.astype(np.uint8), "scale": scale, "shift": shift, "labels": labels})


def pretrained(model_type: str) -> PreTrainedModel:
    """A model none of whose weights is as it would be drawn."""
    torch.manual_seed(0)
    model = tiny(model_type)
    padding = 1 if FAMILIES[model_type].counts_from_padding or model_type == "bart" else 0
    model.config.pad_token_id = padding
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def new_of(model: PreTrainedModel, arch: Architecture) -> tuple[str, ...]:
    """The parameters of the task's head, which a pretrained model does not have."""
    base = f"{arch.family.prefix}."
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(base))


def job_of(model: PreTrainedModel, settings: dict[str, object]) -> Job:
    """A short training of a model under some settings, refused where they are."""
    training = Training.model_validate({"learning_rate": 1e-2, "batch_size": 10, "epochs": 4, **settings})
    arch = describe(model.config.to_dict())
    new = new_of(model, arch)
    check(training, arch, [name for name, _ in model.named_parameters() if name not in new])
    left, depth = resolve(training, arch)
    job = replace(
        job_for(model, training),
        depth=opened(training, arch),
        arch=left,
        pad_token_id=model.config.pad_token_id,
        unpadding=arch.can_pack,
    )
    if arch.model_type in PICTURES:
        task = Boxes() if arch.model_type == "yolos" else ImageClassification()
        job = replace(job, task=task, train=pictures(model, 20, 1), validation=pictures(model, 9, 2))
        return in_phases(job, depth)
    end = model.config.eos_token_id
    extra = (end,) if arch.family.decoder and isinstance(end, int) else ()
    return in_phases(replace(job, train=split(20, 1, extra), validation=split(9, 2, extra)), depth)


def in_phases(job: Job, depth: Depth) -> Job:
    """The job with what it freezes in which epochs, from a depth on."""
    passed = phases(job.settings, depth, job.arch.blocks)
    stages = tuple(Stage(phase.first_epoch, phase.depth, job.train, job.validation) for phase in passed)
    return replace(job, stages=stages if len(stages) > 1 else ())


@dataclass(frozen=True)
class Run:
    """A training, and the tensors of its model before it, at its first step, and after it."""

    job: Job
    new: tuple[str, ...]
    state: LoopState
    evaluations: tuple[Evaluation, ...]
    before: Mapping[str, Tensor]
    started: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    def part(self, name: str) -> Part:
        """Where a parameter belongs."""
        return self.job.arch.part_of(name)


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all parameters; adapted ones under the names that they had."""
    named = model.named_parameters()
    return {name.replace(".base_layer.", "."): tensor.detach().clone() for name, tensor in named}


@functools.cache
def run(model_type: str, case: str) -> Run:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = pretrained(model_type)
    job, before = job_of(model, CASES[case]), tensors(model)
    new = new_of(model, job.arch)
    state = start(job, model, new)
    started = tensors(state.model)
    evaluations = tuple(fit(job, state))
    torch.set_num_threads(threads)
    return Run(job, new, state, evaluations, before, started, tensors(state.model))


def is_possible(model_type: str, case: str) -> bool:
    return not why_not(model_type, case)


def why_not(model_type: str, case: str) -> str:
    """What is said of a case that cannot be done with a model; empty where it can."""
    if case == "reinit_pooler" and model_type not in {"bert", "albert"}:
        return "has no pretrained pooler"
    if case in {"pooling", "head"} and model_type in {"t5", "bart", *PICTURES}:
        return f"the head of {model_type} cannot be replaced; write default, or take one of bert, roberta"
    return IMPOSSIBLE.get(model_type, {}).get(case, "")


MODELS_WITHOUT_PADDING = tuple(name for name in MODELS if FAMILIES[name].head)
"""Models whose states after frozen blocks are kept."""
KNOWN = [
    (model, case)
    for model in MODELS
    for case in CASES
    if not (case == "adversarial_epsilon" and model in PICTURES)  # without words; effect.py says so
]
EVERY = [(model, case) for model, case in KNOWN if is_possible(model, case)]
each = pytest.mark.parametrize(("model_type", "case"), EVERY)


def test_every_strategy_is_a_setting_and_has_a_case() -> None:
    assert set(STRATEGIES) <= set(LAYER_SETTINGS) <= set(Training.model_fields)
    assert set(STRATEGIES) <= set(CASES)


@pytest.mark.parametrize(
    ("model_type", "case"),
    [pair for pair in KNOWN if pair not in EVERY],
)
def test_what_cannot_be_done_is_refused(model_type: str, case: str) -> None:
    with pytest.raises(UserError, match=why_not(model_type, case)):
        job_of(pretrained(model_type), CASES[case])


# ------------------------------------------------------------------------------------------- the contract


NAMED = ("drop_layers", "pooling", "head", "reinit_layers", "reinit_pooler", "shrink_perturb", "lora")
"""Strategies of which `is_named` knows what they change. Any other may change what is pretrained and trained."""


def is_named(found: Run, model_type: str, name: str) -> bool:
    """Whether a parameter begins with other values than the pretrained ones."""
    settings, job, part = found.job.settings, found.job, found.part(name)
    if name in found.new or (settings.reinit_pooler and ".pooler." in name):
        return True
    if isinstance(part, int) and part >= job.arch.blocks - settings.reinit_layers:
        return True
    is_drawn = not any(undrawn in name for undrawn in UNDRAWN.get(model_type, ()))
    return settings.shrink_perturb < 1 and not is_frozen(part, job.depth) and is_drawn


@each
def test_the_first_step_finds_changed_what_the_strategies_name_and_nothing_else(
    model_type: str, case: str
) -> None:
    found = run(model_type, case)
    names = [name for name in found.started if name in found.before]  # without what a strategy has put in
    changed = {name for name in names if not torch.equal(found.started[name], found.before[name])}
    named = {name for name in names if is_named(found, model_type, name)}
    trained = {name for name in names if not is_frozen(found.part(name), found.job.depth)}
    settings, plain = found.job.settings, type(found.job.settings)()
    used = {name for name in strategies.STRATEGIES if getattr(settings, name) != getattr(plain, name)}
    assert named <= changed <= named | (trained if used - {*NAMED} else set())
    assert any(isinstance(found.part(name), int) for name in changed) == strategies.alters_blocks(settings)


@each
def test_training_changes_what_is_not_frozen_and_nothing_else(model_type: str, case: str) -> None:
    found = run(model_type, case)
    depth = 0 if "unfreeze" in CASES[case] else CASES[case].get("freeze_depth", 0)
    frozen = {"embeddings": 0, "all": found.job.arch.blocks}.get(str(depth), depth)
    settings = found.job.settings
    adapted = range(int(str(frozen)), found.job.arch.blocks - settings.reinit_layers if settings.lora else 0)
    unused = (*UNUSED.get(model_type, ()), *(FLAT if case == "adafactor" else ()))
    for name, tensor in found.after.items():
        part = found.part(name)
        is_frozen = part == "embeddings" and (depth != 0 or settings.lora is not None)
        is_frozen |= isinstance(part, int) and part < int(str(frozen))
        is_frozen |= part in adapted and adapters.MARK not in name
        if is_frozen:
            assert torch.equal(tensor, found.before[name]), name
        elif not any(kind in name for kind in unused):
            assert not torch.equal(tensor, found.started[name]), name


@each
def test_the_loss_falls(model_type: str, case: str) -> None:
    evaluations = run(model_type, case).evaluations
    assert evaluations[-1].train_loss < evaluations[0].train_loss


stored = pytest.mark.parametrize(("model_type", "case"), [(m, c) for m, c in EVERY if c not in METHODS])


@stored
def test_what_is_stored_loads_again_with_the_same_logits(model_type: str, case: str, tmp_path: Path) -> None:
    found = run(model_type, case)
    model = found.state.model
    whole = copy.deepcopy(model)
    adapters.merge(whole)
    whole.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    batch = found.job.task.collate(found.job.validation, np.arange(9), found.job.pad_token_id)
    logits = []
    for each_model in (model, again):
        nn.Module.eval(each_model)
        with torch.no_grad(), adapters.merged(each_model):
            logits.append(PaddedModel(each_model)(batch).logits)
    assert torch.equal(*logits)
    assert describe(again.config.to_dict()).blocks == found.job.arch.blocks


@functools.cache
def shapes_of_pretraining(model_type: str) -> Mapping[str, tuple[int, ...]]:
    """What lies in the file of a pretrained model: with the head of its pretraining, if it has one, and no other."""
    config = tiny(model_type).config
    known = (MODEL_FOR_PRETRAINING_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING)
    build: Any = next(mapping[type(config)] for mapping in known if type(config) in mapping)
    with tempfile.TemporaryDirectory() as folder:
        build(config).save_pretrained(folder)
        return weights.parameter_shapes(Path(folder))


@stored
def test_plan_counts_what_is_trained_of_what_was_pretrained(model_type: str, case: str) -> None:
    """New heads are not counted, and heads of pretraining neither."""
    found = run(model_type, case)
    job, parameters = found.job, dict(found.state.model.named_parameters())
    new = {name for name in parameters if name in found.new or name.startswith("head.")}
    sizes = {name: p.numel() for name, p in parameters.items() if name not in new}
    trained = sum(size for name, size in sizes.items() if parameters[name].requires_grad)
    task = ImageClassification() if model_type in PICTURES else TextClassification()
    shapes = taken(shapes_of_pretraining(model_type), job.arch, task)
    assert count_trained(shapes, job.arch, job.depth, job.settings) == (trained, sum(sizes.values()))


def test_the_heads_of_pretraining_are_there_to_be_left_out() -> None:
    """At `all`: BERT trains its pooler of 8 * 8 + 8 = 72 values, and RoBERTa nothing that was pretrained."""
    for model_type, expected in {"bert": 72, "roberta": 0, "distilbert": 0}.items():
        shapes, arch = shapes_of_pretraining(model_type), describe(tiny(model_type).config.to_dict())
        assert count_trained(shapes, arch, arch.blocks, Training())[0] > expected
        left = taken(shapes, arch, TextClassification())
        assert count_trained(left, arch, arch.blocks, Training())[0] == expected


@pytest.mark.parametrize(
    ("model_type", "case"),
    [pytest.param(m, c, marks=[pytest.mark.slow] if c in METHODS and m != "bert" else []) for m, c in EVERY],
)
def test_interrupted_equals_uninterrupted(model_type: str, case: str) -> None:
    whole = run(model_type, case)
    cut = start(whole.job, pretrained(model_type), whole.new)
    next(fit(whole.job, cut))
    state = start(whole.job, pretrained(model_type), whole.new)
    state.load_state_dict(cut.state_dict())
    list(fit(whole.job, state))
    assert tuple(state.history) == whole.evaluations
    assert_same_weights(tensors(state.model), dict(whole.after))


PHASED = ("unfreeze", "linear_probe")
FROZEN = [case for case in CASES if CASES[case].get("freeze_depth") in {1, "all"} and case != "head"]
"""Cases with frozen blocks; another head is not computed without padding, and so has no states."""


@pytest.mark.parametrize(
    ("model_type", "case"),
    [(m, c) for m, c in EVERY if m in MODELS_WITHOUT_PADDING and c in {*FROZEN, *PHASED}],
)
def test_a_training_on_cached_states_is_the_one_from_the_tokens(
    model_type: str, case: str, tmp_path: Path
) -> None:
    plain = run(model_type, case)
    model = pretrained(model_type)
    assert isinstance(plain.job.depth, int)
    is_phased = bool(plain.job.stages)
    job = (
        cached(plain.job, model, tmp_path)
        if is_phased
        else on_states(plain.job, model, plain.job.depth, tmp_path)
    )
    state = start(job, model, plain.new)
    assert isinstance(state.forward, PackedModel)
    for left, right in zip(plain.evaluations, fit(job, state), strict=True):
        assert right.train_loss == pytest.approx(left.train_loss, abs=1e-5)
        assert right.metrics["loss"] == pytest.approx(left.metrics["loss"], abs=1e-5)


def test_states_are_kept_for_no_other_model_and_no_other_head() -> None:
    assert {model for model, case in EVERY if run(model, case).job.arch.can_pack} == {*MODELS_WITHOUT_PADDING}
    heads = {case for _, case in EVERY if case in {"head", "pooling"}}
    assert heads == {"head", "pooling"}
    assert not any(run(model, case).job.arch.can_pack for model, case in EVERY if case in heads)


def test_a_shorter_model_and_the_whole_one_share_states_but_not_those_that_the_head_reads(
    tmp_path: Path,
) -> None:
    """Frozen after the last block, a text is one state; after the same block within a longer model, all of them."""
    model = pretrained("bert")
    shorter = job_of(model, {"drop_layers": 2, "freeze_depth": "all"})
    longer = job_of(model, {"freeze_depth": 1})
    column = [on_states(job, model, 1, tmp_path).train.columns["states"] for job in (shorter, longer)]
    assert all(isinstance(states, Ragged) for states in column)
    tokens = int(longer.train.lengths().sum())
    assert [len(states.values) for states in column if isinstance(states, Ragged)] == [20, tokens]


HELD = ("everything", "the head", "reinit_pooler", "head", "lora", "lora of all")


@pytest.mark.parametrize(("model_type", "case"), [(m, c) for m, c in EVERY if c in HELD])
def test_whether_l2_sp_has_an_effect_is_told_by_what_it_holds(model_type: str, case: str) -> None:
    model = pretrained(model_type)
    job = job_of(model, {**CASES[case], "l2_sp": 0.1})
    new = new_of(model, job.arch)
    names = [name for name, _ in model.named_parameters() if name not in new]
    anchored = start(job, model, new).anchored
    assert trains_pretrained(job.settings, job.arch, job.depth, names, job.task) == bool(anchored)


# ------------------------------------------------------------------------------------------- by hand


def started(settings: dict[str, object], model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    job = replace(job_for(model, Training.model_validate(settings)), seed=seed)
    arch, depth = resolve(job.settings, job.arch)
    new = [name for name, _ in model.named_parameters() if name.startswith(("classifier", "score"))]
    return tensors(prepare(model, new, job.settings, arch, depth, seed))


def test_shrinking_leaves_its_part_and_perturbs_by_the_rest_of_a_fresh_draw() -> None:
    """All weights 1, s = 0.75, initial weights of N(0, 0.2): mean 0.75, deviation (1 - 0.75) 0.2 = 0.05.

    A norm's weight is drawn as 1 and stays 1; a bias of 1 is drawn as 0 and becomes 0.75. The largest matrices have
    1,536 values: the mean of 1,536 x 2 blocks deviates by 0.05 / sqrt(3072) = 0.0009, the deviation by 0.00064.
    """
    model = bert()
    model.config.initializer_range = 0.2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    found = started({"shrink_perturb": 0.75}, model)
    layers = [f"bert.encoder.layer.{block}.intermediate.dense." for block in range(2)]
    values = torch.cat([found[f"{layer}weight"].flatten() for layer in layers])
    assert values.mean().item() == pytest.approx(0.75, abs=4 * 0.05 / math.sqrt(len(values)))
    assert values.std().item() == pytest.approx(0.05, abs=4 * 0.05 / math.sqrt(2 * len(values)))
    assert torch.equal(found[f"{layers[0]}bias"], torch.full((48,), 0.75))
    assert torch.equal(found["bert.encoder.layer.1.output.LayerNorm.weight"], torch.full((32,), 0.25 + 0.75))


def test_erased_blocks_are_drawn_as_a_new_model_draws_them_by_the_seed_alone() -> None:
    """Two blocks filled with 7: the second becomes N(0, 0.02) with norms 1 and biases 0, the first keeps its 7."""
    draws = []
    for seed in (0, 0, 1):
        model = bert()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        found = started({"reinit_layers": 1}, model, seed)
        assert bool((found["bert.encoder.layer.0.intermediate.dense.weight"] == 7).all())
        top = "bert.encoder.layer.1."
        assert bool((found[f"{top}intermediate.dense.bias"] == 0).all())
        assert bool((found[f"{top}output.LayerNorm.weight"] == 1).all())
        draws.append(found[f"{top}intermediate.dense.weight"])
    assert draws[0].std().item() == pytest.approx(0.02, abs=4 * 0.02 / math.sqrt(2 * 1536))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("settings", [{"reinit_layers": 1}, {"drop_layers": 1}, {"shrink_perturb": 0.5}])
def test_the_head_is_that_of_a_plain_training_with_the_same_seed(settings: dict[str, object]) -> None:
    plain, changed = (started(each_one, bert()) for each_one in ({}, settings))
    assert torch.equal(changed["classifier.weight"], plain["classifier.weight"])


@pytest.mark.parametrize("build", [bert, gpt2])
def test_a_model_without_its_last_block_says_what_its_first_block_said(
    build: Callable[[], PreTrainedModel],
) -> None:
    """Of two blocks one is left: its state, through the same pooler or norm and head, gives the logits."""
    model: Any = build()
    nn.Module.eval(model)
    ids = torch.tensor([[3, 4, 5]])
    settings = Training(drop_layers=1)
    arch, depth = resolve(settings, describe(model.config.to_dict()))
    shorter = prepare(model, (), settings, arch, depth, 0)
    with torch.no_grad():
        state = model(ids, output_hidden_states=True).hidden_states[1]
        logits = shorter(ids).logits
        if arch.model_type == "bert":
            expected = model.classifier(model.bert.pooler(state))
        else:
            expected = model.score(model.transformer.ln_f(state)[:, -1])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert len(list(model.parameters())) > len(list(shorter.parameters()))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("first", [[1.0, 8.0], [5.0, 5.0]]),
        ("last", [[3.0, 2.0], [7.0, 1.0]]),
        ("mean", [[2.0, 5.0], [4.0, 4.0]]),
        ("max", [[3.0, 8.0], [7.0, 6.0]]),
    ],
)
def test_a_text_is_pooled_over_its_own_tokens(pooling: str, expected: list[list[float]]) -> None:
    """Two texts, of two tokens and of three; what stands for padding would change every result but the first."""
    states = torch.tensor([[[1, 8], [3, 2], [9, 9]], [[5, 5], [0, 6], [7, 1]]]).float()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.equal(pooled.pool(states, mask, pooling), torch.tensor(expected))


def test_another_head_reads_the_second_of_two_texts_as_such() -> None:
    """The embeddings of types differ, so the mean over the states does where a token is of the second text."""
    model = pretrained("bert")
    settings = Training(pooling="mean")
    arch, depth = resolve(settings, describe(model.config.to_dict()))
    other: Any = prepare(model, (), settings, arch, depth, 0)
    for each_model in (model, other):
        nn.Module.eval(each_model)
    ids, types = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    with torch.no_grad():
        found = other(ids, token_type_ids=types).logits
        states = model.base_model(ids, token_type_ids=types).last_hidden_state
        torch.testing.assert_close(found, other.head(states.mean(1)), rtol=0, atol=1e-6)
        assert not torch.allclose(found, other(ids).logits)


def test_the_example_of_the_guide_is_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are executed: the field, the function and the line that docs/methods.md adds."""
    noisy, lines = example_of_the_guide()
    monkeypatch.setattr(strategies, "STRATEGIES", lines)
    model, plain = bert(), tensors(bert())
    arch = describe(model.config.to_dict())
    found = tensors(prepare(model, (), noisy.model_validate({"noise": 0.5, "freeze_depth": 1}), arch, 1, 0))
    weight, bias = (f"bert.encoder.layer.1.output.dense.{kind}" for kind in ("weight", "bias"))
    difference = (found[weight] - plain[weight]).abs().max() / plain[weight].std()
    assert 0.2 < difference.item() <= 0.25  # half of 0.5 deviations, at most
    assert torch.equal(found[bias], plain[bias])
    frozen = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(found[frozen], plain[frozen])


@pytest.mark.parametrize("model_type", ["bert", "t5", "swin"])
def test_the_example_of_the_guide_keeps_the_contract_once_it_has_a_case(
    model_type: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noisy, lines = example_of_the_guide()
    monkeypatch.setattr(strategies, "STRATEGIES", {**STRATEGIES, **lines})
    monkeypatch.setattr(f"{__name__}.Training", noisy)
    monkeypatch.setitem(CASES, "noise", {"noise": 0.5, "freeze_depth": 1})
    test_the_first_step_finds_changed_what_the_strategies_name_and_nothing_else(model_type, "noise")
    test_training_changes_what_is_not_frozen_and_nothing_else(model_type, "noise")
    test_the_loss_falls(model_type, "noise")
    test_what_is_stored_loads_again_with_the_same_logits(model_type, "noise", tmp_path)
    test_plan_counts_what_is_trained_of_what_was_pretrained(model_type, "noise")
    test_interrupted_equals_uninterrupted(model_type, "noise")
    if model_type in MODELS_WITHOUT_PADDING:
        test_a_training_on_cached_states_is_the_one_from_the_tokens(model_type, "noise", tmp_path)


def test_the_next_trial_finds_the_model_as_it_was() -> None:
    model = bert()
    names, blocks = list(model.state_dict()), model.config.num_hidden_layers
    started({"drop_layers": 1, "reinit_layers": 1}, model)
    assert list(model.state_dict()) == names
    assert model.config.num_hidden_layers == blocks
