"""A batch without padding: the tokens of all its texts in one row, padded only while they attend to each other.

Linear layers, norms and dropout then work on real tokens alone. Attention goes through the interface that transformers
has for it, so no architecture needs code of its own here; what differs between them stands in `architecture.py`.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune_sweep.tasks.arrays import Batch
from finetune_sweep.tasks.contract import Output
from finetune_sweep.train.architecture import Architecture
from finetune_sweep.train.families import Entrance
from finetune_sweep.train.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION: Final = "finetune_sweep_packed"
"""What transformers calls `attend`."""
STATES: Final = "states"
"""The name in a batch of the states after the frozen part, of shape (tokens, hidden)."""
LABELS: Final = "labels"


class Forward(Protocol):
    """What computes a batch: a model, whole or from a block on, with its padding or without."""

    @property
    def model(self) -> PreTrainedModel:
        """The model."""

    def __call__(self, batch: Batch) -> Output:
        """Returns logits, one row for each of the batch."""

    def at(self, first: int | None) -> Forward:
        """The same for batches with other states; see `forward_of`."""


@dataclass(frozen=True)
class Logits:
    """What a model without padding returns.

    Args:
        logits: Shape `(rows, classes)`.
    """

    logits: Tensor


@dataclass(frozen=True)
class Rows:
    """How the texts of a batch lie in one row of tokens, and where each token lies in the padded view.

    Args:
        count: Texts.
        longest: Tokens of the longest one.
        slots: Shape `(tokens,)`, int64: the place of each token among `count * longest`; None if none is padding.
        mask: Shape `(count, 1, 1, longest)`, bool: whether a place is a token; None with `slots`.
    """

    count: int
    longest: int
    slots: Tensor | None
    mask: Tensor | None

    def pad(self, packed: Tensor) -> Tensor:
        """From shape `(1, heads, tokens, size)` to `(count, heads, longest, size)`, zeros where no token is."""
        tokens = packed[0].transpose(0, 1)
        if self.slots is not None:
            empty = tokens.new_zeros((self.count * self.longest, *tokens.shape[1:]))
            tokens = empty.index_copy(0, self.slots, tokens)
        return tokens.reshape(self.count, self.longest, *tokens.shape[1:]).transpose(1, 2)

    def pack(self, padded: Tensor) -> Tensor:
        """From shape `(count, heads, longest, size)` to `(1, tokens, heads, size)`."""
        tokens = padded.transpose(1, 2).flatten(0, 1)
        if self.slots is not None:
            tokens = tokens.index_select(0, self.slots)
        return tokens[None]


@dataclass(frozen=True)
class Packed:
    """A batch of texts, end to end.

    Args:
        input_ids: Shape `(1, tokens)`.
        position_ids: Shape `(1, tokens)`.
        read: Shape `(rows,)`: the token of each text that the head reads.
        rows: Where the texts lie.
        token_type_ids: Shape `(1, tokens)`: which of two texts a token is of; None where each text is alone.
    """

    input_ids: Tensor
    position_ids: Tensor
    read: Tensor
    rows: Rows
    token_type_ids: Tensor | None = None


def attend(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - transformers gives it
    *,
    packing: Rows,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention for transformers' `AttentionInterface`: scaled dot products within each text.

    Args:
        module: Says whether it is causal.
        query: Shape `(1, heads, tokens, size)`.
        key: Shape `(1, heads of keys, tokens, size)`; groups of heads can share one.
        value: Like `key`.
        attention_mask: Not used.
        packing: Where the texts lie.
        scaling: Of the products.
        dropout: The probability for attention weights.
        sliding_window: A token sees so many tokens, itself counted; None for all.

    Returns:
        Shape `(1, tokens, heads, size)`.
    """
    causal = bool(getattr(module, "is_causal", True))
    groups = query.shape[1] // key.shape[1]
    query, key, value = (packing.pad(part) for part in (query, key, value))
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    # Padding stands on the right, where a causal query of a real token does not look.
    mask = None if causal else packing.mask
    if causal and sliding_window is not None and sliding_window < packing.longest:
        place = torch.arange(packing.longest, device=query.device)
        behind = place[:, None] - place
        mask, causal = (behind >= 0) & (behind < sliding_window), False
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
    )
    return packing.pack(attended), None


