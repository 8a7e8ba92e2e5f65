"""The sweeps for the hub, as far as they can be checked without it: models and rows of the published shapes, but small.

What the hub holds is written down here: the blocks and positions of each model, the columns of each data set. The sweep
is planned as it stands, through the code that reads the hub, which is given such rows; so a depth that the model does
not have, a column that is not there, or a split that is missing is found.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as Picture

from finetune_sweep import plan
from finetune_sweep.errors import UserError
from finetune_sweep.plan import Plan
from finetune_sweep.sweepfile import load_sweep
from finetune_sweep.train import scratch
from tests.tasks.models import CASES
from tests.test_sweeps import TRIALS

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
ROWS = 40
TEXT = Value("string")
TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]


def png(number: int) -> bytes:
    """A picture of one colour, another one for each number."""
    content = io.BytesIO()
    Picture.new("RGB", (8, 8), (number % 256, 6 * (number % 40), number // 256)).save(content, "png")
    return content.getvalue()


def cell(feature: object, number: int, name: str) -> object:
    """A value of a column, another one in each row."""
    match feature:
        case ClassLabel():
            return number % feature.num_classes
        case Image():
            return {"bytes": png(number), "path": None}
        case Sequence():
            return [cell(feature.feature, number + place, name) for place in range(3)]
        case Value(dtype="string"):
            return f"{name} a{'bcdef'[number % 5]} {number}"
        case _:
            return float(number % 6)


def rows(features: Mapping[str, object], first: int, hidden: str = "") -> Dataset:
    """Rows with these columns; `hidden` is the one whose labels are withheld."""
    columns = {
        name: [-1 if name == hidden else cell(feature, first + row, name) for row in range(ROWS)]
        for name, feature in features.items()
    }
    return Dataset.from_dict(columns, features=Features(dict(features)))


@dataclass(frozen=True)
class Published:
    """What the hub has under the names that a sweep uses.

    Args:
        model: Of the configuration of the model, what decides how deep it can be frozen and how long a text may be.
        columns: Those of the data set.
        splits: How its splits are called.
        hidden: The column whose values the test split withholds.
    """

    model: Mapping[str, object]
    columns: Mapping[str, object] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train", "validation", "test")
    hidden: str = ""


BERT = {"num_hidden_layers": 12, "max_position_embeddings": 512}
PUBLISHED: Mapping[str, Published] = {
    "addresses_hub": Published(
        BERT,
        {
            "id": TEXT,
            "tokens": Sequence(TEXT),
            "pos_tags": Sequence(ClassLabel(names=[f"p{number}" for number in range(47)])),
            "ner_tags": Sequence(ClassLabel(names=TAGS)),
        },
    ),
    "bert_hub": Published(
        BERT,
        {"idx": Value("int32"), "sentence": TEXT, "label": ClassLabel(names=["negative", "positive"])},
        hidden="label",
    ),
    "pairs_hub": Published(
        BERT,
        {
            "sentence1": TEXT,
            "sentence2": TEXT,
            "label": ClassLabel(names=["not_equivalent", "equivalent"]),
            "idx": Value("int32"),
        },
    ),
    "places_hub": Published(
        BERT,
        {"sentence1": TEXT, "sentence2": TEXT, "label": Value("float32"), "idx": Value("int32")},
        hidden="label",
    ),
    "mnist_hub": Published(
        {"num_hidden_layers": 12},
        {"img": Image(), "label": ClassLabel(names=[f"c{number}" for number in range(10)])},
        ("train", "test"),
    ),
    "captions_hub": Published(
        {
            "encoder": {"num_hidden_layers": 12},
            "decoder": {"n_layer": 12, "n_positions": 1024},
        },
        {"image": Image(), **{f"caption_{number}": TEXT for number in range(5)}},
    ),
    "summaries_hub": Published(
        {"num_layers": 6, "num_decoder_layers": 6},
        {"document": TEXT, "summary": TEXT, "id": TEXT},
    ),
    "smollm2_hub": Published(
        {"n_layer": 12, "n_positions": 1024},
        {"instruction": TEXT, "context": TEXT, "response": TEXT, "category": TEXT},
        ("train",),
    ),
    "scenes_hub": Published({"num_hidden_layers": 12}),
}

Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Plans a sweep for the hub on a small model and rows of the published shape."""

    def plan_it(name: str, *sets: str) -> Plan:
        published = PUBLISHED[name]
        task = load_sweep(SWEEPS / f"{name}.yaml").task
        folder = CASES[task].model(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        for key, value in published.model.items():
            config[key] = config[key] | value if isinstance(value, dict) else value
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").unlink()
        model = scratch.model_folder(folder, tmp_path / "cache")  # with weights, as if it had been pretrained
        own = [f"model={model}", f"cache={tmp_path / 'cache'}", f"storage={tmp_path / 'runs'}"]
        own.append("resources_per_trial={cpu: 1}")
        if published.columns:
            monkeypatch.setattr(datasets, "load_dataset", loader(name))
        else:
            own.append(f"data.source={coco(tmp_path)}")
        return plan.make_plan(load_sweep(SWEEPS / f"{name}.yaml", [*own, *sets], plan.check))

    return plan_it


def loader(name: str) -> Callable[..., DatasetDict]:
    """What the hub would give, if it is asked for what the sweep names."""
    published = PUBLISHED[name]

    def load_dataset(path: str, config: str | None, revision: str | None, **_: object) -> DatasetDict:
        asked = path + (f":{config}" if config else "") + (f"@{revision}" if revision else "")
        source = load_sweep(SWEEPS / f"{name}.yaml").data.source
        assert source == f"hub:{asked}"
        return DatasetDict(
            {
                split: rows(published.columns, ROWS * place, published.hidden if split == "test" else "")
                for place, split in enumerate(published.splits)
            }
        )

    return load_dataset


def coco(folder: Path) -> Path:
    """Annotations as COCO has them, in a folder beside that of the pictures."""
    (folder / "coco" / "annotations").mkdir(parents=True)
    (folder / "coco" / "val2017").mkdir()
    images = []
    for number in range(ROWS):
        images.append({"id": number, "file_name": f"{number:012}.jpg", "width": 8, "height": 8})
        (folder / "coco" / "val2017" / f"{number:012}.jpg").write_bytes(png(number))
    boxes = [
        {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1, 1, 4, 4], "iscrowd": 0, "area": 16}
        for n in range(ROWS)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    file = folder / "coco" / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return file


def test_every_sweep_for_the_hub_is_here() -> None:
    assert set(PUBLISHED) == {file.stem for file in SWEEPS.glob("*_hub.yaml")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_planned_on_what_the_hub_holds(name: str, planned: Planned) -> None:
    found = planned(name)
    assert len(found.trials) == TRIALS[name]
    assert all(found.rows[split] > 1 for split in ("train", "validation", "test"))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("addresses_hub", "data.columns={tokens: tokens, tags: nerr_tags}", "nerr_tags"),
        ("addresses_hub", "space.freeze_depth=[0, 400]", "400"),
        ("summaries_hub", "space.freeze_depth=[0, 13]", "13"),
        ("bert_hub", "data.max_length=513", "513"),
    ],
)
def test_what_the_hub_does_not_have_is_found(name: str, change: str, expected: str, planned: Planned) -> None:
    with pytest.raises(UserError, match=expected):
        planned(name, change)
