"""Texts about pictures: what of a row enters a batch, what a model writes, and where pictures and texts may lie."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText

from finetune_sweep.errors import UserError
from finetune_sweep.spec import Data
from finetune_sweep.tasks import TASKS, wording
from finetune_sweep.tasks.arrays import IGNORED
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import PictureReader
from finetune_sweep.train.data import Prepared, prepare
from finetune_sweep.train.loop import evaluate
from finetune_sweep.train.packing import PaddedModel
from tests.tasks.models import picture, tiny_captioner, tiny_gpt2, tiny_vit

TASK = TASKS["image-captioning"]
RECIPE = Path(__file__).resolve().parent.parent.parent / "docs" / "tasks.md"


def rows(*texts: str) -> Dataset:
    return Dataset.from_dict({"image": [picture(40 * row) for row in range(len(texts))], "text": list(texts)})


def test_the_decoder_is_given_the_tokens_before_and_a_text_ends(tmp_path: Path) -> None:
    folder = tiny_captioner(tmp_path)
    model, new = TASK.build_model(folder, ())
    processor = load_processor(folder, TASK)
    task = TASK.bound(model, processor)
    batch = task.collate(task.encode(rows("d e f", "f"), processor, (), 16), np.array([0, 1]), 1)
    assert new == ()
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert batch["decoder_input_ids"].tolist() == [[1, 6, 7, 8], [1, 8, 1, 1]]
    assert batch["labels"].tolist() == [[6, 7, 8, 1, *[IGNORED] * 4], [8, 1, *[IGNORED] * 6]]
    output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    labels = batch["labels"][:, :4]
    whole = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )
    losses = task.losses(output, batch)
    assert (4 * losses[0] + 2 * losses[1]).item() / 6 == pytest.approx(whole.item(), rel=1e-5)


def test_what_is_written_is_the_likeliest_token_each_time(tmp_path: Path) -> None:
    folder = tiny_captioner(tmp_path)
    model, _ = TASK.build_model(folder, ())
    processor = load_processor(folder, TASK)
    task = TASK.bound(model, processor)
    encoded = task.encode(rows("d e"), processor, (), 16)
    found = evaluate(PaddedModel(model), task, encoded, device="cpu", precision="fp32", pad_token_id=1)
    pixels = task.collate(encoded, np.array([0]), 1)["pixel_values"]
    ids = [1]
    while len(ids) <= 6 and (len(ids) == 1 or ids[-1] != 1):
        logits = model(pixel_values=pixels, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    names = dict(enumerate(["", "", "", *"abcdef"]))
    assert wording.texts_of(found.values)[0].split() == [names[i] for i in ids if names[i]]
    assert wording.texts_of(found.labels) == ["d e"]


@pytest.mark.parametrize(
    ("lost", "expected"),
    [("tokenizer.json", "holds no tokenizer"), ("preprocessor_config.json", "holds no image processor")],
)
def test_a_folder_needs_a_tokenizer_and_an_image_processor(lost: str, expected: str, tmp_path: Path) -> None:
    folder = tiny_captioner(tmp_path)
    (folder / lost).unlink()
    with pytest.raises(UserError, match=f"{folder}: {expected}"):
        load_processor(folder, TASK)


def test_a_text_model_is_told_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model from picture to text can be made of this model"):
        TASK.build_model(tiny_gpt2(tmp_path), ())


def test_a_folder_that_does_not_say_how_a_text_begins_is_refused(tmp_path: Path) -> None:
    folder = tiny_captioner(tmp_path)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("decoder_start_token_id", None)
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="has no decoder_start_token_id"):
        TASK.build_model(folder, ())


def test_pictures_that_become_of_different_sizes_are_refused(tmp_path: Path) -> None:
    folder = tiny_captioner(tmp_path)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "do_resize": False}))
    processor = load_processor(folder, TASK)
    assert isinstance(processor, PictureReader)
    two = Dataset.from_dict({"image": [picture(0, (8, 8)), picture(0, (20, 11))], "text": ["a b", "c d"]})
    with pytest.raises(
        UserError, match=r"makes pictures of different sizes, as 8 x 8 and 11 x 20; its `size`"
    ):
        TASK.encode(two, processor, (), 16)


def beside(folder: Path, name: str, lines: list[dict[str, str]]) -> Data:
    """A folder of pictures with a table beside them, as `datasets` has it for folders of pictures."""
    folder.mkdir()
    for row in range(len(lines)):
        (folder / f"{row}.png").write_bytes(picture(8 * row))
    if name.endswith(".csv"):
        text = "".join(f"{','.join(line)}\n" for line in (list(lines[0]), *(line.values() for line in lines)))
    else:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / name).write_text(text)
    return Data(source=str(folder))


def read(data: Data, folder: Path) -> Prepared:
    return prepare(data, TASK, folder, folder / "cache")


LINES = [{"file_name": f"{row}.png", "text": f"a picture of level {8 * row}"} for row in range(20)]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_pictures_and_a_table_beside_them_are_pairs(name: str, tmp_path: Path) -> None:
    found = read(beside(tmp_path / "pictures", name, LINES), tmp_path)
    pairs = [(row["image"], row["text"]) for split in found.splits.values() for row in split]
    assert sorted(pairs) == sorted((picture(8 * row), f"a picture of level {8 * row}") for row in range(20))


def test_a_table_names_pictures_relative_to_itself(tmp_path: Path) -> None:
    beside(tmp_path / "pictures", "other.txt", LINES)
    table = [{"photo": f"pictures/{row}.png", "caption": f"level {row}"} for row in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in table))
    data = Data(source="pairs.jsonl", columns={"image": "photo", "text": "caption"})
    assert sum(len(split) for split in read(data, tmp_path).splits.values()) == 20


def test_a_picture_that_is_not_there_or_damaged_is_told_with_file_and_row(tmp_path: Path) -> None:
    data = beside(tmp_path / "pictures", "metadata.csv", LINES)
    (tmp_path / "pictures" / "3.png").write_bytes(picture(3)[:40])
    with pytest.raises(UserError, match=r"metadata.csv: row 4: the picture 3.png is damaged, or no picture"):
        read(data, tmp_path)
    (tmp_path / "pictures" / "3.png").unlink()
    with pytest.raises(
        UserError, match=r"metadata.csv: row 4: the picture .*3.png cannot be read: No such file"
    ):
        read(data, tmp_path)


def test_two_pretrained_models_become_one_by_the_lines_of_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", RECIPE.read_text(encoding="utf-8"), re.DOTALL)
    lines = next(block for block in blocks if "from_encoder_decoder_pretrained" in block)
    reads, writes = tiny_vit(tmp_path / "vit"), tiny_gpt2(tmp_path / "gpt2")
    for hub, folder in (("google/vit-base-patch16-224-in21k", reads), ("openai-community/gpt2", writes)):
        assert hub in lines
        lines = lines.replace(hub, str(folder))
    monkeypatch.chdir(tmp_path)
    tokenizer = json.loads((writes / "tokenizer_config.json").read_text())
    tokenizer.pop("pad_token")  # as that of GPT-2
    (writes / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"bos_token": "</s>"}))
    exec(lines, {})  # noqa: S102 - the document's own words
    made = tmp_path / "vit-gpt2"
    shutil.rmtree(reads)
    auto: Any = AutoModelForImageTextToText
    assert auto.from_pretrained(made).config.decoder_start_token_id == 1
    model, new = TASK.build_model(made, ())
    assert new == ()
    processor = load_processor(made, TASK)
    encoded = TASK.bound(model, processor).encode(rows("a b"), processor, (), 16)
    labels = encoded.columns["labels"]
    assert labels[0].tolist() == [3, 4, 1]
