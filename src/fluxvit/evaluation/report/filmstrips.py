"""Filmstrips: the sampled frames of a clip, what each budget keeps of them, and what was predicted."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.manifest import Entry
from fluxvit.deploy.explain import dim_dropped, kept_mask, shown_frames
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.grid import SamplingGrid

_FRAMES = 12  # Frames shown of a row.
_SIDE = 160  # Largest side of a frame in pixels.
_PIXELS = 2_000_000  # Of all frames of a page, so that it stays easy to mail.


@dataclass(frozen=True)
class Filmstrip:
    """A clip as rows of frames.

    Args:
        title: Name of the clip.
        label: Its true class.
        predictions: Budget, predicted class, its probability, and whether it is right, for each budget.
        rows: Title and frames, uint8 ``[T, H, W, 3]``, of each row. All rows cover the same time, so that
            their frames line up.
    """

    title: str
    label: str
    predictions: Sequence[tuple[int, str, float, bool]]
    rows: Sequence[tuple[str, np.ndarray]]


def best_and_worst(
    scores: Tensor, names: Sequence[str], entries: Sequence[Entry], count: int = 2
) -> list[tuple[str, Entry]]:
    """The clips with the highest and the lowest scores of their true class, each with a title.

    Args:
        scores: ``[N]``; NaN where a video could not be read.
        names: ``[N]`` names of the videos.
        entries: ``[N]`` videos. Segments are left out, because a filmstrip shows a whole video.
        count: The most clips of either kind.
    """
    order = [
        i
        for i in scores.argsort(descending=True).tolist()
        if not scores[i].isnan() and entries[i].start is None and entries[i].end is None
    ]
    worst = order[count:][-count:]
    clips = [(f"best: {names[i]}", entries[i]) for i in order[:count]]
    return clips + [(f"worst: {names[i]}", entries[i]) for i in reversed(worst)]


def make_filmstrips(
    checkpoint: Checkpoint,
    budgets: Sequence[int],
    grid: SamplingGrid,
    clips: Sequence[tuple[str, Entry]],
    labels: Sequence[str],
) -> list[Filmstrip]:
    """Predict clips at several budgets, all on one grid, and show which tokens each budget keeps.

    Args:
        checkpoint: The model; it predicts where it is.
        budgets: Numbers of tokens, the largest first.
        grid: The sampling grid.
        clips: Title and video of each clip; whole videos, no segments.
        labels: Class names of the videos.

    Raises:
        VideoError: A video cannot be read.
    """
    predictors = [Predictor(checkpoint, budget, grid=grid) for budget in budgets]
    config = predictors[0].model.config
    shape = grid.token_shape(config.patch_size, config.tubelet_size)
    filmstrips = []
    for title, entry in clips:
        target = labels[entry.label]
        predictions: list[tuple[int, str, float, bool]] = []
        rows: list[tuple[str, np.ndarray]] = []
        for budget, predictor in zip(budgets, predictors, strict=True):
            prediction = predictor(entry.path)
            ((label, probability),) = prediction.top(1)
            predictions.append((budget, label, probability, label == target))
            frames = shown_frames(prediction, min_height=96)
            if not rows:
                rows.append((f"sampled {grid}", frames))
            mask = kept_mask(prediction.kept, shape, config.tubelet_size)
            rows.append((f"{budget} tokens", dim_dropped(frames, mask)))
        filmstrips.append(Filmstrip(title, target, predictions, rows))
    return filmstrips


def encode(filmstrips: Sequence[Filmstrip]) -> list[list[tuple[str, list[str]]]]:
    """Title and frames, as data URIs, of each row of each filmstrip; small enough for one page together.

    At most twelve frames of a row are shown, evenly spaced, the first and the last among them.
    """
    shown = [
        [
            (title, frames[np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int)])
            for title, frames in strip.rows
        ]
        for strip in filmstrips
    ]
    count = sum(len(frames) for rows in shown for _, frames in rows)
    side = min(_SIDE, math.isqrt(_PIXELS // max(count, 1)))
    return [[(title, [_jpeg(frame, side) for frame in frames]) for title, frames in rows] for rows in shown]


def _jpeg(frame: np.ndarray, side: int) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    data = io.BytesIO()
    # Colours are not subsampled, because the outlines around kept patches are thin and saturated.
    image.save(data, "JPEG", quality=85, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
