"""The costs and answers of cascades, which run a more expensive plan only if a cheap one is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.plan import Plan


@dataclass(frozen=True)
class Spent:
    """The cost of one clip.

    Args:
        tokens: Tokens that entered the blocks, over all passes.
        gmacs: All multiply-accumulates in 1e9, over all passes.
        passes: Number of passes through the encoder.
    """

    tokens: int
    gmacs: float
    passes: int = 1


def chain_gmacs(size: NetworkSize, stages: Sequence[Plan]) -> list[float]:
    """GMACs of a clip that goes through the first one, two, ... of the stages.

    Stages with the same grid and selector share embeddings and scores, which are computed once, for the
    largest of them.
    """
    total, sums = 0, []
    sampled = set()
    for plan in stages:
        cost = grid_cost(size, plan.grid, plan.keep, plan.selector)
        total += cost.blocks + cost.pooling + cost.classifier
        if (plan.grid, plan.selector) not in sampled:
            sampled.add((plan.grid, plan.selector))
            alike = [
                grid_cost(size, plan.grid, other.keep, plan.selector)
                for other in stages
                if (other.grid, other.selector) == (plan.grid, plan.selector)
            ]
            total += max(cost.embed_kept + cost.embed_dropped for cost in alike)
            total += max(cost.selection for cost in alike)
        sums.append(total / 1e9)
    return sums


def chain_tokens(stages: Sequence[Plan]) -> list[int]:
    """Number of tokens encoded for a clip that goes through the first one, two, ... of the stages."""
    return list(accumulate(plan.keep for plan in stages))


def stage_answer(logits: Sequence[Tensor], temperatures: Sequence[float], average: bool) -> Tensor:
    """Probabilities after the stages that were run.

    Args:
        logits: Logits of each stage that was run, ``[..., classes]``.
        temperatures: Divisor of the logits of each stage; those of stages that were not run are ignored.
        average: Return the mean of the probabilities of the stages, and not those of the last stage.

    Returns:
        float64 ``[..., classes]``; the confidence is the largest of them.
    """
    asked = range(len(logits)) if average else range(len(logits) - 1, len(logits))
    return torch.stack([(logits[i].cpu().double() / temperatures[i]).softmax(-1) for i in asked]).mean(0)
