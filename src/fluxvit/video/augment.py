"""Random augmentation of clips. Whatever is drawn holds for all frames, so that motion is preserved.

A clip is a uint8 tensor ``[3, T, H, W]`` on the CPU. The input is not changed. All randomness comes from the
NumPy generator that is passed in.

Statistics (the grey level of Contrast, the range and the histogram of AutoContrast and Equalize) are computed
over the whole clip. Image libraries compute them frame by frame, which makes a clip flicker, and a token
selector that looks for change would see the flicker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD, random_box, resize

TSN_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Scales of Temporal Segment Networks and of the paper's pre-training (table 14)."""

_LEVELS = np.arange(256)
_GREY = torch.tensor([0.299, 0.587, 0.114])  # The luma weights of red, green and blue.
_FILL = 128


# RandAugment -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandAugment:
    """Applies a few random operations out of the 15 of `OPS`, drawn with replacement (Cubuk et al. 2020).

    The magnitudes are those of the FluxViT release ("increasing"): a higher one always means more change.

    Args:
        magnitude: Mean strength, 0 to 10.
        ops: Operations drawn per clip.
        std: Standard deviation of the strength, which is drawn for each operation and cut to 0..10.
        probability: Probability of applying an operation that was drawn.

    Raises:
        ValueError: A setting is out of its range.
    """

    magnitude: float
    ops: int = 2
    std: float = 0.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= 10 or self.ops < 1 or self.std < 0 or not 0 <= self.probability <= 1:
            raise ValueError(
                "RandAugment needs a magnitude in 0..10, at least one op, std of at least 0 and a "
                f"probability in 0..1; got {self}"
            )

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Read the usual notation: ``rand-m7-n4-mstd0.5-inc1`` (the release), ``rand-m9-mstd0.5-inc1``.

        ``m`` magnitude, ``n`` operations (2 if left out), ``mstd`` standard deviation (0), ``p`` probability
        (0.5). ``inc1`` must be there: the other magnitude rules are not implemented.

        Raises:
            ValueError: ``text`` is not of this form, or a setting is out of its range.
        """
        head, *parts = text.split("-")
        matches = [re.fullmatch(r"(mstd|m|p|n(?=\d+$)|inc)(\d+(?:\.\d+)?)", part) for part in parts]
        given = {match[1]: match[2] for match in matches if match}
        if head != "rand" or len(given) != len(parts) or "m" not in given or given.pop("inc", "") != "1":
            raise ValueError(f"cannot read {text!r}; write it like rand-m7-n4-mstd0.5-inc1, ending in inc1")
        fields = {"m": "magnitude", "mstd": "std", "p": "probability"}
        settings = {fields[key]: float(value) for key, value in given.items() if key != "n"}
        return cls(ops=int(given.get("n", "2")), **settings)

    def __call__(self, video: Tensor, generator: np.random.Generator) -> Tensor:
        """Augment one clip."""
        chosen = generator.integers(len(OPS), size=self.ops)
        applied = generator.random(self.ops) < self.probability
        strengths = generator.normal(self.magnitude, self.std, self.ops).clip(0, 10) / 10
        signs = generator.choice((-1, 1), self.ops)
        video, operations = video.contiguous(), list(OPS.values())
        for index, strength in zip(chosen[applied], (strengths * signs)[applied], strict=True):
            video = operations[index](video, float(strength))
        return video


def _look_up(video: Tensor, tables: np.ndarray) -> Tensor:
    """Map levels by a table, ``[256]`` or one per channel ``[3, 256]``, rounded and clipped to 0..255."""
    tables = np.broadcast_to(tables.round().clip(0, 255).astype(np.uint8), (3, 256))
    # 2 ms for 16x224, against 15 for indexing with the pixels.
    channels = [
        bytearray(channel.numpy()).translate(table.tobytes())
        for channel, table in zip(video, tables, strict=True)
    ]
    return torch.stack([torch.frombuffer(c, dtype=torch.uint8) for c in channels]).view_as(video)


def _auto_contrast(video: Tensor, _: float) -> Tensor:
    """Stretch each channel to 0..255."""
    low, high = (x.long().numpy() for x in video.flatten(1).aminmax(dim=1, keepdim=True))
    stretched = (_LEVELS - low) * 255 // np.maximum(high - low, 1)
    # A channel of one value stays as it is.
    return _look_up(video, np.where(low < high, stretched, _LEVELS))


def _equalize(video: Tensor, _: float) -> Tensor:
    """Make the levels of each channel equally frequent."""
    tables = []
    for channel in video:
        counts = torch.bincount(channel.flatten(), minlength=256).numpy()
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        below = counts.cumsum() - counts
        tables.append((step // 2 + below) // step if step else _LEVELS)
    return _look_up(video, np.stack(tables))


def _invert(video: Tensor, _: float) -> Tensor:
    return 255 - video


def _posterize(video: Tensor, strength: float) -> Tensor:
    """Keep the 4 highest bits at strength 0 (never all 8), none at 1."""
    kept = 4 - int(4 * abs(strength))
    return video & (256 - (1 << (8 - kept)))


def _solarize(video: Tensor, strength: float) -> Tensor:
    """Invert the levels from a threshold on: 256 at strength 0, 0 at 1."""
    threshold = 256 - int(256 * abs(strength))
    return _look_up(video, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(video: Tensor, strength: float) -> Tensor:
    """Brighten the darker half of the levels by up to 110."""
    return _look_up(video, np.where(_LEVELS < 128, _LEVELS + int(110 * abs(strength)), _LEVELS))


def _factor(strength: float) -> float:
    """Factor of an enhancement, 0.1 to 1.9: 1 changes nothing, 0 would remove the property, 2 double it."""
    return 1 + 0.9 * strength


def _color(video: Tensor, strength: float) -> Tensor:
    factor, colors = _factor(strength), video.flatten(1).float()
    grey = (1 - factor) * (_GREY @ colors)
    return colors.mul_(factor).add_(grey).round_().clamp_(0, 255).to(torch.uint8).view_as(video)


def _contrast(video: Tensor, strength: float) -> Tensor:
    grey = float(_GREY @ video.flatten(1).float().mean(1))
    return _look_up(video, grey + _factor(strength) * (_LEVELS - grey))


def _brightness(video: Tensor, strength: float) -> Tensor:
    return _look_up(video, _factor(strength) * _LEVELS)


def _sharpness(video: Tensor, strength: float) -> Tensor:
    """Away from, or towards, the 3x3 smoothing (1 1 1, 1 5 1, 1 1 1) / 13; the border stays."""
    wide = video.to(torch.int16)
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = wide[..., 1:-1, 1:-1]
    smooth = (box + 4 * inner).float().div_(13)
    result = video.clone()
    result[..., 1:-1, 1:-1] = smooth.lerp_(inner.float(), _factor(strength)).round_().clamp_(0, 255)
    return result


def _warp(video: Tensor, x_from: Sequence[float], y_from: Sequence[float]) -> Tensor:
    """Sample a clip bilinearly at an affine map of its own positions; pixels from outside are grey.

    Args:
        x_from, y_from: Rows ``(a, b, c)`` of the map: the pixel at (x, y) comes from ``a * x + b * y + c``,
            in pixels from the middle.
    """
    height, width = video.shape[-2:]
    (a, b, c), (d, e, f) = x_from, y_from
    # In units of half a width and half a height, as grid_sample counts.
    theta = torch.tensor([[[a, b * height / width, 2 * c / width], [d * width / height, e, 2 * f / height]]])
    grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
    # As channels of one image, all frames share the grid. Outside is 0, so grey has to be 0 meanwhile.
    image = video.reshape(1, -1, height, width).float().sub_(_FILL)
    return F.grid_sample(image, grid, align_corners=False).add_(_FILL).round_().to(torch.uint8).view_as(video)


def _rotate(video: Tensor, strength: float) -> Tensor:
    """Counter-clockwise about the middle, up to 30 degrees."""
    angle = math.radians(30 * strength)
    return _warp(video, (math.cos(angle), -math.sin(angle), 0), (math.sin(angle), math.cos(angle), 0))


def _shear_x(video: Tensor, strength: float) -> Tensor:
    """Rows move left, by up to 0.3 pixels per row below the top."""
    slope = 0.3 * strength
    return _warp(video, (1, slope, slope * video.shape[-2] / 2), (0, 1, 0))


def _shear_y(video: Tensor, strength: float) -> Tensor:
    """Columns move up, by up to 0.3 pixels per column right of the left edge."""
    slope = 0.3 * strength
    return _warp(video, (1, 0, 0), (slope, 1, slope * video.shape[-1] / 2))


def _translate_x(video: Tensor, strength: float) -> Tensor:
    """Left, by up to 0.45 of the width."""
    return _warp(video, (1, 0, 0.45 * strength * video.shape[-1]), (0, 1, 0))


def _translate_y(video: Tensor, strength: float) -> Tensor:
    """Up, by up to 0.45 of the height."""
    return _warp(video, (1, 0, 0), (0, 1, 0.45 * strength * video.shape[-2]))


OPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": _brightness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
"""The operations of `RandAugment`. Each takes a contiguous uint8 clip and a strength in -1..1 (magnitude / 10
with a random sign) and returns a clip. Operations without a direction ignore the sign; the first three ignore
the magnitude, too."""


# Boxes -----------------------------------------------------------------------------------------------------


def multi_scale_crop(
    video: Tensor,
    size: tuple[int, int],
    generator: np.random.Generator,
    scales: Sequence[float] = TSN_SCALES,
) -> Tensor:
    """Cut a box at one of 13 positions out of a clip and resize it to ``size`` = (height, width).

    This is the crop of Temporal Segment Networks, which the paper uses in pre-training (table 14; table 16
    has scales 0.5 and 1). The positions are those of a 5x5 lattice whose coordinates are both even or both
    odd.

    Args:
        scales: Sides of the box, as fractions of the largest box of ``size``'s aspect. Height and width are
            drawn together, from the same scale or from neighbours in size ("max distort 1").

    Raises:
        ValueError: ``scales`` is empty or not within 0..1, ``size`` is not positive, or ``video`` no clip.
    """
    if not scales or not 0 < min(scales) <= max(scales) <= 1 or min(size) < 1:
        raise ValueError(
            f"need scales above 0, at most 1, and a positive size; got {tuple(scales)} and {size}"
        )
    height, width = video.shape[-2:]
    largest = min(height / size[0], width / size[1])
    ordered = sorted(scales)
    pairs = [(i, j) for i in range(len(ordered)) for j in range(len(ordered)) if abs(i - j) <= 1]
    pair = pairs[generator.integers(len(pairs))]
    positions = [(i, j) for i in range(5) for j in range(5) if i % 2 == j % 2]
    position = positions[generator.integers(len(positions))]
    box_height, box_width = (
        max(1, round(side * largest * ordered[i])) for side, i in zip(size, pair, strict=True)
    )
    top, left = (height - box_height) * position[0] // 4, (width - box_width) * position[1] // 4
    return resize(video[..., top : top + box_height, left : left + box_width], size)


def random_erase(
    video: Tensor,
    generator: np.random.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Replace a box, the same in all frames, with noise that differs between pixels and between frames.

    The release draws the noise from N(0, 1) on normalised clips. Here it is drawn so that `normalize` makes
    it N(0, 1), except that pixels are clipped to 0..1 (-2.1 to 2.6 standard deviations). It can therefore run
    before normalisation, in loader workers, where clips are small and each request has its own randomness.

    Args:
        area, aspect: Ranges of the box; see :func:`~fluxvit.video.transforms.random_box`.

    Raises:
        ValueError: A range is empty or not positive, or ``area`` exceeds 1.
    """
    top, left, height, width = random_box((video.shape[-2], video.shape[-1]), generator, area, aspect)
    noise = torch.from_numpy(generator.standard_normal((3, video.shape[1], height, width), np.float32))
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    result = video.clone()
    box = result[..., top : top + height, left : left + width]
    box.copy_(noise.mul_(std).add_(mean).clamp_(0, 1).mul_(255).round_())
    return result
