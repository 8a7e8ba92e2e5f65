"""What a sweep file may say, and what is said of one that is wrong."""
# ruff: noqa: E501 - the messages stand here as a user reads them

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_sweep.errors import UserError
from finetune_sweep.plan import check
from finetune_sweep.settings import Constant
from finetune_sweep.space import Choice, FloatRange
from finetune_sweep.spec import Sweep
from finetune_sweep.sweepfile import load_sweep, training_of

GOOD = """\
name: good
task: text-classification
model: example:minilm-l6
data:
  source: example:acl-aspects
  columns: {text: sentence, label: aspect}
space:
  learning_rate: [5e-5, 3e-5]
  epochs: [1, 2]
search: {type: grid}
metric: accuracy
training:
  batch_size: 8
"""


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def added(text: str) -> str:
    return GOOD + text


def training(text: str) -> str:
    return replaced("  batch_size: 8", f"  {text}")


def space(text: str) -> str:
    return replaced("  epochs: [1, 2]", f"  {text}")


BAD = {
    "unknown key": (
        added("epoch: 3\n"),
        "bad.yaml:14: epoch: unknown key 'epoch' (known: name, task, model, data, space, search, metric, training, seed, resources_per_trial, max_concurrent, device, selection, retries, trial_timeout_s, keep_checkpoints, min_free_bytes, tracking, speed, storage, cache)",
    ),
    "word of another tool for the space": (
        replaced("space:", "parameters:"),
        "bad.yaml:7: parameters: unknown key 'parameters' (did you mean 'space'?)",
    ),
    "word of another tool for the search": (
        replaced("search:", "method:"),
        "bad.yaml:10: method: unknown key 'method' (did you mean 'search'?)",
    ),
    "word of another tool for the trials": (
        replaced("{type: grid}", "{type: random, num_samples: 4}"),
        "bad.yaml:10: search.num_samples: unknown key 'num_samples' (did you mean 'trials'?)",
    ),
    "word of another tool for the mode": (
        replaced("metric: accuracy", "metric: {name: accuracy, goal: max}"),
        "bad.yaml:11: metric.goal: unknown key 'goal' (did you mean 'mode'?)",
    ),
    "word of another tool for a range": (
        space("weight_decay: {min: 0.0, max: 0.1, count: 3}"),
        "bad.yaml:9: space.weight_decay.min: unknown key 'min' (did you mean 'low'?)\nbad.yaml:9: space.weight_decay.max: unknown key 'max' (did you mean 'high'?)",
    ),
    "bounds of another tool": (
        space("weight_decay: {lower: 0.0, upper: 0.1, count: 3}"),
        "bad.yaml:9: space.weight_decay.lower: unknown key 'lower' (did you mean 'low'?)\nbad.yaml:9: space.weight_decay.upper: unknown key 'upper' (did you mean 'high'?)",
    ),
    "word of another tool for a setting": (
        training("lr: 1e-5"),
        "bad.yaml:13: training.lr: unknown key 'lr' (did you mean 'learning_rate'?)",
    ),
    "word of another tool for a dimension": (
        space("num_train_epochs: [1, 2]"),
        "bad.yaml:9: space.num_train_epochs: unknown dimension 'num_train_epochs' (did you mean 'epochs'?)",
    ),
    "repeated key": (
        added("name: other\n"),
        "bad.yaml:14: name: the key 'name' is repeated (first on line 1): keep one of them",
    ),
    "wrong type: a text for a number": (
        training("learning_rate: fast"),
        "bad.yaml:13: training.learning_rate: must be a number, got 'fast'",
    ),
    "wrong type: a fraction for a count": (
        training("batch_size: 7.5"),
        "bad.yaml:13: training.batch_size: must be a whole number, got 7.5",
    ),
    "wrong type: a truth for a count": (
        training("batch_size: true"),
        "bad.yaml:13: training.batch_size: must be a whole number, got True",
    ),
    "wrong type: a list for a section": (
        replaced("  batch_size: 8", "  - 8"),
        "bad.yaml:12: training: must be a mapping, got [8]",
    ),
    "wrong type: a text for a section": (
        replaced("training:\n  batch_size: 8", "resources_per_trial: 2"),
        "bad.yaml:12: resources_per_trial: must be a mapping, got 2",
    ),
    "below the bound": (
        training("learning_rate: -1e-5"),
        "bad.yaml:13: training.learning_rate: must be > 0, got -1e-05",
    ),
    "above the bound": (
        training("weight_decay: 100"),
        "bad.yaml:13: training.weight_decay: must be <= 10, got 100",
    ),
    "range upside down": (
        space("weight_decay: {low: 0.2, high: 0.1}"),
        "bad.yaml:9: space.weight_decay.low: `low <= high` must hold, but got (low=0.2, high=0.1)",
    ),
    "log range from zero": (
        space("weight_decay: {low: 0.0, high: 0.1, log: true, count: 3}"),
        "bad.yaml:9: space.weight_decay.low: a log range needs `low > 0`, but got (low=0.0, high=0.1)",
    ),
    "grid over a range": (
        space("weight_decay: {low: 0.0, high: 0.1}"),
        "bad.yaml:9: weight_decay: a grid needs a finite domain, got the range 0.0 to 0.1: add `count: 5` for five values, or use `search: {type: random}`",
    ),
    "value outside the setting's bounds": (
        replaced("[5e-5, 3e-5]", "[5e-5, 0]"),
        "bad.yaml:8: space.learning_rate: must be > 0, got 0",
    ),
    "range outside the setting's bounds": (
        space("weight_decay: {low: -0.1, high: 0.1, count: 3}"),
        "bad.yaml:9: space.weight_decay: must be >= 0, got -0.1",
    ),
    "empty choice": (
        space("epochs: []"),
        "bad.yaml:9: space.epochs: a choice needs at least one value, got []",
    ),
    "unknown dimension": (
        space("freeze_dept: [0, 1]"),
        "bad.yaml:9: space.freeze_dept: unknown dimension 'freeze_dept' (did you mean 'freeze_depth'?)",
    ),
    "a dimension that is no setting of training": (
        space("seed: [0, 1]"),
        "bad.yaml:9: space.seed: unknown dimension 'seed' (known: learning_rate, batch_size, epochs, freeze_depth, unfreeze, unfreeze.every_epochs, unfreeze.blocks, unfreeze.to_depth, linear_probe, linear_probe.epochs, linear_probe.learning_rate, drop_layers, reinit_layers, reinit_pooler, shrink_perturb, pooling, head, lora, lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules, weight_decay, max_grad_norm, optimizer, lr_schedule, lr_schedule.type, lr_schedule.warmup_steps, lr_schedule.warmup_ratio, lr_schedule.decay_ratio, lr_schedule.factor, lr_schedule.patience, layerwise_lr_decay, l2_sp, label_smoothing, adversarial_epsilon, early_stopping, early_stopping.patience, early_stopping.min_delta, early_stopping.monitor, augment, augment.replacement, augment.insertion, augment.swap, augment.deletion, augment.punctuation, augment.typos, augment.copies, augment.synonyms, precision, gradient_accumulation_steps, model, data.max_length)",
    ),
    "condition on an unknown dimension": (
        space("epochs: {values: [1], when: {freeze_depth: [0]}}"),
        "bad.yaml:9: epochs.when.freeze_depth: 'freeze_depth' is not searched: this space has learning_rate, epochs",
    ),
    "condition on a value that cannot be": (
        space("epochs: {values: [1], when: {learning_rate: [0.1]}}"),
        "bad.yaml:9: epochs.when.learning_rate: learning_rate never has the value 0.1: it is one of [5e-05,3e-05]",
    ),
    "depth too large": (
        training("freeze_depth: 9"),
        "bad.yaml:13: training.freeze_depth: freeze_depth 9: minilm-l6 has 6 blocks; write 0 to 6, embeddings, 0% to 100%, or all",
    ),
    "depth too large for a model of the space": (
        space("freeze_depth: [0, 7]"),
        "bad.yaml:9: space.freeze_depth: freeze_depth 7: minilm-l6 has 6 blocks; write 0 to 6, embeddings, 0% to 100%, or all",
    ),
    "erased blocks that are frozen": (
        training("reinit_layers: 2\n  freeze_depth: 5"),
        "bad.yaml:13: training.reinit_layers: reinit_layers 2: minilm-l6 has 6 blocks, of which the first 5 are frozen (new weights that are never trained would be noise); write 0 to 1",
    ),
    "erased blocks that a value of the space freezes": (
        space("freeze_depth: [0, all]\n  reinit_layers: [0, 2]"),
        "bad.yaml:10: space.reinit_layers: reinit_layers 2: minilm-l6 has 6 blocks, of which the first 6 are frozen (new weights that are never trained would be noise); write 0 (beside freeze_depth all; `when: {freeze_depth: [...]}` can keep them apart)",
    ),
    "more blocks dropped than a model can do without": (
        space("drop_layers: [0, 6]"),
        "bad.yaml:9: space.drop_layers: drop_layers 6: minilm-l6 has 6 blocks, and one has to stay; write 0 to 5",
    ),
    "nothing pretrained to weaken": (
        training("shrink_perturb: 0.5\n  freeze_depth: all\n  reinit_pooler: true"),
        "bad.yaml:13: training.shrink_perturb: shrink_perturb 0.5: no pretrained weights are trained that it could weaken, as freeze_depth is all and reinit_layers 0; write 1, or freeze or erase less",
    ),
    "no block to adapt": (
        training("lora: {r: 4}\n  freeze_depth: all"),
        "bad.yaml:13: training.lora: lora r 4: no block of minilm-l6 is left to adapt, as freeze_depth is all and reinit_layers 0; freeze or erase less, or leave lora out",
    ),
    "a pooler that another head does not read": (
        training("reinit_pooler: true\n  pooling: mean"),
        "bad.yaml:13: training.reinit_pooler: reinit_pooler true: minilm-l6 has no pretrained pooler that this training would use, so there is nothing to erase; write false",
    ),
    "weakening of what LoRA does not train": (
        training("shrink_perturb: 0.5\n  lora: {r: 4}"),
        "bad.yaml:13: training.shrink_perturb: shrink_perturb 0.5: lora does not train the pretrained weights, so weakened they would stay; write 1, or leave lora out",
    ),
    "adapters of no rank": (
        training("lora: {r: 0}"),
        "bad.yaml:13: training.lora: r 0 adapts nothing: give a rank from 1, or leave lora out",
    ),
    "depth that is no depth": (
        training("freeze_depth: half"),
        "bad.yaml:13: training.freeze_depth: must be a number of blocks from 0, 'embeddings', 'all' or a percentage such as '50%', got 'half'",
    ),
    "rates that decay where no block is trained": (
        training("freeze_depth: all\n  layerwise_lr_decay: 0.9"),
        "bad.yaml:14: training.layerwise_lr_decay: 0.9 changes no rate: at freeze_depth 6 only what follows the 6 blocks of minilm-l6 is trained, at the full one; lower freeze_depth, or leave layerwise_lr_decay out",
    ),
    "rates that decay in a space where no block is trained": (
        space("freeze_depth: [all]\n  layerwise_lr_decay: [1.0, 0.9, 0.8]"),
        "bad.yaml:10: space.layerwise_lr_decay: 0.8 changes no rate: at freeze_depth 6 only what follows the 6 blocks of minilm-l6 is trained, at the full one; lower freeze_depth, or leave layerwise_lr_decay out",
    ),
    "patience that is longer than the training": (
        training("early_stopping: {patience: 3}"),
        "bad.yaml:13: training.early_stopping.patience: 3 cannot end a training of 2 epochs: so many evaluations come after the first, and then an epoch that is spared; give epochs of at least 5, or less patience",
    ),
    "plateau that no training reaches": (
        training("lr_schedule: {type: plateau, patience: 2}"),
        "bad.yaml:13: training.lr_schedule.patience: 2 lowers no rate in a training of 2 epochs: so many evaluations come after the first, and then an epoch at the lower rate; give epochs of at least 4, or less patience",
    ),
    "unfreezing of what is not frozen": (
        training("unfreeze: {}"),
        "bad.yaml:13: training.unfreeze: opens nothing: it goes from freeze_depth 0 to_depth 0; freeze more at the beginning, as with freeze_depth: all, or leave unfreeze out",
    ),
    "probe of the head where nothing else is trained": (
        space("epochs: [3]").replace("  batch_size: 8", "  freeze_depth: all\n  linear_probe: {epochs: 2}"),
        "bad.yaml:14: training.linear_probe: at freeze_depth 6 the whole training is a probe of what follows the 6 blocks of minilm-l6; lower freeze_depth, or leave linear_probe out",
    ),
    "probe as long as the training": (
        training("linear_probe: {epochs: 2}"),
        "bad.yaml:13: training.linear_probe.epochs: 2 leaves nothing of 2 epochs for the fine-tuning: give epochs of at least 3",
    ),
    "unknown metric": (
        replaced("metric: accuracy", "metric: acuracy"),
        "bad.yaml:11: metric: is not reported by text-classification, got 'acuracy' (did you mean 'accuracy'?)",
    ),
    "metric in the wrong direction": (
        replaced("metric: accuracy", "metric: {name: loss, mode: max}"),
        "bad.yaml:11: metric.mode: loss is better minimal, got 'max'; leave mode out",
    ),
    "unknown task": (
        replaced("text-classification", "text-clasification"),
        "bad.yaml:2: task: must be one of text-classification, text-tagging, text-regression, token-classification, text-to-text, causal-lm, image-classification, image-tagging, image-captioning or object-detection, got 'text-clasification' (did you mean 'text-classification'?)",
    ),
    "unknown column": (
        replaced("text: sentence", "txt: sentence"),
        "bad.yaml:6: data.columns: is no column of text-classification, got 'txt' (did you mean 'text'?)",
    ),
    "unknown example model": (
        replaced("example:minilm-l6", "example:minilm"),
        "bad.yaml:3: model: there is no example:minilm (did you mean 'minilm-l6'?); there are minilm-l6, rxn-bert, smollm2, smollm2-first6, minilm-l6-pair",
    ),
    "folder that is no model": (
        replaced("example:minilm-l6", "."),
        "bad.yaml:3: model: model FOLDER: FOLDER has no config.json; it holds bad.yaml",
    ),
    "unknown search": (
        replaced("{type: grid}", "{type: gird}"),
        "bad.yaml:10: search: type must be one of grid, random, tpe, got 'gird' (did you mean 'grid'?)",
    ),
    "search without its number": (
        replaced("{type: grid}", "{type: random}"),
        "bad.yaml:10: search.trials: is required: How many configurations are drawn.",
    ),
    "missing name": (
        replaced("name: good\n", ""),
        "bad.yaml:1: name: is required: The sweep's name, and the name of its folder in the storage.",
    ),
    "name that leaves the storage": (
        replaced("name: good", "name: ../good"),
        "bad.yaml:1: name: must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit, got '../good'",
    ),
    "missing data": (
        replaced("data:\n  source: example:acl-aspects\n", "data:\n"),
        "bad.yaml:4: data: needs `source` (example:NAME, hub:ORG/NAME, a file or a folder), or `files: {train: ...}`",
    ),
    "splits that leave nothing": (
        replaced("data:\n", "data:\n  split: {validation: 0.6, test: 0.5}\n"),
        "bad.yaml:5: data.split: validation + test must leave rows to train on, got 0.6 + 0.5",
    ),
    "unknown schedule": (
        training("lr_schedule: cosinus"),
        "bad.yaml:13: training.lr_schedule: type must be one of constant, linear, cosine, wsd, plateau, got 'cosinus' (did you mean 'cosine'?)",
    ),
    "two warmups": (
        training("lr_schedule: {type: linear, warmup_steps: 5, warmup_ratio: 0.1}"),
        "bad.yaml:13: training.lr_schedule: give warmup_steps or warmup_ratio, not both, got 5 and 0.1",
    ),
    "parts that exceed the batch": (
        training("batch_size: 4\n  gradient_accumulation_steps: 8"),
        "bad.yaml:12: training: gradient_accumulation_steps (8) must not exceed batch_size (4)",
    ),
    "file store for MLflow": (
        added("tracking: {uri: ./mlruns}\n"),
        "bad.yaml:14: tracking: uri must be a database (sqlite:///mlflow.db) or a server (http://...), got './mlruns'",
    ),
    "storage that is not supported": (
        added("storage: s3://bucket/runs\n"),
        "bad.yaml:14: storage: storage s3:// is not supported yet, got 's3://bucket/runs'; give a folder, also a shared one",
    ),
    "a share of a GPU above one": (
        added("resources_per_trial: {gpu: 1.5}\n"),
        "bad.yaml:14: resources_per_trial: gpu must be a fraction up to 1 or a whole number, got 1.5",
    ),
    "space file that does not exist": (
        replaced("space:\n  learning_rate: [5e-5, 3e-5]\n  epochs: [1, 2]", "space: nowhere.yaml"),
        "bad.yaml:7: space: there is no file 'nowhere.yaml'",
    ),
    "length beyond the model": (
        replaced("  columns:", "  max_length: 4096\n  columns:"),
        "bad.yaml:6: data.max_length: data.max_length 4096: minilm-l6 takes at most 512 tokens",
    ),
    "length of the space beyond the model": (
        space("data.max_length: [64, 4096]"),
        "bad.yaml:9: space.data.max_length: data.max_length 4096: minilm-l6 takes at most 512 tokens",
    ),
    "model without its source": (
        replaced("example:minilm-l6", "minilm-l6"),
        "bad.yaml:3: model: a model is written as example:NAME, hub:organisation/name[@revision], ./folder or /folder, but got 'minilm-l6' (did you mean 'example:minilm-l6'?)",
    ),
    "MLflow at an unknown kind of address": (
        added("tracking: {uri: nonsense://x}\n"),
        "bad.yaml:14: tracking: uri must be a database (sqlite:///mlflow.db) or a server (http://...), got 'nonsense://x'",
    ),
    "registered model with a slash": (
        added("tracking: {registered_model: a/b}\n"),
        "bad.yaml:14: tracking: registered_model must not hold '/', ':' or an apostrophe, which MLflow refuses, got 'a/b'",
    ),
    "no YAML": (
        replaced("{type: grid}", "{type: grid"),
        "bad.yaml:11: this is not YAML: expected ',' or '}', but got ':', got 'metric: accuracy' (begun on line 10): a bracket or a comma is missing",
    ),
    "alias": (
        replaced("[5e-5, 3e-5]", "&a [5e-5, 3e-5]\n  weight_decay: *a"),
        "bad.yaml:8: anchors and aliases are refused, got '&a' and 1 more: write the value out",
    ),
    "tag": (
        replaced("name: good", "name: !!python/object/apply:os.system ['true']"),
        "bad.yaml:1: name: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is refused: write the value itself; quotes make it text",
    ),
    "empty file": (
        "",
        "bad.yaml: the file is empty: it must hold `key: value` lines",
    ),
    "a list": (
        "- name: good\n",
        "bad.yaml:1: the top level must be a mapping (`key: value` lines), got a list",
    ),
    "5 MB": (
        GOOD + "#" * 5_000_000,
        "bad.yaml: the file has 5,000,259 bytes, at most 250,000 are read: is it a data file?",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_what_would_be_right(name: str, tmp_path: Path) -> None:
    text, expected = BAD[name]
    file = tmp_path / "bad.yaml"
    file.write_text(text)

    with pytest.raises(UserError) as caught:
        load_sweep(file, check=check)

    message = str(caught.value).replace(f"{tmp_path}/", "").replace(str(tmp_path), "FOLDER")
    assert message == expected


def write(folder: Path, text: str = GOOD) -> Path:
    file = folder / "good.yaml"
    file.write_text(text)
    return file


def test_all_problems_are_shown_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = training("lr: 1").replace("[1, 2]", "[0]").replace("name: good", "nane: good")

    with pytest.raises(UserError) as caught:
        load_sweep(write(tmp_path, text))

    assert [problem.line for problem in caught.value.problems] == [1, 9, 13]


def test_a_good_file_becomes_a_sweep(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path), check=check)

    assert sweep.training.batch_size == 8
    assert sweep.training.lr_schedule == Constant(type="constant")
    assert sweep.metric.epoch == "best"
    assert [dimension.name for dimension in sweep.space.dimensions] == ["learning_rate", "epochs"]
    assert sweep.space.dimensions[0].domain == Choice((5e-5, 3e-5))


def test_set_wins_over_the_file_and_reaches_nested_settings_and_dimensions(tmp_path: Path) -> None:
    sets = ["training.batch_size=4", "training.lr_schedule=linear", "space.epochs=[3]", "data.limit.train=50"]

    sweep = load_sweep(write(tmp_path), sets, check)

    assert (sweep.training.batch_size, sweep.training.lr_schedule.type) == (4, "linear")
    assert sweep.space.dimensions[1].domain == Choice((3,))
    assert sweep.data.limit is not None
    assert sweep.data.limit.train == 50


@pytest.mark.parametrize("written", ["space.yaml", "[space.yaml, {batch_size: [4]}]"])
def test_set_reaches_dimensions_of_a_space_in_files(written: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("learning_rate: [1e-5]\nepochs: [1, 2]\n")
    text = replaced("space:\n  learning_rate: [5e-5, 3e-5]\n  epochs: [1, 2]", f"space: {written}")

    space = load_sweep(
        write(tmp_path, text), ["space.learning_rate=[1e-3]", "space.weight_decay=[0.0]"]
    ).space

    domains = {dimension.name: dimension.domain for dimension in space.dimensions}
    assert (domains["learning_rate"], domains["epochs"]) == (Choice((1e-3,)), Choice((1, 2)))
    assert domains["weight_decay"] == Choice((0.0,))
    with pytest.raises(UserError, match=r"^--set space.epochs=\[0\]: space.epochs: must be >= 1, got 0$"):
        load_sweep(tmp_path / "good.yaml", ["space.epochs=[0]"])


def test_a_mistake_in_set_is_told_by_its_text(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--set training.batch_size=x: training.batch_size: must be a whole number"
    ):
        load_sweep(write(tmp_path), ["training.batch_size=x"])


def test_set_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--set takes key=value, got 'batch_size'"):
        load_sweep(write(tmp_path), ["batch_size"])


def test_later_parts_of_a_space_override_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "first.yaml").write_text("learning_rate: [1e-5]\nbatch_size: [4, 8]\n")
    old = "space:\n  learning_rate: [5e-5, 3e-5]\n  epochs: [1, 2]"
    text = replaced(old, "space: [spaces/first.yaml, {learning_rate: [2e-5, 3e-5]}]")

    space = load_sweep(write(tmp_path, text), check=check).space

    assert {d.name: d.domain for d in space.dimensions} == {
        "batch_size": Choice((4, 8)),
        "learning_rate": Choice((2e-5, 3e-5)),
    }


def test_a_problem_in_a_space_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("# dimensions\nbatch_size: [0]\n")
    text = replaced("space:\n  learning_rate: [5e-5, 3e-5]\n  epochs: [1, 2]", "space: space.yaml")

    with pytest.raises(UserError, match=r"space.yaml:2: space.batch_size: must be >= 1, got 0"):
        load_sweep(write(tmp_path, text))


def test_a_range_of_whole_numbers_is_one_of_fractions_where_the_setting_is(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, space("weight_decay: {low: 0, high: 1, count: 3}")))

    assert sweep.space.dimensions[1].domain == FloatRange(0.0, 1.0, count=3)


