"""What is done to the pretrained weights before training: weakened, erased, left out.

A strategy is one function, and one line of `STRATEGIES`. It may change what the trial trains, and nothing else: what is
frozen stays as it was pretrained. So the states after frozen blocks are those of every other trial, and a checkpoint
of what training changes holds what strategies have changed, too. Blocks that are frozen in the first epochs alone are
no such blocks where a strategy changes them: its line says so.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from finetune_sweep.settings import Training
from finetune_sweep.train import adapters, layers, pooling, trainable
from finetune_sweep.train.architecture import Architecture, Depth
from finetune_sweep.train.pooled import PooledClassifier
from finetune_sweep.train.state import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass
class Subject:
    """A model on its way from pretrained to trained, as strategies see it.

    Attributes:
        model: The trial's own, with tensors that later trials find restored.
        arch: Where its parts are, once all strategies are done: blocks that are dropped are not counted.
        depth: Up to where it is frozen.
        seed: The trial's.
        new: The parameters that hold no pretrained weights.
    """

    model: PreTrainedModel
    arch: Architecture
    depth: Depth
    seed: int
    new: set[str]

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the trial will train, by name."""
        names = layers.trained_names(self.model, self.arch, self.depth)
        return {name: p for name, p in self.model.named_parameters() if name in names}

    def draw(self, names: Collection[str], purpose: str) -> None:
        """Gives parameters new weights, as the model initialises them, by the trial's seed and a purpose."""
        layers.initialize_new(self.model, names, derive_seed(self.seed, purpose))


@dataclass(frozen=True)
class Strategy:
    """One thing that is done to a model before training.

    Args:
        apply: Does it.
        alters_blocks: Whether pretrained weights of blocks begin with other values under it: then states after blocks
            that are opened later are not those of the pretrained model.
    """

    apply: Callable[[Subject, Training], None]
    alters_blocks: bool


def prepare(
    model: PreTrainedModel,
    new_parameters: Collection[str],
    settings: Training,
    arch: Architecture,
    depth: Depth,
    seed: int,
) -> PreTrainedModel:
    """A pretrained model as the first step of a trial finds it: with a new head, and all strategies of its settings.

    Args:
        model: With its pretrained tensors, which are changed; its modules stay as they are.
        new_parameters: Names of the parameters that were not pretrained.
        settings: Which strategies.
        arch: Where its parts are, without the blocks that are dropped.
        depth: As `resolve_depth` returns it.
        seed: The trial's.

    Returns:
        The model itself, or where the settings name a strategy, another one that shares its tensors.
    """
    return prepared(model, new_parameters, settings, arch, depth, seed).model


def prepared(
    model: PreTrainedModel,
    new_parameters: Collection[str],
    settings: Training,
    arch: Architecture,
    depth: Depth,
    seed: int,
) -> Subject:
    """The same as `prepare`, with the names of all parameters that hold no pretrained weights."""
    layers.initialize_new(model, new_parameters, derive_seed(seed, "head"))
    chosen = _chosen(settings)
    subject = Subject(_sharing(model) if chosen else model, arch, depth, seed, set(new_parameters))
    for strategy in chosen:
        strategy.apply(subject, settings)
    return subject


def alters_blocks(settings: Training) -> bool:
    """Whether pretrained weights of blocks begin with other values than those that they were pretrained to."""
    return any(strategy.alters_blocks for strategy in _chosen(settings))


def _chosen(settings: Training) -> list[Strategy]:
    default = type(settings)()
    return [
        strategy for name, strategy in STRATEGIES.items() if getattr(settings, name) != getattr(default, name)
    ]


def _sharing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules and of the configuration, with the same tensors in them."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def drop_layers(subject: Subject, settings: Training) -> None:  # noqa: ARG001 - the architecture has the count
    """Leaves out the last blocks (Sajjad et al. 2020, https://arxiv.org/abs/2004.03844, top-layer dropping)."""
    arch, config = subject.arch, subject.model.config
    family = arch.family
    left = arch.lists[-1]
    if arch.shared == 1:
        base = subject.model.base_model
        path = (family.decoder or family.blocks).replace("*", str(len(arch.lists) - 1))
        holder, _, name = path.rpartition(".")
        parent = base.get_submodule(holder)
        parent._modules[name] = nn.ModuleList(list(parent.get_submodule(name).children())[:left])  # noqa: SLF001
    part, _, key = (family.decoder_count or family.count).rpartition(".")
    setattr(
        getattr(config, part) if part else config, key, list(arch.lists) if "*" in family.blocks else left
    )
    _shorten(config, left)


