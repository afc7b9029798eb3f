"""Random augmentation of clips: whatever is drawn holds for all frames, so that motion stays what it was.

A clip is ``[3, T, H, W]`` on the CPU, uint8 (0 to 255) or floating (0 to 1). The dtype is kept and the input
not changed. All randomness comes from the NumPy generator passed in.

Statistics (the grey that contrast is about, the range and histogram behind AutoContrast and Equalize) are
those of the whole clip. Taken frame by frame, as by image libraries, they would make a clip flicker, and a
token selector that looks for change would see the flicker.
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

from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD, resize

TSN_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Scales of Temporal Segment Networks and of the paper's pre-training (table 14)."""

_LEVELS = np.arange(256)
# RGB to luma and two chroma axes (NTSC). The first row is the usual grey of a colour.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_GREY = _YIQ[0]
_FILL = 128


# RandAugment -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandAugment:
    """A few random operations out of the 15 of `OPS`, drawn with replacement (Cubuk et al. 2020).

    The magnitudes are the FluxViT release's: "increasing", more of each always means more change.

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
        found = {match[1]: match[2] for match in matches if match}
        if head != "rand" or len(found) != len(parts) or "m" not in found or found.pop("inc", "") != "1":
            raise ValueError(f"cannot read {text!r}; write it like rand-m7-n4-mstd0.5-inc1, ending in inc1")
        fields = {"m": "magnitude", "mstd": "std", "p": "probability"}
        settings = {fields[key]: float(value) for key, value in found.items() if key != "n"}
        return cls(ops=int(found.get("n", "2")), **settings)

    def __call__(self, video: Tensor, generator: np.random.Generator) -> Tensor:
        """Augment one clip. A floating one is rounded to 8 bits first: half the operations are on levels."""
        chosen = generator.integers(len(OPS), size=self.ops)
        applied = generator.random(self.ops) < self.probability
        strengths = generator.normal(self.magnitude, self.std, self.ops).clip(0, 10) / 10
        signs = generator.choice((-1, 1), self.ops)
        levels = video if video.dtype == torch.uint8 else (video * 255).round().clamp(0, 255).to(torch.uint8)
        levels = levels.contiguous()
        operations = list(OPS.values())
        for index, strength in zip(chosen[applied], (strengths * signs)[applied], strict=True):
            levels = operations[index](levels, float(strength))
        return levels if video.dtype == torch.uint8 else levels.to(video.dtype) / 255


def _look_up(video: Tensor, tables: np.ndarray) -> Tensor:
    """Send pixels through a table, ``[256]`` or one per channel ``[3, 256]``; rounded and cut to 0..255."""
    tables = np.broadcast_to(tables.round().clip(0, 255).astype(np.uint8), (3, 256))
    # 2 ms for 16x224, against 15 for indexing with the pixels.
    channels = [
        bytearray(channel.numpy()).translate(table.tobytes())
        for channel, table in zip(video, tables, strict=True)
    ]
    return torch.stack([torch.frombuffer(c, dtype=torch.uint8) for c in channels]).view_as(video)


def _histograms(video: Tensor) -> np.ndarray:
    """How often each channel takes each level, int64 ``[3, 256]``."""
    return np.stack([torch.bincount(channel.flatten(), minlength=256).numpy() for channel in video])


def _auto_contrast(video: Tensor, _: float) -> Tensor:
    """Stretch each channel to 0..255."""
    low, high = (x.long().numpy() for x in video.flatten(1).aminmax(dim=1, keepdim=True))
    stretched = (_LEVELS - low) * 255 // np.maximum(high - low, 1)
    # A channel of one value stays as it is.
    return _look_up(video, np.where(low < high, stretched, _LEVELS))


def _equalize(video: Tensor, _: float) -> Tensor:
    """Make the levels of each channel equally frequent."""
    tables = []
    for counts in _histograms(video):
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
    return _map_colors(video, _saturation(_factor(strength)), np.zeros(3))


def _contrast(video: Tensor, strength: float) -> Tensor:
    factor = _factor(strength)
    grey = _GREY @ _mean_color(video)
    return _look_up(video, grey + factor * (_LEVELS - grey))


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
    """Sample a clip bilinearly at an affine map of its own positions; what comes from outside is grey.

    Args:
        x_from, y_from: The map's rows ``(a, b, c)``: the pixel at (x, y) comes from
            ``a * x + b * y + c``, in pixels from the middle.
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
"""The operations of `RandAugment`: from a contiguous uint8 clip and a strength in -1..1 (magnitude / 10 with
a random sign) to a clip. Those without direction ignore the sign; the first three the magnitude, too."""


