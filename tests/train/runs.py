"""Small training runs: two tiny models, rows to train them on, and what is compared of two runs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from finetune_sweep import settings as settings_module
from finetune_sweep.settings import Training
from finetune_sweep.tasks.arrays import Encoded, Ragged
from finetune_sweep.tasks.text_classification import TextClassification
from finetune_sweep.train import strategies
from finetune_sweep.train.architecture import describe
from finetune_sweep.train.loop import fit, start
from finetune_sweep.train.packing import Forward, forward_of
from finetune_sweep.train.state import Evaluation, Job
from finetune_sweep.train.strategies import Strategy

NEW = ("classifier.bias", "classifier.weight")


def bert(dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def gpt2() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2ForSequenceClassification(config)


def split(rows: int, seed: int, extra: Sequence[int] = ()) -> Encoded:
    """Texts of 3 to 12 tokens; the class is whether the first token is in the upper half."""
    rng = np.random.default_rng(seed)
    texts = [[*rng.integers(3, 39, size=rng.integers(3, 13)).tolist(), *extra] for _ in range(rows)]
    labels = np.array([text[0] > 20 for text in texts], dtype=np.int64)
    return Encoded({"input_ids": Ragged.of(texts), "labels": labels})


def job_for(model: PreTrainedModel, settings: Training | None = None) -> Job:
    return Job(
        task=TextClassification(),
        train=split(20, seed=1),
        validation=split(9, seed=2),
        classes=("low", "high"),
        settings=settings or Training(learning_rate=1e-2, batch_size=8, epochs=2),
        depth=0,
        seed=0,
        device="cpu",
        precision="fp32",
        metric="accuracy",
        mode="max",
        pad_token_id=0,
        arch=describe(model.config.to_dict()),
    )


def packed(model: PreTrainedModel) -> Forward:
    return forward_of(model, describe(model.config.to_dict()), unpadding=True)


def trained(job: Job, model: PreTrainedModel) -> tuple[list[Evaluation], dict[str, Tensor]]:
    new = NEW if "bert" in model.config.model_type else ("score.weight",)
    evaluations = list(fit(job, start(job, model, new)))
    return evaluations, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def example_of_the_guide() -> tuple[type[Training], dict[str, Strategy]]:
    """What docs/methods.md adds as an example, executed: the settings with its field, and its line of `STRATEGIES`."""
    document = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    guide = document.partition("### Adding a strategy")[2]
    field, function = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (line,) = re.findall(r'`("\w+": Strategy\(.*?\)),`', guide)
    names = dict(vars(settings_module)) | dict(vars(strategies))
    settings = f"class Noisy(Training):\n{textwrap.indent(field, '    ')}"
    exec(f"{settings}\n{function}\nlines = {{{line}}}", names)  # noqa: S102 - our document
    return names["Noisy"], names["lines"]
