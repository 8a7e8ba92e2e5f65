"""A promoted model, as its user has it: a folder, loaded by the class and the pipeline of transformers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Final

from PIL import Image

from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import PictureReader, quiet_loading, tokenizer_of

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
        processor: Any = load_processor(folder, described)
        given: Any = described.input_example()[0]
        pictures = any(column.kind == "image" for column in described.columns)
        given = _picture(given) if pictures else given
        if described.pipeline not in get_supported_tasks():
            answer: object = _written(model, processor, given, max_length)
        else:
            role = {"image_processor" if pictures else "tokenizer": processor}
            pipeline: Any = transformers.pipeline
            answer = pipeline(described.pipeline, model=model, **role)(given)
    return " ".join(str(answer).split())[:_SHOWN]


def _written(model: Any, processor: Any, given: Any, max_length: int) -> str:  # noqa: ANN401 - of transformers
    """What a model writes that no pipeline is for: to a text, or about a picture."""
    if isinstance(processor, PictureReader):
        made = processor.image_processor(given.convert("RGB"), return_tensors="pt")
        written = model.generate(pixel_values=made.pixel_values)
    else:
        made = processor(given, truncation=True, max_length=max_length, return_tensors="pt")
        written = model.generate(input_ids=made.input_ids, attention_mask=made.attention_mask)
    return str(tokenizer_of(processor).decode(written[0], skip_special_tokens=True))


def _picture(content: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content)))
