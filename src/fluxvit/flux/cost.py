"""What a forward pass costs: multiply-accumulates (MACs) of a network size at a grid and a budget.

The paper's "GFLOPs" are GMACs of the kept tokens alone. What it leaves out, the embedding of the whole pool
and the selection, is counted here beside it. Both depend on what the selector reads: only for one that reads
embeddings are tokens embedded that are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import Reads, Selector, get_selector


@dataclass(frozen=True)
class NetworkSize:
    """The numbers that decide a FluxViT's cost. ``pool_dim`` is the width of the pooled vector."""

    embed_dim: int
    depth: int
    mlp_ratio: float
    patch_size: int
    tubelet_size: int
    in_chans: int
    pool_dim: int
    num_classes: int

    def pool(self, grid: SamplingGrid) -> int:
        """The number of tokens of a grid."""
        return grid.tokens(self.patch_size, self.tubelet_size)


@dataclass(frozen=True)
class Cost:
    """MACs of one clip, part by part."""

    embed_kept: int
    embed_dropped: int
    selection: int
    blocks: int
    pooling: int
    classifier: int

    @property
    def published(self) -> int:
        """As the paper counts (tables 6 and 7): kept tokens only."""
        return self.embed_kept + self.blocks + self.pooling + self.classifier

    @property
    def unpublished(self) -> int:
        """What the paper leaves out: embedding tokens that are dropped, and scoring the pool."""
        return self.embed_dropped + self.selection

    @property
    def total(self) -> int:
        """Everything that the network computes."""
        return self.published + self.unpublished


def clip_cost(size: NetworkSize, keep: int, pool: int | None = None, reads: Reads = "embeddings") -> Cost:
    """Cost of one clip.

    Args:
        size: The network.
        keep: Tokens that enter the blocks, class token not counted.
        pool: Tokens of the sampled grid; default: ``keep``, nothing is dropped.
        reads: What the selector reads.

    Raises:
        ValueError: ``keep`` is below 1 or above ``pool``.
    """
    pool = keep if pool is None else pool
    if not 1 <= keep <= pool:
        raise ValueError(f"cannot keep {keep} of {pool} tokens")
    width, length = size.embed_dim, keep + 1
    values = size.in_chans * size.tubelet_size * size.patch_size**2
    scored = {"embeddings": width, "pixels": values, "nothing": 0}[reads]
    linear = round((4 + 2 * size.mlp_ratio) * width * width)
    return Cost(
        embed_kept=keep * values * width,
        embed_dropped=(pool - keep) * values * width if reads == "embeddings" else 0,
        # One subtraction and one term of a norm per number of a token: about a MAC each.
        selection=pool * scored if keep < pool else 0,
        blocks=size.depth * (length * linear + 2 * length * length * width),
        # Keys and values of all tokens; the query and the output are one token's.
        pooling=2 * length * width * width + width * width + 2 * length * width + width * size.pool_dim,
        classifier=size.pool_dim * size.num_classes,
    )


def grid_cost(
    size: NetworkSize, grid: SamplingGrid, keep: int, selector: str | Selector = "group_dynamic"
) -> Cost:
    """:func:`clip_cost` of a grid and a selector; ``keep`` above the pool keeps all.

    Raises:
        ValueError: The grid is not a whole number of tokens, or the selector is unknown.
    """
    pool = size.pool(grid)
    return clip_cost(size, min(keep, pool), pool, get_selector(selector).reads)
