"""Loading what a model folder holds: the model with a task's head, and what makes its inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_sweep.errors import UserError
from finetune_sweep.tasks.processors import PictureReader, load_image_processor, load_tokenizer, quiet_loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from finetune_sweep.tasks.arrays import Batch
    from finetune_sweep.tasks.contract import Task
    from finetune_sweep.tasks.processors import Processor

WRITTEN: Final = 128
"""Tokens that a model which continues texts may write for a user, unless its folder says otherwise."""
_OF_TOKENS: Final = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""What a `generation_config.json` may say of tokens that its model was made with."""


def load_processor(folder: Path, task: Task) -> Processor:
    """Loads what makes the inputs of a model: an image processor for pictures, a tokenizer for texts, or both.

    Raises:
        UserError: The folder has it not, or it cannot be loaded.
    """
    kinds = {column.kind for column in task.columns}
    if "image" not in kinds:
        return load_tokenizer(folder)
    image_processor = load_image_processor(folder)
    return PictureReader(image_processor, load_tokenizer(folder)) if "text" in kinds else image_processor


def load_model(
    folder: Path, auto_model: str, classes: Sequence[str], problem_type: str | None = None
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Loads a pretrained model in float32, with a head of one output a class; one of another size is replaced.

    Args:
        folder: The model.
        auto_model: The class of transformers that gives it the head.
        classes: The names that its config gets; none for a model that writes texts.
        problem_type: What its config calls the task, where its pipeline reads that.

    Returns:
        The model, and the sorted names of the parameters that the folder does not have.

    Raises:
        UserError: The folder holds no such model in safetensors, or its body is not all there.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    settings: dict[str, object] = {"problem_type": problem_type} if problem_type else {}
    if classes:
        settings["id2label"] = dict(enumerate(classes))
        settings["label2id"] = {name: place for place, name in enumerate(classes)}
    try:
        with quiet_loading():
            model: PreTrainedModel
            model, info = getattr(transformers, auto_model).from_pretrained(
                str(folder),
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: no {_what(auto_model)} can be made of this model: {reason}") from error
    absent = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
    new = tuple(sorted(absent & {name for name, _ in model.named_parameters()}))
    _check_body(folder, model, new)
    return model, new


def _what(auto_model: str) -> str:
    """`AutoModelForTokenClassification` as a reader says it."""
    words = {
        "SequenceClassification": "text classifier",
        "TokenClassification": "token classifier",
        "Seq2SeqLM": "model from text to text",
        "ImageTextToText": "model from picture to text",
        "CausalLM": "model that continues texts",
        "ObjectDetection": "object detector",
    }
    return words.get(auto_model.removeprefix("AutoModelFor"), "image classifier")


def _check_body(folder: Path, model: PreTrainedModel, new: Collection[str]) -> None:
    """A pooler may be new, as checkpoints of language modelling have none; a block may not."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = [n for n in new if n.startswith(prefix) and ".pooler." not in n and not n.startswith("lm_head.")]
    if lost:
        raise UserError(
            f"{folder}: weights and config.json do not agree: {len(lost)} tensors of the pretrained model"
            f" are absent or of another shape, the first is {lost[0]}"
        )


def let_it_write(model: PreTrainedModel) -> None:
    """Says with which tokens a text begins and ends that a user lets the model write, and how long it may be.

    Where the folder of the model says it, that stays. Else a text has `WRITTEN` tokens at most, and of the model's
    positions half: the others are for what stands before it.
    """
    settings = model.generation_config
    _complete(model)
    if settings.max_length is None and settings.max_new_tokens is None:
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        settings.max_new_tokens = min(WRITTEN, positions // 2) if isinstance(positions, int) else WRITTEN


def let_it_say_the_likeliest(model: PreTrainedModel) -> None:
    """Lets a model write the likeliest token each time, whoever calls it.

    Of what its folder says, that of tokens stays: with which ones a text begins and ends, and which it may not have.
    Beams, draws, lengths and penalties go, as they were made for the texts that it wrote before.
    """
    from transformers import GenerationConfig

    _complete(model)
    kept = {name: getattr(model.generation_config, name, None) for name in _OF_TOKENS}
    likeliest = GenerationConfig(**kept, do_sample=False, num_beams=1)  # type: ignore[no-untyped-call]  # transformers'
    model.generation_config = likeliest


def _complete(model: PreTrainedModel) -> None:
    """Takes from the model's configuration the tokens of which `generation_config.json` says nothing."""
    settings, configs = model.generation_config, (model.config, model.config.get_text_config(decoder=True))
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(settings, name, None) is None:
            found = (getattr(config, name, None) for config in configs)
            setattr(settings, name, next((token for token in found if token is not None), None))


def written(model: PreTrainedModel, batch: Batch, limit: int) -> torch.Tensor:
    """Lets a model write, as its generation config has it.

    Args:
        model: Of a class that can, in eval mode.
        batch: What it is given.
        limit: Tokens that it may write.

    Returns:
        The tokens, shape `(batch, longest)`, with those that it begins with.
    """
    names = [name for name in ("input_ids", "attention_mask", "pixel_values") if name in batch]
    given = {name: batch[name].to(model.device) for name in names}
    found: torch.Tensor = model.generate(**given, max_new_tokens=limit)  # type: ignore[operator]
    return found
