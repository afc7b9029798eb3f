"""What may be spent on a clip, and the sampling that it buys."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import get_selector


@dataclass(frozen=True)
class Measured:
    """What a plan is known to give and to cost, as far as it was measured.

    Args:
        correct: Clips that were right on held-out data; of ``total``.
        total: Clips of that data.
        gmacs: 1e9 multiply-accumulates of a clip, everything counted.
        latency_ms: Median milliseconds of a forward pass of one clip on ``device``.
        device: What the latency was measured on.
    """

    correct: int | None = None
    total: int | None = None
    gmacs: float | None = None
    latency_ms: float | None = None
    device: str = ""


@dataclass(frozen=True)
class Plan:
    """A way to spend a budget: sample ``grid``, keep ``keep`` tokens, read ``head`` (None: the nearest).

    Two plans are equal if they do the same, whatever was ``measured`` of them.

    Raises:
        ValueError: The selector is unknown.
    """

    grid: SamplingGrid
    keep: int
    head: int | None = None
    selector: str = "group_dynamic"
    measured: Measured | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        get_selector(self.selector)


@dataclass(frozen=True)
class Cascade:
    """A cheap plan first, a dearer one only where the answer is unsure.

    Args:
        stages: Cheapest first, two at least.
        threshold: Confidence, 0 to 1, from which a stage's answer stands. That of a stage is its largest
            probability after its logits were divided by its temperature; the last stage's always stands.
        temperatures: One for each stage.
        measured: Accuracy, and the mean cost of a clip.

    Raises:
        ValueError: There are fewer than two stages, not as many temperatures, or a number is out of range.
    """

    stages: tuple[Plan, ...]
    threshold: float
    temperatures: tuple[float, ...]
    measured: Measured | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.stages) < 2 or len(self.temperatures) != len(self.stages):
            raise ValueError(
                f"a cascade has two stages or more and a temperature for each, "
                f"got {len(self.stages)} and {len(self.temperatures)}"
            )
        if not 0 <= self.threshold <= 1 or min(self.temperatures) <= 0:
            raise ValueError(
                f"a cascade's threshold lies within 0..1 and its temperatures above 0, "
                f"got {self.threshold} and {list(self.temperatures)}"
            )


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
    """The plan for a token budget: of the plans made for at most ``tokens`` tokens the largest, else the
    smallest, with ``tokens`` kept. The pool may be smaller; then all of it is kept.
    """
    assert plans
    below = [plan for plan in plans if plan.keep <= tokens]
    plan = max(below, key=lambda p: p.keep) if below else min(plans, key=lambda p: p.keep)
    return plan if plan.keep == tokens else Plan(plan.grid, tokens, selector=plan.selector)


def fit_budget(
    budget: Budget,
    plans: Sequence[Plan],
    size: NetworkSize,
    measure_ms: Callable[[Plan], float],
) -> Plan:
    """The plan with the most tokens within a budget.

    Args:
        budget: What may be spent.
        plans: Known plans. Between two of them the smaller one's grid is used, as by :func:`nearest_plan`.
        size: The network, for GFLOPs.
        measure_ms: Measures a plan's latency on the device, for milliseconds; called some ten times.

    Raises:
        ValueError: Not even one token fits.
    """

    def pool(plan: Plan) -> int:
        return plan.grid.tokens(size.patch_size, size.tubelet_size)

    if budget.tokens is not None:
        plan = nearest_plan(plans, budget.tokens)
        return plan if plan.keep <= pool(plan) else replace(plan, keep=pool(plan), measured=None)
    limit = budget.gflops if budget.gflops is not None else budget.latency_ms
    assert limit is not None

    def spent(plan: Plan) -> float:
        if budget.gflops is not None:
            return grid_cost(size, plan.grid, plan.keep).total / 1e9
        return measure_ms(plan)

    # A dense grid can cost more than a sparse one that keeps more tokens: cost rises with the tokens only
    # while the grid stays the same. Each plan rules from its own number of tokens to the next plan's.
    ordered = sorted(plans, key=lambda plan: plan.keep)
    least = float("inf")
    for i in reversed(range(len(ordered))):
        plan = ordered[i]
        first = 1 if i == 0 else min(plan.keep, pool(plan))
        last = pool(plan) if i == len(ordered) - 1 else min(pool(plan), ordered[i + 1].keep - 1)
        low = Plan(plan.grid, first, selector=plan.selector)
        least = min(least, spent(low))
        if least <= limit:
            high = replace(low, keep=max(first, last))
            # Measuring takes time, and is not exact anyway.
            step = 1 if budget.gflops is not None else max(1, last // 256)
            while high.keep - low.keep > step:
                middle = replace(low, keep=(low.keep + high.keep) // 2)
                low, high = (middle, high) if spent(middle) <= limit else (low, middle)
            best = high if spent(high) <= limit else low
            return plan if best.keep == plan.keep else best
    unit = "GFLOPs" if budget.gflops is not None else "ms"
    raise ValueError(f"budget {limit:g} {unit}: the least that this model can spend is {least:.3g} {unit}")


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
