"""Mixing the clips of a batch in pairs, with labels to match (mixup, CutMix)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019): one of the two and one weight for a whole batch.

    Clip i is mixed with clip B - 1 - i, so the middle one of an odd batch stays as it is. The defaults are
    those of the FluxViT release; the paper's table 15 has no label smoothing and does not mention mixing.

    Args:
        mixup: Mixup's alpha: the weight of the clip itself is drawn from Beta(alpha, alpha). 0: no mixup.
        cutmix: CutMix's alpha, of the part of the frame that stays the clip's own. 0: no CutMix.
        switch: Probability of CutMix where both are on.
        label_smoothing: Part of each label that is spread over all classes.

    Raises:
        ValueError: A setting is out of its range, or both alphas are 0.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or self.mixup == self.cutmix == 0:
            raise ValueError(f"mixup and cutmix must be at least 0, one of them above; got {self}")
        if not 0 <= self.switch <= 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"switch must be in 0..1 and label_smoothing in 0..1 (not 1); got {self}")

    def __call__(
        self, video: Tensor, label: Tensor, classes: int, seed: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            video: Floating ``[B, 3, T, H, W]``, on any device; not changed.
            label: Class indices ``[B]``; or multi-hot ``[B, classes]``, which is mixed without smoothing.
            seed: All that the mixing depends on besides its input: with (seed of the run, step) a resumed run
                mixes as it would have. With several ranks append the rank, or all mix alike.

        Returns:
            Clips like ``video``, and soft targets ``[B, classes]``, float32; those of class indices sum to 1.

        Raises:
            ValueError: ``video`` is not floating.
        """
        if not video.is_floating_point():
            raise ValueError(f"only floating clips can be mixed, got {video.dtype}; normalise them first")
        # The word keeps these numbers apart from those that others draw for the same seed.
        generator = np.random.default_rng([*seed, *b"mix"])
        chance = self.switch if self.mixup and self.cutmix else float(not self.mixup)
        if generator.random() < chance:
            part = math.sqrt(1 - generator.beta(self.cutmix, self.cutmix))
            rows, columns = (_draw_span(side, part, generator) for side in video.shape[-2:])
            mixed, kept = _paste(video, rows, columns)
        else:
            kept = generator.beta(self.mixup, self.mixup)
            mixed = torch.lerp(video.flip(0), video, kept)
        target = label if label.ndim == 2 else smooth_one_hot(label, classes, self.label_smoothing)
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
