"""Tiny models of each task, made from a config, and rows that they can learn."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    YolosConfig,
    YolosImageProcessorPil,
    YolosModel,
)

from finetune_sweep.tasks.contract import Box

SYLLABLES = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    *(f"{mark}{name}" for name in "abcdef" for mark in ("", "##")),
]


@dataclass(frozen=True)
class Case:
    """A task's tiny model and its rows.

    Args:
        model: Makes the model in a folder.
        train: Rows that it can learn.
        bad: A target that was never seen in training, where there is such.
        broken: Of a task without such: cells of one column, in the place of those of `train`, that are refused when a
            file is read, and what is said of the first bad one.
    """

    model: Callable[[Path], Path]
    train: Dataset
    bad: Dataset | None = None
    broken: tuple[str, list[object], str] | None = None


def tiny_bert(folder: Path) -> Path:
    """A model whose words are of one to three letters, each of them a sub-word."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SYLLABLES),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(str(folder))
    unknown = {"unk_token": "[UNK]"}
    pieces = models.WordPiece({piece: place for place, piece in enumerate(SYLLABLES)}, **unknown)
    words = Tokenizer(pieces)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {**unknown, "pad_token": "[PAD]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(str(folder))
    return folder


def _save_letters(folder: Path) -> None:
    """A tokenizer of letters, each a word; a text ends with `</s>`."""
    letters = {token: place for place, token in enumerate(["<pad>", "</s>", "<unk>", *"abcdef"])}
    unknown = {"unk_token": "<unk>"}
    words = Tokenizer(models.WordLevel(letters, **unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {**unknown, "pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(str(folder))


def tiny_t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    config.decoder_start_token_id = 0
    T5Model(config).save_pretrained(str(folder))
    _save_letters(folder)
    return folder


def tiny_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
    config.eos_token_id = 1
    GPT2Model(config).save_pretrained(str(folder))
    _save_letters(folder)
    return folder


def tiny_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    ViTModel(config).save_pretrained(str(folder))
    size = {"height": 8, "width": 8}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor.save_pretrained(str(folder))
    return folder


def tiny_captioner(folder: Path, reads: str = "vit", writes: str = "gpt2") -> Path:
    """A model that reads pictures of 8 x 8 pixels, and one that writes letters: a ViT and a GPT-2, or another pair."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = AutoConfig.for_model(reads, **sizes, image_size=8, patch_size=4)
    words = {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    if writes == "gpt2":
        decoder = AutoConfig.for_model(writes, **words, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    else:
        decoder = AutoConfig.for_model(writes, **words, **sizes, max_position_embeddings=34)
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, decoder_start_token_id=1)
    both.eos_token_id = both.pad_token_id = 1
    VisionEncoderDecoderModel(both).save_pretrained(str(folder))
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(str(folder))
    _save_letters(folder)
    return folder


def tiny_yolos(folder: Path) -> Path:
    """A detector that says three boxes of each picture."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[16, 16],
        patch_size=4,
        num_detection_tokens=3,
        hidden_dropout_prob=0.0,
        initializer_range=0.2,
    )
    model = YolosModel(config)
    torch.nn.init.normal_(model.embeddings.detection_tokens)
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(str(folder))
    size = {"shortest_edge": 16, "longest_edge": 32}
    YolosImageProcessorPil(size=size).save_pretrained(str(folder))
    return folder


def scene(row: int) -> tuple[bytes, list[dict[str, object]]]:
    """A picture, perhaps wider than high, with a dark or a light box or both or none, and where they are."""
    size = (16 + 16 * (row % 2), 16)
    whole = Image.new("L", size, 128)
    places = {"dark": (1, 2, 6, 5), "light": (8, 9, 5 + row % 3, 6)}
    found = [name for place, name in enumerate(places) if row % 4 != place + 1]
    boxes: list[dict[str, object]] = []
    for name in found if row % 8 else []:
        left, top, width, height = places[name]
        whole.paste(255 * (name == "light"), (left, top, left + width, top + height))
        boxes.append({"label": name, "left": left, "top": top, "width": width, "height": height})
    content = io.BytesIO()
    whole.save(content, "png")
    return content.getvalue(), boxes


def picture(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A png of one grey."""
    content = io.BytesIO()
    Image.new("L", size, level).save(content, "png")
    return content.getvalue()


def _texts(rows: int) -> list[str]:
    rng = np.random.default_rng(0)
    letters = ("abc", "def")
    return [" ".join(rng.choice(list(letters[row % 2]), size=rng.integers(2, 7))) for row in range(rows)]


def _words(rows: int) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [
        ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 4))) for _ in range(rng.integers(1, 6))]
        for _ in range(rows)
    ]


_TEXTS = _texts(24)
_WORDS = _words(24)
_SCENES = [scene(row) for row in range(24)]
_GREYS = [10 * row for row in range(24)]


def as_written(rows: Dataset) -> Dataset:
    """Rows as a file has them: of boxes, the sides in one list."""
    if "boxes" not in rows.column_names:
        return rows
    found = [
        [{"label": b["label"], "bbox": [b["left"], b["top"], b["width"], b["height"]]} for b in of_row]
        for of_row in rows["boxes"]
    ]
    return rows.remove_columns("boxes").add_column("boxes", found)


CASES: Mapping[str, Case] = {
    "text-classification": Case(
        tiny_bert,
        Dataset.from_dict(
            {"text": _TEXTS, "label": ["early" if text[0] < "d" else "late" for text in _TEXTS]}
        ),
        Dataset.from_dict({"text": ["a b"], "label": ["never"]}),
    ),
    "text-tagging": Case(
        tiny_bert,
        Dataset.from_dict({"text": _TEXTS, "labels": [sorted(set(text) & set("abc")) for text in _TEXTS]}),
        Dataset.from_dict({"text": ["a b"], "labels": [["a", "never"]]}),
    ),
    "text-regression": Case(
        tiny_bert,
        Dataset.from_dict(
            {
                "text": _TEXTS,
                "text_pair": [text[:3] for text in _TEXTS],
                "number": [text.count("a") / 4 for text in _TEXTS],
            }
        ),
        broken=("number", ["0.5", "half", *["1"] * 22], "row 2: must be a finite number, got 'half'"),
    ),
    "token-classification": Case(
        tiny_bert,
        Dataset.from_dict(
            {"tokens": _WORDS, "tags": [["B-early" if w[0] < "d" else "O" for w in of] for of in _WORDS]}
        ),
        Dataset.from_dict({"tokens": [["a"]], "tags": [["B-never"]]}),
    ),
    "text-to-text": Case(
        tiny_t5,
        Dataset.from_dict({"text": _TEXTS, "target": [" ".join(sorted(text.split())) for text in _TEXTS]}),
        broken=("target", [[text] for text in _TEXTS], "row 1: the text must be text, got list"),
    ),
    "causal-lm": Case(
        tiny_gpt2,
        Dataset.from_dict({"prompt": [text[:1] for text in _TEXTS], "text": [text[2:] for text in _TEXTS]}),
        broken=("prompt", [{"role": text} for text in _TEXTS], "row 1: the text must be text, got dict"),
    ),
    "image-classification": Case(
        tiny_vit,
        Dataset.from_dict(
            {"image": [picture(g) for g in _GREYS], "label": ["dark" if g < 120 else "light" for g in _GREYS]}
        ),
        Dataset.from_dict({"image": [picture(0)], "label": ["never"]}),
    ),
    "image-tagging": Case(
        tiny_vit,
        Dataset.from_dict(
            {
                "image": [picture(g) for g in _GREYS],
                "labels": [(["dark"] if g < 160 else []) + (["light"] if g > 80 else []) for g in _GREYS],
            }
        ),
        Dataset.from_dict({"image": [picture(0)], "labels": [["never"]]}),
    ),
    "image-captioning": Case(
        tiny_captioner,
        Dataset.from_dict(
            {
                "image": [picture(g) for g in _GREYS],
                "text": [" ".join("abcdef"[: 2 + g // 60]) for g in _GREYS],
            }
        ),
        broken=(
            "image",
            [picture(0), picture(9)[:40], *map(picture, range(22))],
            "row 2: the picture is damaged, or no picture$",
        ),
    ),
    "object-detection": Case(
        tiny_yolos,
        Dataset.from_dict({"image": [of[0] for of in _SCENES], "boxes": [of[1] for of in _SCENES]}),
        Dataset.from_dict(
            {
                "image": [picture(0)],
                "boxes": [[dict(zip(Box._fields, ("never", 0, 0, 1, 1, False), strict=True))]],
            }
        ),
    ),
}
