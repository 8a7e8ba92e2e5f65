"""Models that were not pretrained: `scratch:FOLDER`, a folder with `config.json` and no weights.

They become a folder like any other, with random weights that follow from the configuration alone. So the body
of such a model is the same for every seed of a sweep; heads are drawn by the trial's seed as ever.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from finetune_sweep.durable import explained, folder_aside
from finetune_sweep.errors import UserError
from finetune_sweep.train.pairs import PAIR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX: Final = "scratch:"
_WEIGHTS: Final = "model.safetensors"


def model_folder(source: Path, cache: Path) -> Path:
    """Returns a folder with everything of the source and new weights; made when first asked for.

    Args:
        source: Holds `config.json`, and a tokenizer or an image processor, as transformers writes them.
        cache: Where it is kept, by content.

    Raises:
        UserError: The folder has no configuration, has weights, or none of the library's models is its.
        StorageError: The cache cannot be written.
    """
    files = sorted(file for file in source.glob("*") if file.is_file()) if source.is_dir() else []
    names = {file.name for file in files}
    if "config.json" not in names:
        raise UserError(
            f"{PREFIX}{source}: must be a folder with config.json, it has {', '.join(sorted(names)) or 'none'}"
        )
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        raise UserError(
            f"{PREFIX}{source}: holds weights; write the folder without {PREFIX!r} to start from them"
        )
    content = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    target = cache.absolute() / "scratch" / name
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f"{name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / _WEIGHTS).is_file():
            with folder_aside(target) as unfinished:
                for file in files:
                    shutil.copyfile(file, unfinished / file.name)
                _write_weights(source, unfinished)
    return target


def _write_weights(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    from finetune_sweep.tasks.processors import quiet_loading

    try:
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
            # Of a pair, transformers has no class without the head of the model that writes.
            auto: Any = AutoModelForImageTextToText if config.model_type == PAIR else AutoModel
            model = auto.from_config(config, trust_remote_code=False)
            _draw_tokens(model)
            model.save_pretrained(str(target))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{PREFIX}{source}: no model can be made of config.json: {reason}") from error


def _draw_tokens(model: PreTrainedModel) -> None:
    """Draws the tokens and positions that a class leaves at zero since checkpoints have them, as YOLOS does.

    Tokens for boxes that are equal at the beginning are told apart by nothing but what they are matched with, and where
    all places are equal, no box can be. They are drawn as torch draws embeddings.
    """
    for parameter in model.parameters():
        if parameter.ndim == 3 and not parameter.any():
            parameter.data.normal_()