def pack(batch: Batch, arch: Architecture, pad_token_id: int, device: str) -> Packed:
    """Takes the padding out of a batch.

    Args:
        batch: `input_ids` and `attention_mask` of shape `(rows, longest)` on the CPU, padding on the right.
        arch: Says how positions count, and which token is read.
        pad_token_id: As in the model's configuration.
        device: Where the result lies.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    place = torch.arange(ids.shape[1])
    is_text = ids != pad_token_id
    counted = is_text.cumsum(1) * is_text + pad_token_id
    positions = counted if arch.family.counts_from_padding else place.expand_as(ids)
    lengths = mask.sum(1)
    read = torch.zeros_like(lengths)
    if (
        arch.family.reads == "last"
    ):  # as transformers does: the end-of-text token may stand for padding, or end a text
        read = (place * (is_text & mask)).argmax(1)
    is_full = bool(mask.all())
    rows = Rows(
        count=len(ids),
        longest=ids.shape[1],
        slots=None if is_full else to_device(mask.flatten().nonzero()[:, 0], device),
        mask=None if is_full else to_device(mask[:, None, None, :], device),
    )
    types = batch.get("token_type_ids")
    return Packed(
        token_type_ids=None if types is None else to_device(types[mask][None], device),
        input_ids=to_device(ids[mask][None], device),
        position_ids=to_device(positions[mask][None], device),
        read=to_device(lengths.cumsum(0) - lengths + read, device),
        rows=rows,
    )


class Body:
    """Some blocks of a model: from its tokens, or from the states after a block, to the states after another one.

    The modules are the model's own; only those that hold them are copies, so the model stays as it is.
    """

    def __init__(
        self, model: PreTrainedModel, arch: Architecture, first: int | None = None, last: int | None = None
    ) -> None:
        """Copies nothing but references.

        Args:
            model: With a head.
            arch: Where its parts are.
            first: Blocks that the given states have behind them; None to begin with the tokens.
            last: Blocks that the returned states have behind them; None for all.
        """
        family = arch.family
        self._takes_states = first is not None
        self._config: PreTrainedConfig = model.config
        self._given = _Given()
        self._base = base = shallow(model.get_submodule(family.prefix))
        for name in family.closing:
            base._modules[name] = nn.Identity()  # noqa: SLF001 - setting it would run the checks of a new attribute
        *path, blocks = family.blocks.split(".")
        holder = base
        for name in path:
            holder._modules[name] = holder = shallow(holder.get_submodule(name))  # noqa: SLF001
        kept = list(holder.get_submodule(blocks).children())[first or 0 : last]
        holder._modules[blocks] = nn.ModuleList(kept)  # noqa: SLF001
        if self._takes_states:
            present = [(name, how) for name, how in family.entrance if name in base._modules]  # noqa: SLF001
            for name, how in present:
                base._modules[name] = self._entrance(how)  # noqa: SLF001

    def _entrance(self, how: Entrance) -> nn.Module:
        return {"given": self._given, "same": nn.Identity(), "zero": _Zero()}[how]

    def __call__(self, packed: Packed, states: Tensor | None = None) -> Tensor:
        """Returns the states after the last of the blocks, shape `(tokens, hidden)`.

        Args:
            packed: The tokens.
            states: Shape `(tokens, hidden)`, where the body begins with a block.
        """
        inputs: dict[str, Tensor] = {}
        if states is None:
            inputs["input_ids"] = packed.input_ids
            if packed.token_type_ids is not None:
                inputs["token_type_ids"] = packed.token_type_ids
        else:
            inputs["inputs_embeds"] = states[None]
        with _attending(self._config):
            output = self._base(
                **inputs, position_ids=packed.position_ids, packing=packed.rows, use_cache=False
            )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]


class PackedModel:
    """A classifier that computes its batches without padding; a `Forward`."""

    def __init__(self, model: PreTrainedModel, arch: Architecture, first: int | None = None) -> None:
        """Copies nothing but references.

        Args:
            model: On its device.
            arch: Where its parts are; it must be able to pack.
            first: Blocks that the states in a batch have behind them; None to begin with the tokens.
        """
        self.model, self._arch, self._first = model, arch, first
        self._is_head = first == arch.blocks
        self._body = Body(model, arch, first)

    def __call__(self, batch: Batch) -> Logits:
        """Computes a batch that lies on the CPU, with its states if there are any.

        States after the last block are one for each row: those that the head reads.
        """
        states = to_device(batch[STATES], self.model.device) if STATES in batch else None
        if self._is_head and states is not None:
            return Logits(apply_head(self.model, self._arch, states))
        pad_token_id = self.model.config.pad_token_id
        packed = pack(batch, self._arch, int(pad_token_id or 0), str(self.model.device))
        found = self._body(packed, states)
        return Logits(apply_head(self.model, self._arch, found.index_select(0, packed.read)))

    def at(self, first: int | None) -> PackedModel:
        """The same for batches with other states."""
        return self if first == self._first else PackedModel(self.model, self._arch, first)


def apply_head(model: nn.Module, arch: Architecture, states: Tensor) -> Tensor:
    """Logits of shape `(rows, classes)` from the states after the last block, shape `(rows, hidden)`."""
    found = states[:, None]
    for name in arch.family.head:
        found = found.relu() if name == "relu" else model.get_submodule(name)(found)
    return found.reshape(len(states), -1)


@dataclass(frozen=True)
class PaddedModel:
    """A model that is called with its padding; a `Forward`."""

    model: PreTrainedModel

    def __call__(self, batch: Batch) -> Output:
        """Computes a batch that lies on the CPU."""
        inputs = {
            name: to_device(tensor, self.model.device) for name, tensor in batch.items() if name != LABELS
        }
        output: Output = self.model(**inputs)
        return output

    def at(self, first: int | None) -> PaddedModel:  # noqa: ARG002 - there are no states with padding
        """The same."""
        return self


def forward_of(
    model: PreTrainedModel, arch: Architecture, *, unpadding: bool, first: int | None = None
) -> Forward:
    """What computes the batches of a model.

    Args:
        model: On its device.
        arch: Where its parts are.
        unpadding: Whether to leave out the padding, where the architecture allows it.
        first: Blocks that the states in the batches have behind them; None for batches of tokens.
    """
    return PackedModel(model, arch, first) if unpadding and arch.can_pack else PaddedModel(model)


class _Given(nn.Module):
    """Stands for embeddings whose result is known."""

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *_: object, **__: object
    ) -> Tensor | None:
        return input_ids if inputs_embeds is None else inputs_embeds


class _Zero(nn.Module):
    """Stands for position embeddings that were added before."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


def shallow(module: nn.Module) -> nn.Module:
    """A module with the same parameters and the same modules in it, whose modules can be replaced."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)  # noqa: SLF001 - torch has no public way to share modules
    return copied


@contextlib.contextmanager
def _attending(config: PreTrainedConfig) -> Iterator[None]:
    """Lets a model attend by `attend`; whoever calls it later finds it as it was."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    before = config._attn_implementation  # noqa: SLF001 - the setter that is public refuses unknown models
    config._attn_implementation = ATTENTION  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001
