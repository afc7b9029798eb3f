"""Plans and cascades, and the search for the plan that fits a budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from msgspec import Meta

from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import get_selector
from fluxvit.utils.schema import Count, Name, Natural, NotNegative, Positive, Share, check


@dataclass(frozen=True)
class Measured:
    """The measured accuracy and cost of a plan. What was not measured is None.

    Args:
        correct: Number of held-out clips that were classified correctly.
        total: Number of held-out clips.
        gmacs: All multiply-accumulates of a clip, in 1e9.
        latency_ms: Median milliseconds of a forward pass of one clip on ``device``.
        device: Device on which the latency was measured.

    Raises:
        ValueError: A value has another type or range.
    """

    correct: Natural | None = None
    total: Natural | None = None
    gmacs: NotNegative | None = None
    latency_ms: NotNegative | None = None
    device: str = ""

    def __post_init__(self) -> None:
        check(self)
        if self.correct is not None and self.total is not None and self.correct > self.total:
            raise ValueError(f"{self.correct} clips of {self.total} cannot be right")

    @property
    def accuracy(self) -> float | None:
        """Share of clips that were classified correctly; None if it was not measured."""
        return self.correct / self.total if self.correct is not None and self.total else None


@dataclass(frozen=True)
class Plan:
    """A way to spend a budget: sample ``grid``, keep ``keep`` tokens with ``selector``, and read ``head``.

    A ``head`` of None is the one that was trained at the nearest number of tokens. ``measured`` does not
    count when plans are compared.

    Raises:
        ValueError: The selector is unknown, or a value has another type or range.
    """

    grid: SamplingGrid
    keep: Count
    head: Natural | None = None
    selector: Name = "group_dynamic"
    measured: Measured | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check(self)
        get_selector(self.selector)


@dataclass(frozen=True)
class Cascade:
    """Plans that run in turn, until the answer of one is sure enough.

    Args:
        stages: The plans, cheapest first; at least two.
        threshold: Confidence, 0 to 1, at which the answer of a stage is final. The confidence is the largest
            probability after the logits are divided by the temperature. The last stage is always final.
        temperatures: Temperature of each stage.
        measured: Accuracy, and the mean cost of a clip.
        average: Answer with the mean probabilities of all stages that were run, not with those of the last.
        reach: Share of the clips that reached each stage in tuning: 1 for the first stage, and never rising.
            Empty if it is unknown.

    Raises:
        ValueError: There are fewer than two stages, the numbers of stages and temperatures differ, or a value
            has another type or range.
    """

    stages: Annotated[tuple[Plan, ...], Meta(max_length=64)]
    threshold: Share
    temperatures: tuple[Positive, ...]
    measured: Measured | None = field(default=None, compare=False)
    average: bool = False
    reach: tuple[Share, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        check(self)
        if len(self.stages) < 2 or len(self.temperatures) != len(self.stages):
            raise ValueError(
                f"a cascade has two stages or more and a temperature for each, "
                f"got {len(self.stages)} and {len(self.temperatures)}"
            )
        if self.reach and (
            len(self.reach) != len(self.stages)
            or self.reach[0] != 1
            or list(self.reach) != sorted(self.reach, reverse=True)
        ):
            raise ValueError(
                f"a cascade's reach has a share for each of {len(self.stages)} stages, 1 first and none "
                f"above the one before, got {list(self.reach)}"
            )

    def mean(self, costs: Sequence[float]) -> float:
        """Mean cost of a clip. If the reach is unknown, every clip counts as if it reached the last stage.

        Args:
            costs: Cost of a clip that stops at each stage, including the stages before, in any unit.
        """
        reach = self.reach or (1.0,) * len(self.stages)
        steps = [cost - before for cost, before in zip(costs, (0, *costs), strict=False)]
        return sum(part * step for part, step in zip(reach, steps, strict=True))


def nearest_plan(plans: Sequence[Plan], tokens: int) -> Plan:
    """The plan for a token budget, with ``tokens`` tokens kept.

    It is the largest plan that was made for at most ``tokens`` tokens, or the smallest plan if there is none.
    Its pool may have fewer tokens.
    """
    assert plans
    below = [plan for plan in plans if plan.keep <= tokens]
    plan = max(below, key=lambda p: p.keep) if below else min(plans, key=lambda p: p.keep)
    return plan if plan.keep == tokens else Plan(plan.grid, tokens, selector=plan.selector)


def fit_budget(
    budget: Budget,
    plans: Sequence[Plan],
    size: NetworkSize,
    measure_ms: Callable[[Plan, bool], float],
) -> Plan:
    """The plan that spends a budget.

    A budget in tokens leads to :func:`nearest_plan`. In GFLOPs and milliseconds a dense grid may cost more
    than a sparse one that keeps more tokens, so plans are searched:

    1. The base is the best of the known plans that fit without change. If the accuracy of every plan was
       measured, the best plan is the most accurate one, and the cheapest of equally accurate ones. Otherwise
       it is the one with the most tokens.
    2. The rest of the budget is spent on more tokens of the base's grid, up to the pool. It is not spent if a
       plan with more tokens on the same grid and selector was measured to be worse.
    3. If more than a twentieth of the budget is still left, a better plan that does not fit is used with
       fewer tokens, but not with fewer than the base has. The same is done if no plan fits, with at least one
       token. If there are several such plans, the one that gives up the smallest share of its tokens is used.

    Latency is noisy and need not rise with every token. The plan that was found is therefore measured again,
    and is accepted if that latency is 95 to 99 % of the budget. Otherwise the search continues with the new
    latency, at most five times. Then the plan whose new latency is nearest to 97.5 % of the budget is used,
    among those within the budget.

    Args:
        budget: What one clip may cost.
        plans: Known plans.
        size: The network, for GFLOPs.
        measure_ms: Function that returns the latency of a plan on the device, for milliseconds. If its second
            argument is true, it measures now; otherwise an earlier measurement is enough.

    Raises:
        ValueError: Not even one token fits, no grid has so many tokens, the budget is one per second of
            video, or no plan that was found kept the budget when measured again.
    """

    def pool(plan: Plan) -> int:
        return size.pool(plan.grid)

    def gmacs(plan: Plan) -> float:
        return grid_cost(size, plan.grid, plan.keep, plan.selector).total / 1e9

    if budget.tokens_per_s is not None:
        raise ValueError(
            f"budget {budget}: this takes what one clip may cost: tokens (1024), GFLOPs (20gflops) or "
            "milliseconds (50ms)"
        )
    if budget.tokens is not None:
        plan = nearest_plan(plans, budget.tokens)
        if plan.keep > pool(plan):  # A grid of another plan may have enough tokens.
            plan = Plan(max(plans, key=pool).grid, budget.tokens, selector=plan.selector)
        if plan.keep > pool(plan):
            raise ValueError(
                f"budget {budget}: the grid {plan.grid} has {pool(plan)} tokens; give at most as many, or a "
                "larger grid"
            )
        return plan
    rows = _best_first([replace(plan, keep=min(plan.keep, pool(plan))) for plan in plans], gmacs)
    if budget.gflops is not None:
        found = _PlanSearch(budget.gflops, rows, pool, gmacs, gmacs, enough=1.0).plan()
        if found is None:
            raise _too_small(budget, min(gmacs(_with_keep(row, 1)) for row in rows), "GFLOPs")
        return found

    limit = budget.latency_ms
    assert limit is not None
    known: dict[Plan, float] = {}
    trusted = True  # Earlier measurements are used until one proves wrong.

    def latency(plan: Plan) -> float:
        if plan not in known:
            known[plan] = measure_ms(plan, not trusted)
        return known[plan]

    search = _PlanSearch(limit, rows, pool, gmacs, latency, enough=_ENOUGH_MS)
    fresh: dict[Plan, float] = {}
    found = search.plan()
    for _ in range(_VERIFICATIONS):
        if found is None and trusted:
            known.clear()
            trusted = False
            found = search.plan()
        if found is None:
            break
        spent = fresh[found] = measure_ms(found, True)
        if _NEAR * limit <= spent <= _SURE * limit:
            return found
        wrong = abs(spent / latency(found) - 1) > _STALE
        # A plan this close to the limit would exceed it about every other time: take fewer tokens.
        known[found] = spent if spent <= _SURE * limit else max(spent, 1.001 * limit)
        former, found = found, search.plan()
        if trusted and (wrong or found == former):
            # The device may have become slower or faster since: search again without earlier measurements.
            trusted = False
            known.clear()
            found = search.plan()
        elif found == former:
            break
    held = [plan for plan, spent in fresh.items() if spent <= limit]
    if held:
        middle = (1 + _NEAR) / 2 * limit
        return min(held, key=lambda plan: abs(fresh[plan] - middle))
    if not fresh:
        raise _too_small(budget, min(latency(_with_keep(row, 1)) for row in rows), "ms")
    raise ValueError(
        f"budget {budget}: what was chosen for it took {min(fresh.values()):.3g} ms and more when measured "
        "again; the device is busy: try again, or allow more"
    )


# A budget counts as spent from the first share on. A latency varies, so it must not exceed the second share.
_NEAR, _SURE = 0.95, 0.99
# The search in milliseconds ends at this share, so that the next measurement may differ a little.
_ENOUGH_MS = 0.96
# Most measurements of found plans, and how far one may be from an earlier measurement.
_VERIFICATIONS, _STALE = 6, 0.1


def _too_small(budget: Budget, least: float, unit: str) -> ValueError:
    return ValueError(f"budget {budget}: the least that this model can spend is {least:.3g} {unit}")


def _with_keep(plan: Plan, keep: int) -> Plan:
    """A plan with another number of tokens, for which its head and its accuracy do not hold."""
    return plan if keep == plan.keep else Plan(plan.grid, keep, selector=plan.selector)


def _best_first(plans: Sequence[Plan], gmacs: Callable[[Plan], float]) -> list[Plan]:
    if all(_accuracy(plan) is not None for plan in plans):
        return sorted(plans, key=lambda plan: (-(_accuracy(plan) or 0), gmacs(plan)))
    return sorted(plans, key=lambda plan: -plan.keep)


def _accuracy(plan: Plan) -> float | None:
    return None if plan.measured is None else plan.measured.accuracy


@dataclass(frozen=True)
class _PlanSearch:
    """The search of :func:`fit_budget` in GFLOPs or milliseconds.

    Args:
        limit: Largest cost.
        rows: Known plans, best first.
        pool: Number of tokens of a plan's grid.
        gmacs: Computes the GMACs of a plan.
        cost: Returns the cost of a plan, in the unit of the limit. It may be slow.
        enough: Share of the limit at which the search for more tokens ends.
    """

    limit: float
    rows: list[Plan]
    pool: Callable[[Plan], int]
    gmacs: Callable[[Plan], float]
    cost: Callable[[Plan], float]
    enough: float

    def plan(self) -> Plan | None:
        """The plan to use, or None if no plan is within the limit."""
        base = next((row for row in self.rows if self.cost(row) <= self.limit), None)
        found, better, least = None, self.rows, 1
        if base is not None:
            found = self._grow(base, base.keep, self._top(base))
            if self.cost(found) >= _NEAR * self.limit:
                return found
            better, least = self.rows[: self.rows.index(base)], base.keep
        cut = [row for row in better if row.keep > least and self.cost(_with_keep(row, least)) <= self.limit]
        if cut:
            row = max(cut, key=lambda row: self._share(row, least))
            other = self._grow(row, least, row.keep)
            if found is None or self.cost(other) > self.cost(found):
                found = other
        return found

    def _top(self, base: Plan) -> int:
        """Most tokens for the base's grid: those of the base if more are known to be worse, otherwise all."""
        worse = any(
            (row.grid, row.selector) == (base.grid, base.selector)
            and row.keep > base.keep
            and (_accuracy(row) or 0) < (_accuracy(base) or 0)
            for row in self.rows
        )
        return base.keep if worse else self.pool(base)

    def _share(self, row: Plan, least: int) -> float:
        """Estimated share of its tokens that a plan above the limit can keep within it."""
        low, high = self.cost(_with_keep(row, least)), self.cost(row)
        return (least + (self.limit - low) / (high - low) * (row.keep - least)) / row.keep

    def _grow(self, row: Plan, least: int, most: int) -> Plan:
        """A plan with the most tokens of its grid within the limit, if ``least`` tokens are within it."""
        former, low, high = None, _with_keep(row, least), None
        aim, straight = (1 + self.enough) / 2 * self.limit, True
        while low.keep < most and self.cost(low) < self.enough * self.limit:
            if high is None:
                keep = self._beyond(former, low, most, aim)
            else:
                gap = high.keep - low.keep
                if gap <= (1 if self.enough == 1 else max(1, low.keep // 64)):
                    break
                # Linear interpolation, which is fast, and bisection, which always converges, take turns.
                part = (aim - self.cost(low)) / (self.cost(high) - self.cost(low)) if straight else 0.5
                keep, straight = low.keep + min(max(round(part * gap), 1), gap - 1), not straight
            middle = _with_keep(row, keep)
            if self.cost(middle) <= self.limit:
                former, low = low, middle
            else:
                high = middle
        return low

    def _beyond(self, former: Plan | None, low: Plan, most: int, aim: float) -> int:
        """Number of tokens that costs ``aim`` if the cost keeps rising with the GMACs as up to ``low``.

        This avoids trying the full pool, which may cost far more than the limit.
        """
        cost, gmacs = self.cost(low), self.gmacs(low)
        if former is not None:
            cost, gmacs = cost - self.cost(former), gmacs - self.gmacs(former)
        if cost <= 0:
            return most
        goal = self.gmacs(low) + (aim - self.cost(low)) * gmacs / cost
        more = range(low.keep + 1, most + 1)
        return low.keep + max(1, bisect_right(more, goal, key=lambda keep: self.gmacs(_with_keep(low, keep))))
