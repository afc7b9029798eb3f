"""Film strips for reports: what each budget keeps of the same frames, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fluxvit.data.manifest import Entry
from fluxvit.deploy.explain import dim_dropped, kept_mask, shown_frames
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation.report import Strip
from fluxvit.flux.grid import SamplingGrid


def film_strips(
    checkpoint: str | Path,
    budgets: Sequence[int],
    grid: SamplingGrid,
    clips: Sequence[tuple[str, Entry]],
    labels: Sequence[str],
    device: str | None = None,
) -> list[Strip]:
    """Strips of clips, all budgets on one grid.

    Args:
        checkpoint: Folder of the model.
        budgets: Tokens, the largest first.
        grid: Sampling of all of them.
        clips: Title and video of each; whole videos, no segments.
        labels: Class names of the videos.
        device: Where to run; None: the accelerator if there is one.

    Raises:
        VideoError: A video cannot be read.
    """
    predictors = [Predictor(checkpoint, budget, grid=grid, device=device) for budget in budgets]
    config = predictors[0].model.config
    shape = grid.token_shape(config.patch_size, config.tubelet_size)
    strips = []
    for title, entry in clips:
        answers: list[tuple[int, str, float, bool]] = []
        rows: list[tuple[str, np.ndarray]] = []
        for budget, predictor in zip(budgets, predictors, strict=True):
            prediction = predictor(entry.path)
            (label, probability), *_ = prediction.top(1)
            answers.append((budget, label, probability, label == labels[entry.label]))
            frames = shown_frames(prediction, min_height=96)
            if not rows:
                rows.append((f"sampled {grid}", frames))
            mask = kept_mask(prediction.kept, shape, config.tubelet_size)
            rows.append((f"{budget} tokens", dim_dropped(frames, mask)))
        strips.append(Strip(title, labels[entry.label], answers, rows))
    return strips
