"""The samplings that a search tries for each budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from itertools import pairwise, product
from typing import TYPE_CHECKING

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.manifest import Manifest
from fluxvit.flux.grid import SamplingGrid, max_pool
from fluxvit.optimization.halving import Sampling
from fluxvit.video.base import VideoError
from fluxvit.video.reader import probe

if TYPE_CHECKING:
    from fluxvit.optimization.config import OptimizeConfig

# Largest pool and most frames of a candidate, as a multiple of the largest ones of training.
_BEYOND = 1.5
# Videos with at least this ratio of sides also get grids that are not square.
_OBLONG = 1.15
_PROBED = 5


def find_candidates(
    config: OptimizeConfig, checkpoint: Checkpoint, aspect: Callable[[], float]
) -> dict[int, list[Sampling]]:
    """The samplings to try for each budget, largest budget first.

    If frames and sizes are not given, they are those of training and one step beyond on both sides, with up
    to 1.5 times as many tokens as the largest training grid. For videos that are not square, every size is
    also tried in their shape. For every budget, the grids with exactly as many tokens are added (plain
    sampling).

    Args:
        aspect: Returns the ratio of width to height of the videos. It is called only if it is needed.

    Raises:
        ValueError: A grid is not a whole number of tokens, no grid is large enough for a budget, or frames
            and sizes are neither given nor known from training.
    """
    model = checkpoint.model
    patch, tubelet = model.config.patch_size, model.config.tubelet_size
    budgets = sorted(set(config.budgets or model.config.budgets), reverse=True)
    trained = checkpoint.grids or [plan.grid for plan in checkpoint.plans]
    if not trained and not (config.frames and config.sizes):
        raise ValueError(f"{config.checkpoint} names no training grids; give --frames and --sizes")
    frames = config.frames or _usual_frames({grid.frames for grid in trained}, tubelet)
    if config.sizes:
        shapes = {(size, size) for size in config.sizes}
    else:
        shapes = _usual_shapes({(grid.height, grid.width) for grid in trained}, patch, aspect())
    grids = {SamplingGrid(t, height, width) for t, (height, width) in product(frames, shapes)}
    if not (config.frames or config.sizes):
        most = _BEYOND * max(grid.tokens(patch, tubelet) for grid in trained)
        most = min(most, max_pool())
        grids = {grid for grid in grids if grid.tokens(patch, tubelet, bounded=False) <= most}
        for budget, (height, width) in product(budgets, shapes):
            times, rest = divmod(budget, SamplingGrid(tubelet, height, width).tokens(patch, tubelet))
            if times and not rest and times * tubelet <= max(frames):
                grids.add(SamplingGrid(times * tubelet, height, width))
    present = (plan.selector for plan in checkpoint.plans)
    selectors = config.selectors or tuple(dict.fromkeys((checkpoint.selector, *present, "moving_pixels")))
    candidates = {}
    for budget in budgets:
        candidates[budget] = [
            Sampling(budget, grid, selector)
            for grid in sorted(grids)
            # If no token is dropped, all selectors give the same result.
            for selector in selectors[: None if grid.tokens(patch, tubelet) > budget else 1]
            if grid.tokens(patch, tubelet) >= budget
        ]
        if not candidates[budget]:
            most = max(grid.tokens(patch, tubelet) for grid in grids)
            raise ValueError(
                f"budget {budget}: no candidate grid has as many tokens (the largest has {most:g}); "
                "give more --frames or larger --sizes"
            )
    return candidates


def _and_neighbours(values: Iterable[int], unit: int) -> list[int]:
    """Values of training and one step beyond on both sides; a step is the smallest gap, or a unit."""
    ordered = sorted(set(values))
    step = min((high - low for low, high in pairwise(ordered)), default=unit)
    return [value for value in (ordered[0] - step, *ordered, ordered[-1] + step) if value > 0]


def _usual_frames(trained: set[int], tubelet: int) -> list[int]:
    """Numbers of frames to try. Much denser ones pay where few tokens are kept."""
    densest = tubelet * int(_BEYOND * max(trained) / tubelet)
    return sorted({*_and_neighbours(trained, tubelet), densest})


def _usual_shapes(trained: set[tuple[int, int]], patch: int, aspect: float) -> set[tuple[int, int]]:
    """Heights and widths to try for videos ``aspect`` times as wide as high."""
    sides = _and_neighbours({min(shape) for shape in trained}, patch)
    shapes = trained | {(side, side) for side in sides}
    longer = max(aspect, 1 / aspect)
    if longer >= _OBLONG:
        for side in sides:
            other = round(side * longer / patch) * patch
            shapes.add((side, other) if aspect > 1 else (other, side))
    return shapes


def aspect_of(manifest: Manifest) -> float:
    """Median ratio of width to height of a few videos; 1 if none can be read."""
    aspects = []
    for entry in manifest.entries[:_PROBED]:
        if entry.width and entry.height:
            aspects.append(entry.width / entry.height)
            continue
        try:
            shown = probe(entry.path)
        except VideoError:  # The search reports the error later.
            continue
        aspects.append(shown.width / shown.height)
    return statistics.median(aspects) if aspects else 1.0
