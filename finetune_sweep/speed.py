"""What spares a sweep work without changing what it finds, each with a switch: to measure it, or to do without it."""

from __future__ import annotations

from pydantic import Field

from finetune_sweep.settings import NOT_IN_KEY, Model


class Speed(Model):
    """What spares work. In fp32 the results stay as they are, within the bounds that docs/performance.md states."""

    unpadding: bool = Field(default=True, json_schema_extra=NOT_IN_KEY)
    """Texts of a batch are computed end to end; only attention sees them padded."""
    prefix_cache: bool = Field(default=True, json_schema_extra=NOT_IN_KEY)
    """What the frozen blocks make of each text is computed once and kept in the cache, for
    [tasks](tasks.md) and [models](performance.md#frozen-blocks-computed-once) that it is for; of all others, frozen
    blocks are computed in each epoch. Needs `unpadding`."""
    prefix_cache_bytes: int = Field(20_000_000_000, ge=0, json_schema_extra=NOT_IN_KEY)
    """What is kept takes at most so much of the disk; what was not used for the longest time makes room."""
    share_trajectories: bool = Field(default=True, json_schema_extra=NOT_IN_KEY)
    """Trials that differ only in `epochs` are trained as one, as far as their learning rates agree."""
    fuse_heads: bool = Field(default=True, json_schema_extra=NOT_IN_KEY)
    """Trials that train nothing but the head are trained together, as one stack of heads. Needs `prefix_cache`."""