def _shorten(config: PreTrainedConfig, left: int) -> None:
    """Where a configuration has a list with an entry for each block, too, it gets as many as there are blocks left."""
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = kinds[:left]
    if hasattr(config, "stage_names") and not hasattr(config, "depths"):
        config.stage_names = config.stage_names[: left + 1]
        config._out_features, config._out_indices = config.stage_names[-1:], [left]  # noqa: SLF001 - set together


def reinit_layers(subject: Subject, settings: Training) -> None:
    """Gives the last blocks new weights (Zhang et al. 2021, https://arxiv.org/abs/2006.05987)."""
    first = subject.arch.blocks - settings.reinit_layers
    parts = {name: subject.arch.part_of(name) for name, _ in subject.model.named_parameters()}
    names = {name for name, part in parts.items() if isinstance(part, int) and part >= first}
    subject.draw(names, "reinit_layers")
    subject.new |= names


def reinit_pooler(subject: Subject, settings: Training) -> None:  # noqa: ARG001 - the signature of strategies
    """Gives the pretrained pooler new weights (Zhang et al. 2021)."""
    pooler = f"{subject.arch.family.prefix}.pooler."
    names = {name for name, _ in subject.model.named_parameters() if name.startswith(pooler)}
    subject.draw(names, "reinit_pooler")
    subject.new |= names


def shrink_perturb(subject: Subject, settings: Training) -> None:
    """Moves the pretrained weights that are trained towards newly drawn ones: w becomes s w + (1 - s) w_new.

    Ash & Adams 2020 (https://arxiv.org/abs/1910.08475) add noise that is drawn as initial weights are; s is their
    lambda, and 1 - s scales the noise. Parameters whose initial value is fixed (norms, biases) move towards that.
    """
    part = settings.shrink_perturb
    pretrained: dict[str, Tensor] = {
        name: parameter.detach().clone()
        for name, parameter in subject.trained().items()
        if name not in subject.new
    }
    subject.draw(pretrained.keys(), "shrink_perturb")
    with torch.no_grad():
        for name, weights in pretrained.items():
            drawn = subject.model.get_parameter(name)
            drawn.mul_(1 - part).add_(weights.to(drawn.device), alpha=part)


def replace_head(subject: Subject, settings: Training) -> None:
    """Puts another head in the place of the model's own, and of its pooler, with new weights of the trial's seed."""
    if isinstance(subject.model, PooledClassifier):
        return  # one function obeys both settings
    subject.model = pooling.with_head(subject.model, subject.arch, settings.pooling, settings.head)
    subject.new = {name for name, _ in subject.model.named_parameters() if name.startswith("head.")}
    subject.draw(subject.new, "head")


def lora(subject: Subject, settings: Training) -> None:
    """Puts adapters into the open blocks, but those that have new weights (Hu et al. 2022)."""
    shapes = {name: tuple(parameter.shape) for name, parameter in subject.model.named_parameters()}
    adapted = trainable.adapted_layers(shapes, subject.arch, subject.depth, settings)
    if settings.lora is not None:
        adapters.adapt(subject.model, adapted, settings.lora, derive_seed(subject.seed, "lora"))


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "drop_layers": Strategy(drop_layers, alters_blocks=False),
    "pooling": Strategy(replace_head, alters_blocks=False),
    "head": Strategy(replace_head, alters_blocks=False),
    "reinit_layers": Strategy(reinit_layers, alters_blocks=True),
    "reinit_pooler": Strategy(reinit_pooler, alters_blocks=False),
    "shrink_perturb": Strategy(shrink_perturb, alters_blocks=True),
    "lora": Strategy(lora, alters_blocks=False),
}
"""By the setting that asks for it, in the order in which they are applied."""
