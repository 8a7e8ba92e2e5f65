"""A text classifier with another head than its family's: on the state of one token, or on the mean or maximum of all.

This file stands alone, as a copy of it lies beside stored weights: transformers loads them with it where it is told
`trust_remote_code=True`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

if TYPE_CHECKING:
    from torch import Tensor


class PooledConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers'
    """The configuration of the pretrained model, and what its head is.

    Attributes:
        body: The pretrained model's, as a mapping.
        prefix: The name of the pretrained model in this one.
        pooling: `first`, `last`, `mean` or `max`.
        mlp: Whether there is a layer before the logits.
        width: Of the states that are pooled.
        dropout: Before each layer of the head.
    """

    model_type = "finetune_sweep_pooled"

    body: dict[str, Any] | None = None
    prefix: str = "body"
    pooling: str = "first"
    mlp: bool = False
    width: int = 1
    dropout: float = 0.1


class PooledClassifier(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers'
    """A pretrained model without its pooler, a pooling, and a head."""

    config_class = PooledConfig

    def __init__(self, config: PooledConfig) -> None:
        """Builds the pretrained model and the head from the configuration."""
        super().__init__(config)
        self.base_model_prefix = config.prefix
        body = AutoModel.from_config(AutoConfig.for_model(**(config.body or {})))  # type: ignore[no-untyped-call]  # transformers'
        if getattr(body, "pooler", None) is not None:
            body.pooler = None
        self.add_module(config.prefix, body)
        layers: list[nn.Module] = [nn.Dropout(config.dropout)]
        if config.mlp:
            layers += [nn.Linear(config.width, config.width), nn.Tanh(), nn.Dropout(config.dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(config.width, len(config.id2label or {})))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers'

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: object,
    ) -> SequenceClassifierOutput:
        """Returns logits of shape `(rows, classes)`.

        Args:
            input_ids: Shape `(rows, tokens)`.
            attention_mask: 1 where a token is no padding, of the same shape; all of them if it is not given.
            token_type_ids: Which of two texts a token is of, of the same shape; for models that tell them apart.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        body = self.get_submodule(self.config.prefix)
        typed = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = body(input_ids=input_ids, attention_mask=mask, **typed).last_hidden_state
        return SequenceClassifierOutput(logits=self.head(pool(states, mask.bool(), self.config.pooling)))


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One state a text, of shape `(rows, width)`; what is padding does not count.

    Args:
        states: Shape `(rows, tokens, width)`.
        mask: True where a token is no padding, shape `(rows, tokens)`; padding stands on the right.
        pooling: `first`, `last`, `mean` or `max`.
    """
    match pooling:
        case "mean":
            return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        case "max":
            return states.masked_fill(~mask[..., None], float("-inf")).amax(1)
        case "last":
            places = torch.arange(mask.shape[1], device=mask.device)
            return states[torch.arange(len(states), device=mask.device), (places * mask).argmax(1)]
        case _:
            return states[:, 0]
