"""What makes the inputs of a model: its tokenizer, its image processor, or both."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from finetune_sweep.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import BaseImageProcessor, PreTrainedTokenizerBase


TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Where the tokenizers of transformers keep their vocabularies."""

IMAGE_PROCESSOR: Final = "preprocessor_config.json"


@dataclass(frozen=True)
class PictureReader:
    """Both of what a model needs that reads pictures and writes texts; they lie in one folder.

    Args:
        image_processor: Makes its inputs.
        tokenizer: Makes tokens of the texts, and texts of the tokens that it writes.
    """

    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_token_id(self) -> int:
        """What fills the texts of a batch."""
        return int(self.tokenizer.pad_token_id)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes both, as their classes do."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


Processor: TypeAlias = "PreTrainedTokenizerBase | BaseImageProcessor | PictureReader"
"""What makes the inputs of a model: a tokenizer, or for pictures an image processor, or both."""


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """Returns the tokenizer among what makes the inputs of a model that reads or writes texts."""
    found = processor.tokenizer if isinstance(processor, PictureReader) else processor
    return cast("PreTrainedTokenizerBase", found)


def load_image_processor(folder: Path) -> BaseImageProcessor:
    """Loads the image processor of a model folder, without a network and without code from the folder.

    Raises:
        UserError: The folder has none, or it cannot be loaded.
    """
    if not (folder / IMAGE_PROCESSOR).is_file():
        raise UserError(f"{folder}: holds no image processor, no {IMAGE_PROCESSOR}")
    from transformers import AutoImageProcessor

    try:
        with quiet_loading():
            processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: no image processor can be loaded from this folder: {reason}") from error
    return processor


def pad_token_id(processor: Processor) -> int:
    """What fills the rows of a batch; 0 for pictures, which are all of one size."""
    return int(getattr(processor, "pad_token_id", None) or 0)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder, without a network and without code from the folder.

    A tokenizer without a padding token, as decoders have it, pads with its end-of-sequence token: the
    attention mask tells the two apart.

    Raises:
        UserError: The folder has no tokenizer, or one that can neither pad nor end a sequence.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make an empty one
        raise UserError(f"{folder}: holds no tokenizer, none of {', '.join(TOKENIZER_FILES)}")
    try:
        with quiet_loading():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: no tokenizer can be loaded from this folder: {reason}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{folder}: the tokenizer has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers' progress bars and its report about a new head, which is expected, to itself."""
    from transformers.utils import logging as library

    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.ERROR)
    library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]
