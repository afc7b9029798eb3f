"""Settings of augmentation, for recipes and the command line. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fluxvit.utils.schema import Finite, Share, check


@dataclass(frozen=True)
class AugmentSettings:
    """Augmentation of training clips, the same for all frames of a clip. The steps are applied in this order;
    by default clips are only cropped.

    Args:
        crop: ``resized`` is a box of random area and shape; ``multi_scale`` is one of a few boxes at one of
            13 positions (the paper's pre-training); ``center`` is the crop of evaluation.
        crop_scale: For ``resized``, the range of the box's area as a fraction of the frame's (default
            0.5..1). For ``multi_scale``, the sides to choose from as fractions of the largest (default 1,
            0.875, 0.75, 0.66).
        crop_ratio: Range of the box's width over its height, for ``resized`` only (default 3/4..4/3).
        flip: Probability of a horizontal flip, for data sets that allow it.
        rand_augment: RandAugment policy in timm's notation, such as ``rand-m7-n4-mstd0.5-inc1``. By default
            there is none.
        erase: Probability of replacing a random box with noise (random erasing).

    Raises:
        ValueError: A setting is out of its range, or does not belong to the crop.
    """

    crop: Literal["resized", "multi_scale", "center"] = "resized"
    crop_scale: tuple[Finite, ...] | None = None
    crop_ratio: tuple[Finite, Finite] | None = None
    flip: Share = 0.0
    rand_augment: str | None = None
    erase: Share = 0.0

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"augment.{error}") from None

    def _check(self) -> None:
        check(self)
        if self.crop == "center" and (self.crop_scale is not None or self.crop_ratio is not None):
            raise ValueError(
                "crop_scale and crop_ratio do not belong to the center crop, which is always the same"
            )
        if self.crop == "multi_scale" and self.crop_ratio is not None:
            raise ValueError(
                "crop_ratio belongs to the resized crop; multi_scale takes its shapes from crop_scale"
            )
        if self.crop == "resized" and self.crop_scale is not None and len(self.crop_scale) != 2:
            raise ValueError(f"crop_scale of a resized crop is a low and a high area, got {self.crop_scale}")