# Colour ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in random order.

    All four are affine maps of a colour, so one product per pixel does them together, and colours are cut to
    their range once, at the end.

    Args:
        brightness, contrast, saturation: Factors are uniform in 1 - x..1 + x, not below 0.
        hue: Turns are uniform in -hue..hue, at most 0.5; of chroma at equal luma (YIQ), not of HSV's hexagon.

    Raises:
        ValueError: A setting is out of its range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"colour jitter needs settings of at least 0, hue at most 0.5; got {self}")

    def __call__(self, video: Tensor, generator: np.random.Generator) -> Tensor:
        """Jitter one clip."""
        brightness, contrast, saturation = (
            generator.uniform(max(0.0, 1 - spread), 1 + spread)
            for spread in (self.brightness, self.contrast, self.saturation)
        )
        hue = generator.uniform(-self.hue, self.hue)
        steps = [np.eye(3) * brightness, np.eye(3) * contrast, _saturation(saturation), _hue(hue)]
        mean = _mean_color(video)
        matrix, bias = np.eye(3), np.zeros(3)
        for index in generator.permutation(4):
            grey = _GREY @ (matrix @ mean + bias)
            matrix, bias = steps[index] @ matrix, steps[index] @ bias
            if index == 1:  # Contrast pulls towards, or pushes from, the mean grey, not black.
                bias += (1 - contrast) * grey
        return _map_colors(video, matrix, bias)


def _saturation(factor: float) -> np.ndarray:
    """Colours between grey (0), as they are (1), and beyond."""
    return factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))


def _hue(turns: float) -> np.ndarray:
    """Colours turned about the grey axis, luma unchanged."""
    angle = 2 * math.pi * turns
    turn = np.array(
        [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    )
    return np.linalg.inv(_YIQ) @ turn @ _YIQ


def _mean_color(video: Tensor) -> np.ndarray:
    """Mean of each channel over the clip, float64 ``[3]``."""
    return video.flatten(1).float().mean(1).double().numpy()


def _map_colors(video: Tensor, matrix: np.ndarray, bias: np.ndarray) -> Tensor:
    """``matrix @ color + bias`` at every pixel, cut to the range of the dtype."""
    colors = video.flatten(1)
    gain, offset = (torch.from_numpy(x).float() for x in (matrix, bias))
    mapped = torch.addmm(offset[:, None], gain, colors.float())
    if video.dtype == torch.uint8:
        mapped = mapped.round_().clamp_(0, 255)
    else:
        mapped = mapped.clamp_(0, 1)
    return mapped.to(video.dtype).view_as(video)


# Boxes -----------------------------------------------------------------------------------------------------


def multi_scale_crop(
    video: Tensor,
    size: tuple[int, int],
    generator: np.random.Generator,
    scales: Sequence[float] = TSN_SCALES,
) -> Tensor:
    """Cut one of a few boxes at one of 13 places out of a clip and resize it to ``size`` = (height, width).

    The crop of Temporal Segment Networks, in the pre-training of the paper (table 14; table 16 has scales 0.5
    and 1). The places are those of a 5x5 lattice whose coordinates are both even or both odd.

    Args:
        scales: Sides of the box, as parts of the largest box of ``size``'s aspect. Height and width are drawn
            together, from the same scale or from neighbours in size ("max distort 1").

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
    places = [(i, j) for i in range(5) for j in range(5) if i % 2 == j % 2]
    place = places[generator.integers(len(places))]
    box_height, box_width = (
        max(1, round(side * largest * ordered[i])) for side, i in zip(size, pair, strict=True)
    )
    top, left = (height - box_height) * place[0] // 4, (width - box_width) * place[1] // 4
    return resize(video[..., top : top + box_height, left : left + box_width], size)


def random_erase(
    video: Tensor,
    generator: np.random.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Replace a box, the same in all frames, with noise that differs from pixel to pixel and frame to frame.

    The release draws the noise from N(0, 1) on normalised clips. Here it is what `normalize` makes N(0, 1),
    except that pixels end at 0 and 1 (-2.1 to 2.6 standard deviations): so it works before normalisation, in
    loader workers, where clips are small and the randomness is the request's own.

    Args:
        area: Range of the box's area as a part of the frame's, uniform.
        aspect: Range of its height over its width, uniform in the logarithm. A box that sticks out is cut.

    Raises:
        ValueError: A range is empty or not positive, or ``area`` exceeds 1.
    """
    if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"need 0 < low <= high, and area at most 1; got area={area}, aspect={aspect}")
    height, width = video.shape[-2:]
    pixels = height * width * generator.uniform(*area)
    ratio = math.exp(generator.uniform(math.log(aspect[0]), math.log(aspect[1])))
    box_height = min(height, max(1, round(math.sqrt(pixels * ratio))))
    box_width = min(width, max(1, round(math.sqrt(pixels / ratio))))
    top = int(generator.integers(height - box_height, endpoint=True))
    left = int(generator.integers(width - box_width, endpoint=True))
    noise = torch.from_numpy(
        generator.standard_normal((3, video.shape[1], box_height, box_width), np.float32)
    )
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    noise = noise.mul_(std).add_(mean).clamp_(0, 1)
    if video.dtype == torch.uint8:
        noise = noise.mul_(255).round_()
    result = video.clone()
    result[..., top : top + box_height, left : left + box_width] = noise
    return result
