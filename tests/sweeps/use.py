"""A promoted model, as its user has it: a folder, loaded by the class and the pipeline of transformers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Final

from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import quiet_loading
from finetune_sweep.tasks.loading import load_processor

_SHOWN: Final = 60


def use(folder: Path, task: str, max_length: int) -> str:
    """Loads a model with its task's class, and asks it once: by its pipeline, where there is one.

    Returns:
        What it said, shortened.
    """
    import transformers
    from transformers.pipelines import get_supported_tasks

    described = TASKS[task]
    with quiet_loading():
        model = getattr(transformers, described.auto_model).from_pretrained(str(folder))
        processor: Any = load_processor(folder)
        given: Any = described.input_example()[0]
        if described.pipeline not in get_supported_tasks():
            ids = processor(given, truncation=True, max_length=max_length, return_tensors="pt")
            written = model.generate(input_ids=ids.input_ids, attention_mask=ids.attention_mask)
            answer: object = processor.decode(written[0], skip_special_tokens=True)
        else:
            pictures = any(column.kind == "image" for column in described.columns)
            role = {"image_processor" if pictures else "tokenizer": processor}
            pipeline: Any = transformers.pipeline
            answer = pipeline(described.pipeline, model=model, **role)(_picture(given) if pictures else given)
    return " ".join(str(answer).split())[:_SHOWN]


def _picture(content: str) -> object:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(content)))
