"""Token Optimization (paper section 4): for a fixed token budget, sample more densely and keep the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fluxvit.data.dataset import ClipDataset
from fluxvit.evaluation.classification import Score, predict_dataset
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.fluxvit import FluxViT


@dataclass(frozen=True)
class Trial:
    """A plan, and its score on some data."""

    plan: Plan
    score: Score


def plain_grid(model: FluxViT, budget: int, size: int) -> SamplingGrid:
    """The grid with as many square frames of side ``size`` as a budget pays for whole; one tubelet at least.

    Raises:
        ValueError: ``size`` is no multiple of the patch size.
    """
    per_frame = SamplingGrid(model.config.tubelet_size, size, size).tokens(
        model.config.patch_size, model.config.tubelet_size
    )
    return SamplingGrid(model.config.tubelet_size * max(1, budget // per_frame), size, size)


def try_grids(
    model: FluxViT,
    dataset: ClipDataset,
    budgets: Sequence[int],
    grids: Iterable[SamplingGrid],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int = 0,
    progress: bool = True,
) -> dict[int, list[Trial]]:
    """Score every budget on every grid whose pool is at least as large.

    Run it on held-out data that is not the test set: the best of many is optimistic on the data it was
    chosen on.
    """
    trials: dict[int, list[Trial]] = {budget: [] for budget in budgets}
    for grid in grids:
        pool = grid.tokens(model.config.patch_size, model.config.tubelet_size)
        fitting = [budget for budget in budgets if budget <= pool]
        if not fitting:
            continue
        results = predict_dataset(
            model,
            dataset,
            grid,
            fitting,
            mean=mean,
            std=std,
            workers=workers,
            progress=f"Trying {grid}" if progress else None,
        )
        for budget, result in zip(fitting, results, strict=True):
            trials[budget].append(Trial(Plan(grid, budget), result.score))
    return trials


def best_trial(trials: Sequence[Trial], patch_size: int, tubelet_size: int) -> Trial:
    """The best trial; of equals, the one with the smallest pool, which is the cheapest.

    Raises:
        ValueError: There are no trials: no grid was large enough for the budget.
    """
    if not trials:
        raise ValueError("no grid has as many tokens as the budget; try denser grids")
    return max(
        trials, key=lambda t: (t.score.accuracy, -t.plan.grid.tokens(patch_size, tubelet_size), t.plan.grid)
    )
