"""Fewer tokens by merging instead of dropping: bipartite soft matching (ToMe, arXiv 2210.09461).

A baseline for the selectors: tokens that look alike become one, their mean. Every token has to be embedded
for that. ToMe merges a few tokens in every block; here all of it happens before the first one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.flux.selection import gather_tokens


def merge_tokens(tokens: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Merge the most alike until ``keep`` tokens are left.

    In each round every second token is compared with all others in between, and of the pairs of a token and
    the one most like it (largest cosine) the best are merged: as many as there are too many tokens, but at
    most half. A mean weighs every original token alike, however many rounds it went through. Which tokens are
    compared depends on their order, so neighbours should lie side by side; the order is kept.

    Args:
        tokens: ``[B, N, C]``, with their positions, any float dtype.
        keep: Tokens to be left, 1 to N.

    Returns:
        The merged tokens ``[B, keep, C]``, and how many tokens each stands for, fp32 ``[B, keep]``.

    Raises:
        ValueError: ``keep`` is out of range.
    """
    batch, count, _ = tokens.shape
    if not 1 <= keep <= count:
        raise ValueError(f"cannot merge {count} tokens into {keep}; ask for 1 to {count}")
    x, sizes = tokens.float(), torch.ones(batch, count, 1, device=tokens.device)
    while (count := x.shape[1]) > keep:
        merged = min(count - keep, count // 2)
        unit = F.normalize(x.detach(), dim=-1)
        # Tokens of odd places stay; those of even places go into them.
        alike, nearest = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)
        leaving = alike.topk(merged, dim=1).indices
        source, target = 2 * leaving, 2 * nearest.gather(1, leaving) + 1
        stays = torch.ones(batch, count, dtype=torch.bool, device=x.device).scatter(1, source, False)
        order = stays.int().argsort(dim=1, descending=True, stable=True)[:, : count - merged]
        total = _added(x * sizes, source, target)
        sizes = _added(sizes, source, target)
        x, sizes = gather_tokens(total / sizes, order), gather_tokens(sizes, order)
    return x.to(tokens.dtype), sizes[..., 0]


def _added(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Rows ``source`` [B, M] of ``[B, N, C]`` added to rows ``target``."""
    return x.scatter_add(1, target[..., None].expand(-1, -1, x.shape[-1]), gather_tokens(x, source))
