"""The plans that an evaluation tests: plain and optimised sampling, and other selectors beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import LatencyTable, plan_for
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.fluxvit import FluxViT

if TYPE_CHECKING:
    from fluxvit.evaluation.config import EvaluateConfig


@dataclass(frozen=True)
class Subject:
    """A plan that is tested.

    Args:
        kind: ``plain``, ``optimised``, or the name of a selector on a grid that was not searched for it.
        budget: Tokens of the budget; of one in other units, those that its main plan keeps.
        plan: What is done.
    """

    kind: str
    budget: int
    plan: Plan


def plain_grid(model: FluxViT, budget: int, size: int) -> SamplingGrid:
    """The grid with as many square frames of side ``size`` as a budget pays for whole; one tubelet at least.

    Raises:
        ValueError: ``size`` is no multiple of the patch size.
    """
    per_frame = model.config.pool(SamplingGrid(model.config.tubelet_size, size, size))
    return SamplingGrid(model.config.tubelet_size * max(1, budget // per_frame), size, size)


def find_subjects(config: EvaluateConfig, checkpoint: Checkpoint) -> list[Subject]:
    """The plans to test, those of the largest budget first. Milliseconds are measured on the model's device.

    Raises:
        ValueError: A budget, the grid, the head or a baseline cannot be used.
    """
    model = checkpoint.model
    heads = len(model.config.budgets)
    if config.head is not None and not 0 <= config.head < heads:
        raise ValueError(f"head {config.head} does not exist; this model has heads 0 to {heads - 1}")
    budgets = config.budgets or tuple(Budget(tokens=tokens) for tokens in model.config.budgets)
    if config.baselines and config.grid is None and not checkpoint.plans:
        raise ValueError(
            f"{config.checkpoint} has no plan table, and plain sampling leaves selectors no choice; "
            "give the baselines a --grid, or make a table with: fluxvit optimize"
        )
    size = config.plain_size or _plain_size(config, checkpoint, budgets)
    subjects: dict[Subject, None] = {}  # A set that keeps its order.
    for budget in budgets:
        main, kind = None, "optimised"
        with autocast(config, model):  # Milliseconds are measured in it.
            plain = _changed(_plain(model, budget, size), config)
            if config.grid is not None:
                pool = config.grid.tokens(model.config.patch_size, model.config.tubelet_size)
                known = [Plan(config.grid, min(budget.tokens or pool, pool))]
                main = _changed(plan_for(model, budget, known), config)
                kind = main.selector
            elif checkpoint.plans:
                main = _changed(plan_for(model, budget, checkpoint.plans), config)
        tokens = budget.tokens or (plain if main is None else main).keep
        subjects[Subject("plain", tokens, plain)] = None
        if main is not None:
            subjects[Subject(kind, tokens, main)] = None
            for name in config.baselines:
                if name != main.selector:
                    subjects[Subject(name, tokens, replace(main, selector=name, measured=None))] = None
    return sorted(subjects, key=lambda subject: -subject.budget)


def autocast(config: EvaluateConfig, model: FluxViT) -> torch.autocast:
    """The precision that an evaluation runs in, and its milliseconds are measured in."""
    kind = next(model.parameters()).device.type
    return torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16")


def _changed(plan: Plan, config: EvaluateConfig) -> Plan:
    """A plan with the head and the selector that are asked for."""
    head = plan.head if config.head is None else config.head
    return replace(plan, head=head, selector=config.selector or plan.selector)


def _plain_size(config: EvaluateConfig, checkpoint: Checkpoint, budgets: Sequence[Budget]) -> int:
    smallest = min((budget.tokens for budget in budgets if budget.tokens), default=0)
    square = [grid for grid in checkpoint.grids if grid.height == grid.width]
    if not square:
        raise ValueError(
            f"{config.checkpoint} names no square training grid to take the size of plain sampling from; "
            "give --plain_size, such as 224"
        )

    def frame(grid: SamplingGrid) -> int:
        return checkpoint.pool(replace(grid, frames=checkpoint.model.config.tubelet_size))

    fitting = [grid for grid in square if not smallest or frame(grid) <= smallest]
    fitting = fitting or [min(square, key=frame)]
    return max(fitting, key=lambda grid: (checkpoint.pool(grid), grid.height)).height


def _plain(model: FluxViT, budget: Budget, size: int) -> Plan:
    """As many whole frames as a budget pays for, one tubelet at least, all tokens kept that it pays for."""
    config = model.config
    if budget.tokens is not None:
        grid = plain_grid(model, budget.tokens, size)
        return Plan(grid, min(budget.tokens, config.pool(grid)))
    frame = config.pool(SamplingGrid(config.tubelet_size, size, size))

    def whole(tubelets: int) -> Plan:
        return Plan(plain_grid(model, tubelets * frame, size), tubelets * frame)

    if budget.gflops is not None:
        limit = budget.gflops

        def spent(plan: Plan) -> float:
            return grid_cost(config.size, plan.grid, plan.keep).total / 1e9
    else:
        assert budget.latency_ms is not None
        limit, table = budget.latency_ms, LatencyTable(model)

        def spent(plan: Plan) -> float:
            return table.measure(plan).p50

    low, high = 1, 2
    if spent(whole(low)) > limit:
        return plan_for(model, budget, [whole(low)])
    while spent(whole(high)) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(whole(middle)) <= limit else (low, middle)
    return whole(low)
