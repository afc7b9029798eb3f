"""Mixing the clips of a batch in pairs, with labels to match (mixup, CutMix)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.training.recipes import MixingSettings


def mix_clips(
    settings: MixingSettings, video: Tensor, label: Tensor, classes: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Mix a batch by mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019), with one weight for all clips.

    Clip i is mixed with clip B - 1 - i, so the middle one of an odd batch stays as it is.

    Args:
        settings: One of mixup and CutMix is on, or both.
        video: Floating ``[B, 3, T, H, W]``, on any device; not changed.
        label: Class indices ``[B]``; or multi-hot ``[B, classes]``, which is mixed without smoothing.
        seed: Everything that the mixing depends on besides its input: with (seed of the run, step) a resumed
            run mixes as it would have. Processes must append their rank, or all mix alike.

    Returns:
        Clips like ``video``, and soft targets ``[B, classes]``, float32; those of class indices sum to 1.
    """
    # The word makes these numbers independent of those that others draw for the same seed.
    generator = np.random.default_rng([*seed, *b"mix"])
    mixup, cutmix = settings.mixup, settings.cutmix
    chance = settings.switch if mixup and cutmix else float(not mixup)
    if generator.random() < chance:
        part = math.sqrt(1 - generator.beta(cutmix, cutmix))
        rows, columns = (_draw_span(side, part, generator) for side in video.shape[-2:])
        mixed, kept = _paste(video, rows, columns)
    else:
        kept = generator.beta(mixup, mixup)
        mixed = torch.lerp(video.flip(0), video, kept)
    target = label if label.ndim == 2 else smooth_one_hot(label, classes, settings.label_smoothing)
    return mixed, torch.lerp(target.flip(0), target, kept)


def smooth_one_hot(label: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Class indices ``[B]`` as ``[B, classes]``: smoothing / classes, and 1 - smoothing more at the label."""
    return F.one_hot(label, classes).float() * (1 - smoothing) + smoothing / classes


def _draw_span(total: int, part: float, generator: np.random.Generator) -> slice:
    """A part of ``total`` positions about a uniform one; what sticks out is cut off."""
    half = int(total * part) // 2
    middle = int(generator.integers(total))
    return slice(max(0, middle - half), min(total, middle + half))


def _paste(video: Tensor, rows: slice, columns: slice) -> tuple[Tensor, float]:
    """Fill a box of each clip from its partner; also returns the part of the frame that is not in the box."""
    mixed = video.clone()
    mixed[..., rows, columns] = video.flip(0)[..., rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - pasted / (video.shape[-2] * video.shape[-1])
