"""The plans that an evaluation tests: plain and optimised sampling, and other selectors beside them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import LatencyTable, plan_for
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.fluxvit import FluxViT


@dataclass(frozen=True)
class EvaluatedPlan:
    """A plan that is tested.

    Args:
        kind: ``plain``, ``optimised``, or the name of a selector on a grid that was not searched for it.
        budget: Tokens of the budget; for a budget in other units, those that its main plan keeps.
        plan: The plan.
    """

    kind: str
    budget: int
    plan: Plan


def plain_grid(model: FluxViT, budget: int, size: int) -> SamplingGrid:
    """The grid with as many square frames of side ``size`` as a budget pays for; at least one tubelet.

    Raises:
        ValueError: ``size`` is no multiple of the patch size.
    """
    per_frame = model.config.pool(SamplingGrid(model.config.tubelet_size, size, size))
    return SamplingGrid(model.config.tubelet_size * max(1, budget // per_frame), size, size)


def plans_to_test(
    checkpoint: Checkpoint,
    name: str,
    budgets: Sequence[Budget] = (),
    *,
    grid: SamplingGrid | None = None,
    plain_size: int | None = None,
    baselines: Sequence[str] = (),
) -> list[EvaluatedPlan]:
    """The plans to test, those of the largest budget first.

    Args:
        checkpoint: The checkpoint; milliseconds are measured of its model as it is.
        name: The checkpoint's name, for messages.
        budgets: Budgets; by default those that the checkpoint was trained for.
        grid: Grid to test instead of those of the plan table.
        plain_size: Side of the frames of plain sampling; by default it is taken from the training grids.
        baselines: Selectors that are also tested on the grids of the main plans.

    Raises:
        ValueError: A budget, the grid or a baseline cannot be used.
    """
    model = checkpoint.model
    trained = model.config.budgets
    # Grids may have fewer tokens than the budgets of training that nobody asked for.
    spent = {} if budgets else dict(zip(trained, checkpoint.default_budgets(grid), strict=True))
    budgets = budgets or [Budget(tokens=tokens) for tokens in trained]
    if baselines and grid is None and not checkpoint.plans:
        raise ValueError(
            f"{name} has no plan table, and plain sampling leaves selectors no choice; "
            "give the baselines a --grid, or make a table with: fluxvit optimize"
        )
    size = plain_size or _plain_size(name, checkpoint, budgets)
    tested: dict[EvaluatedPlan, None] = {}  # A set that keeps its order.
    for budget in budgets:
        known = checkpoint.plans
        if grid is not None:
            pool = checkpoint.pool(grid)
            known = [Plan(grid, min(budget.tokens or pool, pool), selector=checkpoint.selector)]
        plain = _plain(model, budget, size)
        wanted = Budget(tokens=spent[budget.tokens]) if budget.tokens in spent else budget
        main = plan_for(model, wanted, known) if known else plain
        tokens = budget.tokens or main.keep
        tested[EvaluatedPlan("plain", tokens, plain)] = None
        if known:
            kind = "optimised" if grid is None else main.selector
            tested[EvaluatedPlan(kind, tokens, main)] = None
            for selector in baselines:
                if selector != main.selector:
                    other = replace(main, selector=selector, measured=None)
                    tested[EvaluatedPlan(selector, tokens, other)] = None
    return sorted(tested, key=lambda row: -row.budget)


def _plain_size(name: str, checkpoint: Checkpoint, budgets: Sequence[Budget]) -> int:
    """The side of the square training grid with the largest pool, one tubelet of which fits into the smallest
    budget."""
    smallest = min((budget.tokens for budget in budgets if budget.tokens), default=0)
    square = [grid for grid in checkpoint.grids if grid.height == grid.width]
    if not square:
        raise ValueError(
            f"{name} names no square training grid to take the size of plain sampling from; "
            "give --plain_size, such as 224"
        )

    def frame(grid: SamplingGrid) -> int:
        return checkpoint.pool(replace(grid, frames=checkpoint.model.config.tubelet_size))

    fitting = [grid for grid in square if not smallest or frame(grid) <= smallest]
    fitting = fitting or [min(square, key=frame)]
    return max(fitting, key=lambda grid: (checkpoint.pool(grid), grid.height)).height


def _plain(model: FluxViT, budget: Budget, size: int) -> Plan:
    """As many complete frames as a budget pays for, at least one tubelet, with all tokens it pays for."""
    config = model.config
    if budget.tokens is not None:
        grid = plain_grid(model, budget.tokens, size)
        return Plan(grid, min(budget.tokens, config.pool(grid)))
    frame = config.pool(SamplingGrid(config.tubelet_size, size, size))
    table = LatencyTable(model)

    def complete(tubelets: int) -> Plan:
        return Plan(plain_grid(model, tubelets * frame, size), tubelets * frame)

    def cost(tubelets: int) -> float:
        plan = complete(tubelets)
        if budget.gflops is not None:
            return grid_cost(config.size, plan.grid, plan.keep).total / 1e9
        return table.measure(plan).p50

    limit = budget.gflops or budget.latency_ms or 0.0
    if cost(1) > limit:
        return plan_for(model, budget, [complete(1)])
    most = 2
    while cost(most) <= limit:
        most *= 2
    return complete(most // 2 - 1 + bisect_right(range(most // 2, most), limit, key=cost))
