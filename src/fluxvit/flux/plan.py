"""Plans and cascades: the sampling that a budget buys, and the search for the plan that fits."""

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
    """What a plan is known to give and to cost, as far as it was measured.

    Args:
        correct: Clips that were right on held-out data; of ``total``.
        total: Clips of that data.
        gmacs: 1e9 multiply-accumulates of a clip, everything counted.
        latency_ms: Median milliseconds of a forward pass of one clip on ``device``.
        device: What the latency was measured on.

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
        """Share of clips that were right; None if that was not measured."""
        return self.correct / self.total if self.correct is not None and self.total else None


@dataclass(frozen=True)
class Plan:
    """A way to spend a budget: sample ``grid``, keep ``keep`` tokens, read ``head`` (None: the nearest).

    Two plans are equal if they do the same, whatever was ``measured`` of them.

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
    """A cheap plan first, a dearer one only where the answer is unsure.

    Args:
        stages: Cheapest first, two at least.
        threshold: Confidence, 0 to 1, from which a stage's answer stands. That of a stage is its largest
            probability after its logits were divided by its temperature; the last stage's always stands.
        temperatures: One for each stage.
        measured: Accuracy, and the mean cost of a clip.
        average: The answer is the mean of the probabilities of all stages that were run, not the last one's.
        reach: Share of clips that came to each stage when it was tuned, from 1 falling; empty: unknown.

    Raises:
        ValueError: There are fewer than two stages, not as many temperatures, or a value has another type or
            range.
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
        """Mean cost of a clip, in the unit of ``costs``: what a clip costs that stops at each stage, all that
        it ran counted. Of unknown reach, as if every clip came to the last stage.
        """
        reach = self.reach or (1.0,) * len(self.stages)
        steps = [cost - before for cost, before in zip(costs, (0, *costs), strict=False)]
        return sum(part * step for part, step in zip(reach, steps, strict=True))


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
    measure_ms: Callable[[Plan, bool], float],
) -> Plan:
    """The plan that spends a budget.

    Tokens: :func:`nearest_plan`. GFLOPs and milliseconds, by which a dense grid may cost more than a sparse
    one that keeps more tokens:

    1. The base is the best of the known plans that fit as they stand. Best is the highest measured accuracy,
       of equals the cheapest, if every plan's was measured; else the most tokens.
    2. What is left is spent on more tokens of the base's grid, up to the pool; on none, if a plan of the same
       grid and selector with more tokens was measured to be worse.
    3. If that leaves more than a twentieth of the budget, the grid of a better plan that does not fit is
       taken with fewer tokens, though not fewer than the base's. It is also what happens if no plan fits,
       with one token at least. Of several such plans, the one that gives up the smallest share of its tokens.

    Latency is noisy and need not rise with every token. What was found is therefore measured afresh, and
    counts if that is within 95 to 99 % of the budget; else the search goes on with that figure, five times at
    most. Then of what was measured afresh and not above the budget that nearest to 97.5 % is taken.

    Args:
        budget: What may be spent.
        plans: Known plans.
        size: The network, for GFLOPs.
        measure_ms: Tells a plan's latency on the device, for milliseconds: if the second argument is true,
            as measured now; else an earlier figure will do.

    Raises:
        ValueError: Not even one token fits, or no plan that was found held the budget when measured afresh.
    """

    def pool(plan: Plan) -> int:
        return size.pool(plan.grid)

    def gmacs(plan: Plan) -> float:
        return grid_cost(size, plan.grid, plan.keep, plan.selector).total / 1e9

    if budget.tokens is not None:
        plan = nearest_plan(plans, budget.tokens)
        return plan if plan.keep <= pool(plan) else replace(plan, keep=pool(plan), measured=None)
    rows = _best_first([replace(plan, keep=min(plan.keep, pool(plan))) for plan in plans], gmacs)
    if budget.gflops is not None:
        found = _PlanSearch(budget.gflops, rows, pool, gmacs, gmacs, enough=1.0).plan()
        if found is None:
            raise _too_small(budget, min(gmacs(_with_keep(row, 1)) for row in rows), "GFLOPs")
        return found

    limit = budget.latency_ms
    assert limit is not None
    known: dict[Plan, float] = {}
    trusted = True  # Earlier figures are, until one is found wrong.

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
        # On the brink, it would be above the limit as often as not: fewer tokens are better.
        known[found] = spent if spent <= _SURE * limit else max(spent, 1.001 * limit)
        former, found = found, search.plan()
        if trusted and (wrong or found == former):
            # Earlier figures may be of a slower or a faster day: search again without them.
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


# A budget is spent if this much of it is; a latency is, if no more than that is: it varies.
_NEAR, _SURE = 0.95, 0.99
# The search in milliseconds ends here, so that a fresh measurement may differ a little.
_ENOUGH_MS = 0.96
# Fresh measurements of what the search found; and how far one may be from an earlier figure.
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
        limit: What may be spent.
        rows: Known plans, best first.
        pool: Tokens of a plan's grid.
        gmacs: A plan's cost, counted.
        cost: What a plan spends; dear to ask.
        enough: Share of the limit from which on no more tokens are looked for.
    """

    limit: float
    rows: list[Plan]
    pool: Callable[[Plan], int]
    gmacs: Callable[[Plan], float]
    cost: Callable[[Plan], float]
    enough: float

    def plan(self) -> Plan | None:
        """The plan to take, or None if no plan is within the limit."""
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
        """The most tokens that the base's grid may keep: its own if more are known to be worse, else all."""
        worse = any(
            (row.grid, row.selector) == (base.grid, base.selector)
            and row.keep > base.keep
            and (_accuracy(row) or 0) < (_accuracy(base) or 0)
            for row in self.rows
        )
        return base.keep if worse else self.pool(base)

    def _share(self, row: Plan, least: int) -> float:
        """About which share of its tokens a plan above the limit can keep within it."""
        low, high = self.cost(_with_keep(row, least)), self.cost(row)
        return (least + (self.limit - low) / (high - low) * (row.keep - least)) / row.keep

    def _grow(self, row: Plan, least: int, most: int) -> Plan:
        """The most tokens of a plan's grid within the limit, given that ``least`` are within it."""
        former, low, high = None, _with_keep(row, least), None
        aim, straight = (1 + self.enough) / 2 * self.limit, True
        while low.keep < most and self.cost(low) < self.enough * self.limit:
            if high is None:
                keep = self._beyond(former, low, most, aim)
            else:
                gap = high.keep - low.keep
                if gap <= (1 if self.enough == 1 else max(1, low.keep // 64)):
                    break
                # By a straight line and by halves in turns: the line is quick, halves always arrive.
                part = (aim - self.cost(low)) / (self.cost(high) - self.cost(low)) if straight else 0.5
                keep, straight = low.keep + min(max(round(part * gap), 1), gap - 1), not straight
            middle = _with_keep(row, keep)
            if self.cost(middle) <= self.limit:
                former, low = low, middle
            else:
                high = middle
        return low

    def _beyond(self, former: Plan | None, low: Plan, most: int, aim: float) -> int:
        """Tokens that spend ``aim`` if the cost goes on to rise with the GMACs as it did until ``low``.

        So the whole pool, which may be far dearer than the limit, is hardly ever tried.
        """
        cost, gmacs = self.cost(low), self.gmacs(low)
        if former is not None:
            cost, gmacs = cost - self.cost(former), gmacs - self.gmacs(former)
        if cost <= 0:
            return most
        goal = self.gmacs(low) + (aim - self.cost(low)) * gmacs / cost
        more = range(low.keep + 1, most + 1)
        return low.keep + max(1, bisect_right(more, goal, key=lambda keep: self.gmacs(_with_keep(low, keep))))
