"""Spending by need: cascades, which run a dearer plan only where a cheap one is unsure, and a mean budget
that is shared among a set of clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fluxvit.flux.budget import Plan
from fluxvit.flux.cost import NetworkSize, grid_cost


@dataclass(frozen=True)
class Spent:
    """What one clip has cost.

    Args:
        tokens: Tokens that entered the blocks, over all passes.
        gmacs: 1e9 multiply-accumulates of everything, over all passes.
        passes: Times that tokens were encoded.
    """

    tokens: int
    gmacs: float
    passes: int = 1


# Cascades --------------------------------------------------------------------------------------------------


def chain_gmacs(size: NetworkSize, stages: Sequence[Plan]) -> list[float]:
    """GMACs of a clip that goes through the first one, two, ... of the stages.

    Stages of one grid and selector share embeddings and scores, which are made for the largest of them.
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
    """Tokens that are encoded of a clip that goes through the first one, two, ... of the stages."""
    return list(accumulate(plan.keep for plan in stages))


def stage_answer(logits: Sequence[Tensor], temperatures: Sequence[float], average: bool) -> Tensor:
    """Probabilities after the stages that were run.

    Args:
        logits: Of each stage that was run, ``[..., classes]``.
        temperatures: What the logits of each are divided by; of stages that were not run, too.
        average: Take the mean of the stages' probabilities, not the last one's.

    Returns:
        float64 ``[..., classes]``; the confidence is the largest of them.
    """
    asked = range(len(logits)) if average else range(len(logits) - 1, len(logits))
    return torch.stack([(logits[i].cpu().double() / temperatures[i]).softmax(-1) for i in asked]).mean(0)


# A mean budget, shared -------------------------------------------------------------------------------------

# Needs are turned into whole numbers up to this one, so that shares add up exactly.
_FINE = 1 << 40


def share_tokens(needs: Sequence[float], mean: int, floor: int, ceiling: int) -> list[int]:
    """Divide ``mean`` tokens a clip in proportion to what each clip needs, none below a floor or above a
    ceiling.

    What the limits cut off or add is taken from, or goes to, the other clips in proportion. A clip that needs
    more never gets less; of equal needs the first clips get the odd tokens.

    Args:
        needs: Not negative, in any unit; if all are 0, all are equal.
        mean: Tokens a clip.

    Returns:
        Tokens of each clip, ``mean * len(needs)`` in all.

    Raises:
        ValueError: The mean is not within floor and ceiling, the floor is below 1, or a need is negative or
            not finite.
    """
    if not 1 <= floor <= mean <= ceiling:
        raise ValueError(
            f"a mean of {mean} tokens, floor {floor}, ceiling {ceiling}: the mean lies between them, and the "
            "floor is at least 1"
        )
    if not all(0 <= need < math.inf for need in needs):
        raise ValueError("needs must be finite and not negative")
    most = max(needs, default=0.0)
    weights = [max(1, round(need / most * _FINE)) if most else 1 for need in needs]
    shares = [0] * len(weights)
    open_, left = list(range(len(weights))), mean * len(weights)
    while open_:
        # The share of clip i would be weights[i] * left / total; below everything is times total.
        total = sum(weights[i] for i in open_)
        low = [i for i in open_ if weights[i] * left < floor * total]
        high = [i for i in open_ if weights[i] * left > ceiling * total]
        if not low and not high:
            break
        lack = sum(floor * total - weights[i] * left for i in low)
        excess = sum(weights[i] * left - ceiling * total for i in high)
        # Only the side that matters more is settled: the other may change when it is.
        settled = [(low, floor)] * (lack >= excess) + [(high, ceiling)] * (excess >= lack)
        for clips, limit in settled:
            for i in clips:
                shares[i] = limit
            left -= limit * len(clips)
        done = {i for clips, _ in settled for i in clips}
        open_ = [i for i in open_ if i not in done]
    if open_:
        total = sum(weights[i] for i in open_)
        parts = {i: divmod(weights[i] * left, total) for i in open_}
        odd = left - sum(part for part, _ in parts.values())
        by_rest = sorted(open_, key=lambda i: (-parts[i][1], i))
        for place, i in enumerate(by_rest):
            shares[i] = parts[i][0] + (place < odd)
    return shares


def motion(scores: Tensor) -> float:
    """How much moves in a clip: its tokens' mean score ``[..., T, L]``."""
    return scores.float().mean().item()


def spread(scores: Tensor) -> float:
    """Over how many tokens of the pool the scores are spread: the exponential of their entropy."""
    shares = scores.cpu().double().flatten()
    shares = shares / shares.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum().exp().item()


NEEDS: dict[str, Callable[[Tensor], float]] = {"motion": motion, "spread": spread}
"""What a clip needs, told by the scores of its pool."""
