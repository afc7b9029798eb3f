"""Contrastive losses of two modalities: InfoNCE and sigmoid, over the joint batch of all processes.

Memory does not grow with the square of the batch: similarities are made for some rows at a time, and again
in the backward pass. Averaging gradients over processes, as data parallelism does, gives the gradient of the
loss of the joint batch, for gathered embeddings pass gradients back to the process that made them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fluxvit.utils.distributed import World

LOSSES = ("infonce", "sigmoid")


class _Gather(torch.autograd.Function):
    """Rows of all processes, by rank; each row's gradients of all processes, summed, go back to its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world, ctx.count = world, len(rows)
        parts = [torch.empty_like(rows) for _ in range(world.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.narrow(0, ctx.world.rank * ctx.count, ctx.count), None


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """``[B, ...]`` of each process to ``[W * B, ...]`` in all of them, with gradients.

    All processes must have as many rows, and take the backward pass together.
    """
    return rows if world.size == 1 else _Gather.apply(rows, world)


def contrastive_loss(
    video: Tensor,
    text: Tensor,
    scale: Tensor,
    same: Tensor,
    world: World,
    *,
    kind: str = "infonce",
    bias: Tensor | None = None,
    block: int = 1024,
) -> Tensor:
    """How far pairs are from being told from all other combinations of the joint batch.

    ``infonce`` is CLIP's: the mean over both directions of the cross-entropy of a row's partner among all
    candidates (arXiv 2103.00020). ``sigmoid`` is SigLIP's: each combination a yes or no of its own, summed
    over a row and averaged over rows (arXiv 2303.15343).

    Args:
        video, text: Unit vectors ``[B, D]``; rows of the same number belong together.
        scale: Factor of the cosines, a scalar: one over the temperature.
        same: int64 ``[B]``: pairs of the same number say the same (a caption that occurs twice, two clips of
            a video) and are not held against each other.
        world: Processes that make up the batch; each gets the loss of its own rows.
        bias: Added to scaled cosines, a scalar; of the sigmoid loss.
        block: Rows whose similarities are held at a time.

    Raises:
        ValueError: The kind is unknown, or the sigmoid has no bias.
    """
    if kind not in LOSSES:
        raise ValueError(f"loss {kind!r}: choose {' or '.join(LOSSES)}")
    if kind == "sigmoid" and bias is None:
        raise ValueError("the sigmoid loss needs a bias")
    video, text = video.float(), text.float()
    all_text = gather_rows(text, world)
    all_same = gather_rows(same, world)
    first = world.rank * len(video)
    own = torch.arange(first, first + len(video), device=video.device)
    directions = [(video, all_text)]
    if kind == "infonce":
        directions.append((text, gather_rows(video, world)))
    total = video.new_zeros(())
    for rows, candidates in directions:
        for part, place, group in zip(rows.split(block), own.split(block), same.split(block), strict=True):
            arguments = (part, candidates, place, group[:, None] == all_same, scale, bias)
            # Similarities of a single block would be held anyway.
            if len(rows) > block and torch.is_grad_enabled():
                total = total + checkpoint(_of_rows, *arguments, use_reentrant=False)
            else:
                total = total + _of_rows(*arguments)
    return total / (len(video) * len(directions))


def _of_rows(
    rows: Tensor, candidates: Tensor, own: Tensor, alike: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Summed losses of some rows; with a bias the sigmoid loss."""
    logits = scale * (rows @ candidates.t())
    partner = F.one_hot(own, len(candidates)).bool()
    twins = alike & ~partner
    if bias is None:
        return F.cross_entropy(logits.masked_fill(twins, -torch.inf), own, reduction="sum")
    signs = partner.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * (logits + bias)).masked_fill(twins, 0).sum()
