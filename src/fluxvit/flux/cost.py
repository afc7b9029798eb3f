"""The cost of a forward pass: multiply-accumulates (MACs) of a network size at a grid and a budget.

The paper's "GFLOPs" are GMACs of the kept tokens alone. This module also counts what the paper leaves out:
the selection, and the embedding of dropped tokens. Both depend on what the selector reads; dropped tokens are
embedded only for a selector that reads embeddings. The learned selector has a small network of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import Reads, Selector, get_selector


@dataclass(frozen=True)
class NetworkSize:
    """The numbers that determine the cost of a FluxViT. ``pool_dim`` is the width of the pooled vector,
    and ``selector_dim`` that of the learned selector.
    """

    embed_dim: int
    depth: int
    mlp_ratio: float
    patch_size: int
    tubelet_size: int
    in_chans: int
    pool_dim: int
    num_classes: int
    selector_dim: int = 0

    def pool(self, grid: SamplingGrid) -> int:
        """The number of tokens of a grid."""
        return grid.tokens(self.patch_size, self.tubelet_size)


@dataclass(frozen=True)
class Cost:
    """MACs of one clip for each part of the network."""

    embed_kept: int
    embed_dropped: int
    selection: int
    blocks: int
    pooling: int
    classifier: int

    @property
    def published(self) -> int:
        """MACs as the paper counts them (tables 6 and 7): of kept tokens only."""
        return self.embed_kept + self.blocks + self.pooling + self.classifier

    @property
    def unpublished(self) -> int:
        """MACs that the paper leaves out: embedding the dropped tokens, and scoring the pool."""
        return self.embed_dropped + self.selection

    @property
    def total(self) -> int:
        """MACs of everything that the network computes."""
        return self.published + self.unpublished


def clip_cost(size: NetworkSize, keep: int, pool: int | None = None, reads: Reads = "embeddings") -> Cost:
    """Cost of one clip.

    Args:
        size: The network.
        keep: Tokens that enter the blocks, without the class token.
        pool: Tokens of the sampled grid. By default nothing is dropped.
        reads: What the selector reads.

    Raises:
        ValueError: ``keep`` is below 1 or above ``pool``.
    """
    pool = keep if pool is None else pool
    if not 1 <= keep <= pool:
        raise ValueError(f"cannot keep {keep} of {pool} tokens")
    width, length = size.embed_dim, keep + 1
    values = size.in_chans * size.tubelet_size * size.patch_size**2
    # A thumbnail is a sum of all pixels; the rest is the learned selector's layers (`TokenScorer`).
    parts, own = 4 if size.patch_size % 2 == 0 else 1, size.selector_dim
    learned = (4 + size.in_chans * size.tubelet_size * parts) * own + 56 * own * own + own
    scored = {"embeddings": width, "pixels": values, "thumbnails": values + learned, "nothing": 0}[reads]
    linear = round((4 + 2 * size.mlp_ratio) * width * width)
    return Cost(
        embed_kept=keep * values * width,
        embed_dropped=(pool - keep) * values * width if reads == "embeddings" else 0,
        # Each number of a token takes a subtraction and a term of a norm, which are about one MAC.
        selection=pool * scored if keep < pool else 0,
        blocks=size.depth * (length * linear + 2 * length * length * width),
        # All tokens have keys and values; only one token has a query and an output.
        pooling=2 * length * width * width + width * width + 2 * length * width + width * size.pool_dim,
        classifier=size.pool_dim * size.num_classes,
    )


def grid_cost(
    size: NetworkSize, grid: SamplingGrid, keep: int, selector: str | Selector = "group_dynamic"
) -> Cost:
    """Cost of one clip on a grid with a selector; ``keep`` above the pool keeps all tokens.

    Raises:
        ValueError: The grid is not a whole number of tokens, or the selector is unknown.
    """
    pool = size.pool(grid)
    return clip_cost(size, min(keep, pool), pool, get_selector(selector).reads)


def joint_macs(
    size: NetworkSize, grid: SamplingGrid, keeps: Sequence[int], selector: str | Selector = "group_dynamic"
) -> int:
    """MACs of one clip at several budgets at once, as in training: its pool is embedded and scored once.

    Raises:
        ValueError: See :func:`grid_cost`.
    """
    costs = [grid_cost(size, grid, keep, selector) for keep in keeps]
    embedded = max(cost.embed_kept + cost.embed_dropped for cost in costs)
    scored = max(cost.selection for cost in costs)
    return embedded + scored + sum(cost.blocks + cost.pooling + cost.classifier for cost in costs)
