"""Finding a model's folder, and reading it without loading it."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_sweep.errors import UserError
from finetune_sweep.train import weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder: configuration, tokenizer and two tensors."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    (made / "tokenizer.json").write_text("{}")
    save_file(
        {"a.weight": np.zeros((3, 2), np.float32), "b.bias": np.ones(3, np.float32)},
        made / "model.safetensors",
    )
    return made


def split_in_two(folder: Path) -> None:
    """Turns the weights of ``folder`` into two shards with an index."""
    (folder / "model.safetensors").unlink()
    save_file({"a.weight": np.zeros((3, 2), np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b.bias": np.ones(3, np.float32)}, folder / "model-00002-of-00002.safetensors")
    shards = {"a.weight": "model-00001-of-00002.safetensors", "b.bias": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_a_folder_is_relative_to_the_sweep_file(folder: Path, tmp_path: Path) -> None:
    sweeps = tmp_path / "sweeps"
    sweeps.mkdir()
    assert weights.locate("./model", tmp_path, tmp_path) == folder
    assert weights.locate("../model", sweeps, tmp_path) == folder
    assert weights.locate(str(folder), sweeps, tmp_path) == folder


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ("config.json", "has no config.json; it holds model.safetensors, tokenizer.json"),
        (
            "model.safetensors",
            "has no model.safetensors .pickled weights are not read.; it holds config.json",
        ),
        (
            "tokenizer.json",
            "or other file of a tokenizer, nor preprocessor_config.json of pictures; it holds config",
        ),
    ],
)
def test_a_folder_that_lacks_a_file_is_told_with_what_it_holds(
    folder: Path, removed: str, expected: str
) -> None:
    (folder / removed).unlink()
    with pytest.raises(UserError, match=expected):
        weights.locate("./model", folder.parent, folder)


def test_weights_deeper_in_the_folder_do_not_count(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.safetensors").rename(folder / "onnx" / "model.safetensors")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        weights.locate("./model", folder.parent, folder)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("./nothing", "there is no folder .*/nothing"),
        ("model", "did you mean './model'"),
        ("minilm-l6", "did you mean 'example:minilm-l6'"),
        ("google-bert/bert-base-uncased", "did you mean 'hub:google-bert/bert-base-uncased'"),
        ("example:minilm-l7", "did you mean 'minilm-l6'"),
        ("hub:a/b/c", "written as hub:organisation/name"),
        ("", "a model is written as example:NAME"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told_what_it_may_be(
    folder: Path, reference: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        weights.locate(reference, folder.parent, folder)


def test_shapes_are_those_of_the_file(folder: Path) -> None:
    assert weights.parameter_shapes(folder) == {"a.weight": (3, 2), "b.bias": (3,)}


def test_shards_are_read_as_one_file(folder: Path) -> None:
    split_in_two(folder)
    assert weights.locate("./model", folder.parent, folder) == folder
    assert weights.parameter_shapes(folder) == {"a.weight": (3, 2), "b.bias": (3,)}


def test_constants_of_old_files_are_no_parameters(folder: Path) -> None:
    tensors = {name: np.ones(2, np.float32) for name in ("h.0.attn.bias", "h.0.attn.c_attn.bias")}
    tensors["embeddings.position_ids"] = np.ones(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert weights.parameter_shapes(folder) == {"h.0.attn.c_attn.bias": (2,)}


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    split_in_two(folder)
    outside = folder.parent / "model.safetensors"
    save_file({"a.weight": np.zeros(1, np.float32)}, outside)
    index = folder / "model.safetensors.index.json"
    for name in (str(outside), "../model.safetensors", "missing.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
        with pytest.raises(UserError, match="which is not in"):
            weights.parameter_shapes(folder)


def test_a_truncated_file_is_told(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors"):
        weights.parameter_shapes(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"'])
def test_a_damaged_configuration_is_told(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json (cannot be read as JSON|must hold a JSON object)"):
        weights.read_config(folder)


def test_a_fingerprint_changes_with_the_content_only(folder: Path, tmp_path: Path) -> None:
    before = weights.fingerprint(folder)
    (folder / "README.md").write_text("changed")
    (folder / "config.json").write_text(
        '{"num_hidden_layers": 2, "transformers_version": "9", "model_type": "bert", "_name_or_path": "x"}'
    )
    moved = folder.rename(tmp_path / "elsewhere")
    assert weights.fingerprint(moved) == before
    (moved / "tokenizer.json").write_text('{"changed": 1}')
    with_tokenizer = weights.fingerprint(moved)
    save_file({"a.weight": np.ones((3, 2), np.float32)}, moved / "model.safetensors")
    with_weights = weights.fingerprint(moved)
    (moved / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 1}')
    assert len({before, with_tokenizer, with_weights, weights.fingerprint(moved)}) == 4


def test_no_training_library_is_loaded(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from finetune_sweep import examples
from finetune_sweep.train import architecture, weights
folder = weights.locate("./model", Path({str(folder.parent)!r}), Path("."))
weights.fingerprint(folder), weights.parameter_shapes(folder)
architecture.describe(weights.read_config(folder))
print(*{{"torch", "transformers", "ray", "mlflow", "datasets", "optuna"}}.intersection(sys.modules))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@contextmanager
def hub_of(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves ``folder`` as the repository org/tiny; yields the address, and the files that were asked for."""
    fetched: list[str] = []
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/api/models/org/tiny/revision/main":
                self.answer(json.dumps({"id": "org/tiny", "sha": COMMIT}).encode())
            elif path == f"/api/models/org/tiny/tree/{COMMIT}":
                rows = [
                    {"type": "file", "path": name, "size": len(content), "oid": f"{number:040x}"}
                    for number, (name, content) in enumerate(files.items())
                ]
                self.answer(json.dumps(rows).encode())
            elif (name := path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")) in files:
                fetched.append(name)
                self.answer(files[name])
            else:
                code = "RevisionNotFound" if "/org/tiny/" in path else "RepoNotFound"
                self.answer(b"{}", status=404, error=code)

        do_HEAD = do_GET  # noqa: N815 - the server looks for this name

        def answer(self, content: bytes, status: int = 200, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(content):x}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base class
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()


def locate_at(endpoint: str, reference: str, tmp_path: Path) -> str:
    """Locates a hub reference in a fresh process, since the hub's address is read at import."""
    code = f"""
from pathlib import Path
from finetune_sweep.errors import UserError
from finetune_sweep.train import weights
try:
    print(weights.locate({reference!r}, Path("."), Path(".")))
except UserError as error:
    print(error)
"""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | settings
    return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip()


def test_a_model_of_the_hub_comes_without_pickles_and_without_what_lies_deeper(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("pytorch_model.bin", "flax_model.msgpack", "modeling_tiny.py", "consolidated.safetensors"):
        (folder / name).write_bytes(b"0")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"0")
    with hub_of(folder) as (endpoint, fetched):
        found = Path(locate_at(endpoint, "hub:org/tiny", tmp_path))
        again = Path(locate_at(endpoint, f"hub:org/tiny@{COMMIT}", tmp_path))
    assert set(fetched) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert found == again
    assert found.name == COMMIT
    assert weights.fingerprint(found) == weights.fingerprint(folder)


def test_the_hub_is_asked_once_however_often_a_model_is_located(folder: Path, tmp_path: Path) -> None:
    with hub_of(folder) as (endpoint, _):
        code = """
from pathlib import Path
from finetune_sweep.train import weights
first = weights.locate("hub:org/tiny", Path("."), Path("."))
import huggingface_hub
huggingface_hub.snapshot_download = None
print(weights.locate("hub:org/tiny", Path("."), Path(".")) == first)
"""
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub")}
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | settings
        said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert said.strip() == "True"


def test_a_model_that_the_hub_does_not_have_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with hub_of(folder) as (endpoint, _):
        unknown = locate_at(endpoint, "hub:org/other", tmp_path)
        revision = locate_at(endpoint, "hub:org/tiny@v9", tmp_path)
    assert unknown == "hub:org/other does not exist, or is private and needs `hf auth login`"
    assert revision == "hub:org/tiny@v9: the hub has no revision 'v9' of it"


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(tmp_path: Path) -> None:
    told = locate_at("http://127.0.0.1:9", "hub:org/tiny", tmp_path)
    assert told.startswith("hub:org/tiny cannot be reached: ")
    assert "\n" not in told
