"""Embeddings, ordered blocks and head of a model, told apart by the names of its parameters.

The one place that knows architectures, by the tables of `families.py` and `pairs.py`. It reads names and numbers only,
so that a sweep file can be checked, and the size of what a freeze depth trains be told, before any weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from math import prod
from typing import Final, Literal

from finetune_sweep.errors import UserError, nearest
from finetune_sweep.train.families import FAMILIES, Family
from finetune_sweep.train.pairs import PAIR, joined, sides_of

POOLED: Final = "finetune_sweep_pooled"
"""The type of models whose head was replaced; the configuration of the pretrained one lies in theirs as `body`."""
Part = int | Literal["embeddings", "head"]
Depth = int | Literal["embeddings"]


@dataclass(frozen=True)
class Architecture:
    """The parts of one model, in the order in which a text passes them.

    Args:
        model_type: The family's name in ``config.json``.
        blocks: How many blocks lie between embeddings and head.
        name: What messages call the model.
        width: The size of the states between blocks; 0 if the configuration does not tell it.
        lists: How many blocks each list of them has: of encoder and decoder, or of each stage; one if there is one.
        shared: How many blocks in a row have one set of weights.
        own_head: Whether its head is the one that its family has.
        sides: Of a pair, the types of the model that reads and of the one that writes.
    """

    model_type: str
    blocks: int
    name: str
    width: int = 0
    lists: tuple[int, ...] = ()
    shared: int = 1
    own_head: bool = True
    sides: tuple[str, str] | None = None

    @property
    def family(self) -> Family:
        """How models of this type are built."""
        return joined(*self.sides) if self.sides else FAMILIES[self.model_type]

    @property
    def can_pack(self) -> bool:
        """Whether texts can be computed without padding between them."""
        return bool(self.family.head) and self.width > 0 and self.own_head

    @property
    def droppable(self) -> int:
        """How many of the last blocks can be left out: all but one of their list, as the next part needs its width."""
        return 0 if self.family.undroppable else (self.lists or (self.blocks,))[-1] - 1

    def without(self, count: int) -> Architecture:
        """The same model without its last blocks.

        Raises:
            UserError: If so many cannot be left out.
        """
        if not count:
            return self
        if self.shared > 1 and self.shared < self.blocks:
            why = f"groups of {self.shared} blocks share their weights"
            raise UserError(f"drop_layers {count}: {self.name} can drop none, as {why}; write 0")
        if count > self.droppable:
            why = self.family.undroppable or (
                f"its last {'stage' if '*' in self.family.blocks else 'stack'} has {self.lists[-1]}"
                if len(self.lists) > 1
                else "one has to stay"
            )
            raise UserError(
                f"drop_layers {count}: {self.name} has {self.blocks} blocks, and {why}; write 0"
                + (f" to {self.droppable}" if self.droppable else "")
            )
        left = self.blocks - count
        return replace(
            self,
            blocks=left,
            name=f"{self.name} without its last {count if count > 1 else 'block'}{' blocks' if count > 1 else ''}",
            lists=(*self.lists[:-1], self.lists[-1] - count) if self.lists else (),
            shared=left if self.shared > 1 else 1,
        )

    def part_of(self, parameter_name: str) -> Part:
        """Returns where a parameter belongs: embeddings, the index of its block, or the head.

        The head is everything after the blocks: final norm, pooler, classifier and language-model head. What lies
        between two blocks belongs to one of them. Blocks that share weights are told by the last of them.
        Names with and without the base model's prefix are understood.
        """
        family = self.family
        name = parameter_name.removeprefix(f"{family.prefix}.")
        if any(f"{name}.".startswith(f"{module}.") for module in family.embeddings):
            return "embeddings"
        lists = self.lists or (self.blocks,)
        for pattern in family.block_names:
            if found := pattern.match(name):
                *stage, index = map(int, found.groups())
                return (sum(lists[: stage[0]]) if stage else 0) + (index + 1) * self.shared - 1
        for pattern, which in family.between_names:
            if found := pattern.match(name):
                stage_of = int(found[1]) if found.groups() else 0
                start = sum(lists[:stage_of])
                return start if which == "first" else start + lists[stage_of] - 1
        decoder = re.match(rf"{re.escape(family.decoder)}\.(\d+)\.", name) if family.decoder else None
        return lists[0] + int(decoder[1]) if decoder else "head"


def describe(config: Mapping[str, object], name: str = "") -> Architecture:
    """Reads the architecture from a model's configuration.

    Args:
        config: The content of ``config.json``.
        name: What messages call the model; its type when empty.

    Raises:
        UserError: The family is not in ``FAMILIES``, or the configuration does not tell the blocks.
    """
    model_type = config.get("model_type")
    subject = f"{name}: " if name else ""
    if not isinstance(model_type, str):
        raise UserError(
            f"{subject}config.json has no model_type, so embeddings, blocks and head cannot be told apart"
        )
    if model_type == POOLED and isinstance(body := config.get("body"), Mapping):
        return replace(describe(body, name), own_head=False)
    known = (*FAMILIES, PAIR)
    if model_type not in known:
        raise UserError(
            f"{subject}where embeddings, blocks and head lie in a model of type '{model_type}' is not known; "
            f"known are {', '.join(known)}{nearest(model_type, known)}"
        )
    sides = sides_of(config, subject) if model_type == PAIR else None
    family = joined(*sides) if sides else FAMILIES[model_type]
    lists = _counts(config, family.count, subject)
    if family.decoder:
        lists = (*lists, *_counts(config, family.decoder_count, subject))
    blocks = sum(lists)
    groups = config.get(family.groups, 1) if family.groups else None
    shared = blocks // groups if isinstance(groups, int) and 1 <= groups <= blocks else 1
    width = _value(config, family.width)
    width = width if isinstance(width, int) else 0
    return Architecture(model_type, blocks, name or model_type, width, lists, shared, sides=sides)


def _counts(config: Mapping[str, object], key: str, subject: str) -> tuple[int, ...]:
    """The blocks of one list, or of each stage."""
    value = _value(config, key)
    counts = value if isinstance(value, list | tuple) else [value]
    found = tuple(count for count in counts if isinstance(count, int) and not isinstance(count, bool))
    if not found or len(found) < len(counts) or min(found) < 1:
        raise UserError(
            f"{subject}config.json must tell the number of blocks as {key}, 1 or more, but has {value!r}"
        )
    return found


def _value(config: Mapping[str, object], key: str) -> object:
    """What stands under a key; in the configuration of two models, `encoder.hidden_size` is that of the encoder."""
    part, _, rest = key.rpartition(".")
    inner = config.get(part) if part else config
    found = inner.get(rest) if isinstance(inner, Mapping) else None
    # Files of T5 may leave out the decoder's, which are then as many.
    return config.get("num_layers") if found is None and key == "num_decoder_layers" else found


def resolve_depth(depth: int | str, architecture: Architecture) -> Depth:
    """Turns a ``freeze_depth`` of a sweep file into the number of frozen blocks.

    Args:
        depth: A number of blocks, ``embeddings``, a percentage of the blocks such as ``50%`` (rounded
            down, also to blocks that share no weights with later ones), or ``all``.
        architecture: The model that it is for.

    Returns:
        0 when nothing is frozen, ``"embeddings"`` when only these are, else how many blocks are frozen
        together with the embeddings.

    Raises:
        UserError: The model has fewer blocks, or the word is not known.
    """
    blocks, shared = architecture.blocks, architecture.shared
    if depth == "embeddings":
        return "embeddings"
    if depth == "all":
        return blocks
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)%", depth) if isinstance(depth, str) else None
    if share and Decimal(share[1]) <= 100:
        return int(blocks * Decimal(share[1]) / 100) // shared * shared
    if isinstance(depth, int) and not isinstance(depth, bool) and 0 <= depth <= blocks:
        if depth % shared:
            raise UserError(
                f"freeze_depth {depth}: {shared} blocks of {architecture.name} in a row share their weights, and are"
                f" frozen together or not at all; write 0, {shared if shared < blocks else 'all'} or embeddings"
            )
        return depth
    hint = nearest(depth, ("embeddings", "all")) if isinstance(depth, str) else ""
    raise UserError(
        f"freeze_depth {depth}: {architecture.name} has {blocks} blocks; "
        f"write 0 to {blocks}, embeddings, 0% to 100%, or all{hint}"
    )


def is_frozen(part: Part, depth: Depth) -> bool:
    """Tells whether a part of the model is frozen at a resolved depth."""
    if part == "head" or depth == 0:
        return False
    if part == "embeddings":
        return True
    return depth != "embeddings" and part < depth


def is_dropped(part: Part, architecture: Architecture) -> bool:
    """Tells whether a part of the pretrained model is one of the blocks that were left out."""
    return architecture.shared == 1 and isinstance(part, int) and part >= architecture.blocks


def trained_parameters(
    shapes: Mapping[str, tuple[int, ...]], architecture: Architecture, depth: Depth
) -> tuple[int, int]:
    """Counts what a freeze depth trains.

    Args:
        shapes: Parameter name to shape, of a file or of a model. A head that is not among them is not counted, nor
            are blocks that were dropped.
        architecture: The model that they belong to.
        depth: As ``resolve_depth`` returns it.

    Returns:
        Number of trained values, and of all values.
    """
    parts = {name: architecture.part_of(name) for name in shapes}
    sizes = {name: prod(shapes[name]) for name, part in parts.items() if not is_dropped(part, architecture)}
    trained = sum(size for name, size in sizes.items() if not is_frozen(parts[name], depth))
    return trained, sum(sizes.values())


def check_length(config: Mapping[str, object], max_length: int, name: str) -> None:
    """Positions beyond a model's table would end training with an index error.

    Args:
        config: The model's `config.json`.
        max_length: Tokens of an input, at most.
        name: What messages call the model.

    Raises:
        UserError: If the model has fewer positions.
    """
    decoder = config.get("decoder")
    if config.get("model_type") == PAIR and isinstance(decoder, Mapping):
        config = decoder  # of a picture, no tokens are cut
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    positions = _value(config, "encoder.max_position_embeddings") if positions is None else positions
    if not isinstance(positions, int):
        return
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None and family.counts_from_padding:
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 0) + 1  # their first positions are never used
    if max_length > positions:
        raise UserError(f"data.max_length {max_length}: {name} takes at most {positions} tokens")