def test_relative_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    text = replaced("source: example:acl-aspects", "source: ./reviews.csv") + "storage: ../runs\n"

    sweep = load_sweep(write(tmp_path, text))

    assert sweep.data.source == str(tmp_path / "reviews.csv")
    assert sweep.storage == str(tmp_path.parent / "runs")


def test_the_first_model_of_the_space_stands_for_a_model_that_is_not_given(tmp_path: Path) -> None:
    text = replaced("model: example:minilm-l6\n", "").replace(
        "  epochs: [1, 2]", "  model: [example:minilm-l6]"
    )

    assert load_sweep(write(tmp_path, text), check=check).model == "example:minilm-l6"


def test_a_configuration_takes_the_place_of_fixed_settings(tmp_path: Path) -> None:
    sweep: Sweep = load_sweep(write(tmp_path))

    training = training_of(sweep, {"learning_rate": 1e-4, "early_stopping.patience": 2, "model": "any"})

    assert (training.learning_rate, training.batch_size) == (1e-4, 8)
    assert training.early_stopping is not None
    assert training.early_stopping.patience == 2


def test_a_nested_dimension_begins_with_the_default_of_its_section(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, space("lr_schedule.warmup_steps: [0, 5]")), check=check)

    assert training_of(sweep, {"lr_schedule.warmup_steps": 5}).lr_schedule == Constant(
        type="constant", warmup_steps=5
    )


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        ("augment.copies: [0, 1, 2]", "augment: copies 1 without a rate repeats each row unchanged"),
        ("early_stopping.min_delta: [0.0, 0.1]", "early_stopping.patience: is required"),
    ],
)
def test_a_section_that_a_dimension_leaves_incomplete_is_told_with_its_line(
    dimension: str, expected: str, tmp_path: Path
) -> None:
    name = dimension.partition(":")[0]

    with pytest.raises(UserError, match=rf"good\.yaml:9: space\.{name}: {expected}"):
        load_sweep(write(tmp_path, space(dimension)))
    complete = "training.early_stopping={patience: 1}", "training.augment={swap: 0.1}"
    load_sweep(write(tmp_path, space(dimension)), complete)


def test_a_configuration_that_is_not_possible_is_told_with_the_line_of_its_dimension(tmp_path: Path) -> None:
    """Two dimensions of one section may complete each other, so the check of each alone says nothing."""
    dimensions = "early_stopping.min_delta: [0.1]\n  early_stopping.monitor: [loss]"
    sweep = load_sweep(write(tmp_path, space(dimensions)))

    with pytest.raises(UserError, match=r"good\.yaml:9: space\.early_stopping\.min_delta: .* not possible"):
        training_of(sweep, {"early_stopping.min_delta": 0.1, "early_stopping.monitor": "loss"})


def test_values_that_do_not_go_together_are_refused_with_the_configuration(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path))

    with pytest.raises(
        UserError, match=r"gradient_accumulation_steps \(9\) must not exceed batch_size \(8\)"
    ):
        training_of(sweep, {"gradient_accumulation_steps": 9})
