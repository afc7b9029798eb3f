"""What may be spent on a clip, and the sampling that it buys."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.grid import SamplingGrid


@dataclass(frozen=True)
class Plan:
    """A way to spend a budget: sample ``grid``, keep ``keep`` tokens, read ``head`` (None: the nearest)."""

    grid: SamplingGrid
    keep: int
    head: int | None = None


@dataclass(frozen=True)
class Budget:
    """What one clip may cost, in exactly one unit.

    Args:
        tokens: Tokens that enter the blocks.
        gflops: GMACs of everything that the network computes (the field's papers call a multiply-accumulate
            one FLOP).
        latency_ms: Milliseconds of a forward pass of one clip on the device in hand.

    Raises:
        ValueError: None or several are given, or one is not positive.
    """

    tokens: int | None = None
    gflops: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.tokens, self.gflops, self.latency_ms) if value is not None]
        if len(given) != 1:
            raise ValueError("a budget has exactly one of tokens, gflops and latency_ms")
        if given[0] <= 0:
            raise ValueError(f"budget {given[0]}: it must be positive")


def nearest_plan(plans: Sequence[Plan], tokens: int) -> Plan:
    """The plan for a token budget: of the plans made for at most ``tokens`` tokens, the largest, else the
    smallest one cut down. Its ``keep`` is ``tokens`` where the pool allows.
    """
    assert plans
    below = [plan for plan in plans if plan.keep <= tokens]
    plan = max(below, key=lambda p: p.keep) if below else min(plans, key=lambda p: p.keep)
    return Plan(plan.grid, tokens, plan.head if plan.keep == tokens else None)


def fit_budget(
    budget: Budget,
    plans: Sequence[Plan],
    size: NetworkSize,
    measure_ms: Callable[[Plan], float],
) -> Plan:
    """The largest plan within a budget.

    Args:
        budget: What may be spent.
        plans: Known plans; their grids are used, with as many tokens kept as the budget allows.
        size: The network, for GFLOPs.
        measure_ms: Measures a plan's latency on the device, for milliseconds; called about ten times.

    Raises:
        ValueError: Not even one token fits.
    """
    if budget.tokens is not None:
        return nearest_plan(plans, budget.tokens)
    limit = budget.gflops if budget.gflops is not None else budget.latency_ms
    assert limit is not None
    unit = "GFLOPs" if budget.gflops is not None else "ms"

    def spent(plan: Plan) -> float:
        if budget.gflops is not None:
            return grid_cost(size, plan.grid, plan.keep).total / 1e9
        return measure_ms(plan)

    largest = max(plan.grid.tokens(size.patch_size, size.tubelet_size) for plan in plans)
    low, high = 1, largest
    cheapest = nearest_plan(plans, low)
    least = spent(cheapest)
    if least > limit:
        raise ValueError(
            f"budget {limit:g} {unit}: the least that this model can spend on {cheapest.grid} "
            f"is {least:.3g} {unit}"
        )
    while high - low > max(1, largest // 256):
        middle = (low + high) // 2
        if spent(nearest_plan(plans, middle)) <= limit:
            low = middle
        else:
            high = middle
    best = nearest_plan(plans, high)
    return best if spent(best) <= limit else nearest_plan(plans, low)


def parse_budget(text: str) -> Budget:
    """Read ``"1024"`` or ``"1024tokens"``, ``"20gflops"`` or ``"50ms"``.

    Raises:
        ValueError: ``text`` is none of these, or not positive.
    """
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(tokens|gflops|ms|)", text.strip().lower())
    if not match:
        raise ValueError(f"budget {text!r}: give tokens (1024), GFLOPs (20gflops) or milliseconds (50ms)")
    value, unit = float(match[1]), match[2]
    if unit == "gflops":
        return Budget(gflops=value)
    if unit == "ms":
        return Budget(latency_ms=value)
    if value != int(value):
        raise ValueError(f"budget {text!r}: tokens come in whole numbers")
    return Budget(tokens=int(value))
