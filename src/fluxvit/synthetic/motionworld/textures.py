"""Textures: crops of a few public domain photographs, and procedural ones.

A texture is a function of its :class:`TextureRef` alone. The splits share none: each photograph belongs to
one split, and the seeds of each split have a residue of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

from fluxvit.synthetic.builder import SPLITS
from fluxvit.synthetic.motionworld.raster import bilinear

ASSETS = Path(__file__).parent.parent / "assets"

SIDE = 160
"""Side of every texture in pixels."""

PHOTOS = {
    "train": ("brick", "coffee", "grass", "retina", "rocket"),
    "val": ("gravel", "hubble"),
    "test": ("cat", "cell", "clock"),
}
"""Photographs of each split, which are files of `ASSETS`."""

_ADJECTIVES = {
    "brick": "brick-patterned",
    "coffee": "photo-printed",
    "grass": "grassy",
    "retina": "veined",
    "rocket": "photo-printed",
    "gravel": "pebbly",
    "hubble": "starry",
    "cat": "furry",
    "cell": "misty",
    "clock": "photo-printed",
    "clouds": "cloudy",
    "marble": "marbled",
    "wood": "wooden",
    "cells": "scaly",
    "stripes": "striped",
    "checks": "chequered",
}

PHOTO_SHARE = 0.35
"""Probability that a texture is a photograph."""


@dataclass(frozen=True)
class TextureRef:
    """Names one texture.

    Attributes:
        source: Name of the photograph or of the procedure.
        seed: Seed of the crop and the tint, or of the procedure's parameters.
    """

    source: str
    seed: int

    @property
    def adjective(self) -> str:
        """The word that captions use for it."""
        return _ADJECTIVES[self.source]


def draw_texture(rng: np.random.Generator, split: str) -> TextureRef:
    """Draw a texture of a split at random."""
    seed = int(rng.integers(2**48)) * len(SPLITS) + SPLITS.index(split)
    sources = PHOTOS[split] if rng.random() < PHOTO_SHARE else tuple(_PROCEDURES)
    return TextureRef(str(rng.choice(sources)), seed)


def texture(ref: TextureRef) -> np.ndarray:
    """Pixels of a texture, float32 ``[SIDE, SIDE, 3]`` in 0..1."""
    rng = np.random.default_rng(ref.seed)
    if ref.source not in _PROCEDURES:
        return _photo_crop(rng, _photo(ref.source))
    pattern = _PROCEDURES[ref.source](rng)
    grain = 0.12 * _noise(rng, slope=0.6)
    return _colour(rng, np.clip(pattern + grain, 0, 1))


def tone(image: np.ndarray, mean: float, spread: float, saturation: float) -> np.ndarray:
    """Give an image this mean and standard deviation of brightness, and this share of its colourfulness.

    Takes and returns float32 ``[H, W, 3]`` in 0..1.
    """
    brightness = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    colour = (image - brightness) * np.float32(saturation)
    gain = spread / max(float(brightness.std()), 0.02)
    grey = (brightness - brightness.mean()) * np.float32(gain) + np.float32(mean)
    return np.clip(grey + colour, 0, 1)


@cache
def _photo(name: str) -> np.ndarray:
    with av.open(str(ASSETS / f"{name}.jpg")) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.float32) / 255
    image.flags.writeable = False  # one array is shared by all callers
    return image


def _photo_crop(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    photo = np.rot90(photo, int(rng.integers(4)))
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    side = rng.uniform(0.4, 1.0) * (len(photo) - 1)
    top, left = rng.uniform(0, len(photo) - 1 - side, 2)
    ticks = np.linspace(0, side, SIDE, dtype=np.float32)
    y, x = np.meshgrid(top + ticks, left + ticks, indexing="ij")
    crop = bilinear(np.ascontiguousarray(photo), y, x)
    if rng.random() < 0.5:
        crop = crop[..., rng.permutation(3)]
    tint = rng.uniform(0.75, 1.25, 3).astype(np.float32)
    return np.clip(crop * tint, 0, 1)


def _colour(rng: np.random.Generator, pattern: np.ndarray) -> np.ndarray:
    """Map a pattern in 0..1 to a ramp of four colours around one or two hues."""
    hue = rng.random() + np.array([0, 0.04, 0.1, 0.14]) * rng.uniform(-1, 1) * (
        4 if rng.random() < 0.3 else 1
    )
    saturation = np.clip(rng.uniform(0.15, 0.85) + rng.uniform(-0.2, 0.2, 4), 0, 1)
    value = np.linspace(rng.uniform(0.05, 0.4), rng.uniform(0.75, 1.0), 4)
    stops = np.linspace(0, 1, 4)
    # Each channel is a cosine of the hue, a third of a turn apart.
    channels = [
        value * (1 - saturation * (0.5 - 0.5 * np.cos(2 * np.pi * (hue - third))))
        for third in (0, 1 / 3, 2 / 3)
    ]
    return np.stack([np.interp(pattern, stops, channel) for channel in channels], -1).astype(np.float32)


@cache
def _frequency() -> np.ndarray:
    """Spatial frequency of each bin of a real Fourier transform, in cycles per texture."""
    radius = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) * SIDE
    radius[0, 0] = np.inf
    return radius


def _noise(rng: np.random.Generator, slope: float = 1.6, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Noise of all octaves, amplitude falling as frequency to the ``-slope``; mean 0, deviation 0.5."""
    phases = np.exp(2j * np.pi * rng.random((SIDE, SIDE // 2 + 1)))
    field = np.fft.irfft2(phases / _frequency() ** slope, (SIDE, SIDE))
    if stretch != (1, 1):
        rows, columns = (np.arange(SIDE) * factor for factor in stretch)
        field = field[rows.astype(int) % SIDE][:, columns.astype(int) % SIDE]
    return field / field.std() * 0.5


def _axes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in 0..1 turned by a random angle, each ``[SIDE, SIDE]``."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _wave(turns: np.ndarray, sharpness: float) -> np.ndarray:
    """A wave in 0..1, between a sine (sharpness 1) and a square wave with soft flanks."""
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(2 * np.pi * turns)) / np.tanh(sharpness)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.5 * _noise(rng, slope=rng.uniform(1.4, 2.0))


def _marble(rng: np.random.Generator) -> np.ndarray:
    along, _ = _axes(rng)
    vein = np.sin(np.pi * (rng.uniform(3, 7) * along + rng.uniform(0.5, 1.0) * _noise(rng, slope=1.8)))
    return np.abs(vein) ** rng.uniform(0.5, 1.0)


def _wood(rng: np.random.Generator) -> np.ndarray:
    along, across = _axes(rng)
    radius = np.hypot(0.15 * (along + rng.uniform(-1, 1)), across + rng.uniform(0.1, 0.6))
    rings = (rng.uniform(7, 14) * radius + 0.25 * _noise(rng, slope=1.9)) % 1
    return 0.75 * rings + 0.25 * (0.5 + 0.5 * _noise(rng, slope=1.0, stretch=(1, 0.15)))


def _cells(rng: np.random.Generator) -> np.ndarray:
    coarse = SIDE // 2
    points = rng.random((rng.integers(14, 40), 2)).astype(np.float32)
    y, x = np.mgrid[:coarse, :coarse].astype(np.float32)[..., None] / coarse
    nearest = np.partition(np.hypot(y - points[:, 0], x - points[:, 1]), 1, axis=-1)[..., :2]
    border = (nearest[..., 1] - nearest[..., 0]) * np.sqrt(len(points))
    ticks = np.linspace(0, coarse - 1, SIDE)
    fine_y, fine_x = np.meshgrid(ticks, ticks, indexing="ij")
    return np.clip(bilinear(border[..., None], fine_y, fine_x)[..., 0] * 1.6, 0, 1)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    along, _ = _axes(rng)
    turns = rng.uniform(4, 9) * along + rng.uniform(0.05, 0.3) * _noise(rng, slope=2.0)
    return _wave(turns, rng.uniform(1, 4))


def _checks(rng: np.random.Generator) -> np.ndarray:
    along, across = _axes(rng)
    warp = rng.uniform(0.0, 0.2)
    count, sharpness = rng.uniform(3, 6), rng.uniform(2, 5)
    waves = [_wave(count * axis + warp * _noise(rng, slope=2.0), sharpness) - 0.5 for axis in (along, across)]
    return 0.5 + 2 * waves[0] * waves[1]


_PROCEDURES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "clouds": _clouds,
    "marble": _marble,
    "wood": _wood,
    "cells": _cells,
    "stripes": _stripes,
    "checks": _checks,
}
"""Procedures that draw a pattern, float ``[SIDE, SIDE]``, about 0..1."""
