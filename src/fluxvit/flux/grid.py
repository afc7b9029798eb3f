"""Sampling grids: how many frames are sampled, and at which size.

A *grid* is frames x height x width in pixels; its *pool* is the set of all tokens that it is cut into. Each
training batch draws one legal grid (paper section 3, tables 14 and 16). At test time a denser grid may be
used with the same budget.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from fluxvit.utils.schema import check, located, shown

# These limits are far beyond any video. They catch typing errors before anything is allocated.
_Frames = Annotated[int, Meta(ge=1, le=1 << 14)]
_Pixels = Annotated[int, Meta(ge=1, le=1 << 16)]
MAX_POOL = 1 << 17
"""Largest number of tokens in the pool of a clip, several times that of the largest published grids. The
environment variable ``FLUXVIT_MAX_POOL`` sets another limit.
"""
_GRID = re.compile(r"(\d{1,12})x(\d{1,12})(?:x(\d{1,12}))?", re.ASCII)


@dataclass(frozen=True, order=True)
class SamplingGrid:
    """``frames`` of ``height`` x ``width`` pixels."""

    frames: _Frames
    height: _Pixels
    width: _Pixels

    def __post_init__(self) -> None:
        with located("grid"):
            check(self)

    @classmethod
    def parse(cls, text: str) -> SamplingGrid:
        """Read ``"16x224"`` (square) or ``"16x168x224"`` (frames x height x width).

        Raises:
            ValueError: ``text`` has another form.
        """
        match = _GRID.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(
                f"grid {shown(text)} is neither FRAMESxSIZE nor FRAMESxHEIGHTxWIDTH, such as 16x224"
            )
        frames, height, width = match.groups()
        return cls(int(frames), int(height), int(width or height))

    def __str__(self) -> str:
        if self.height == self.width:
            return f"{self.frames}x{self.height}"
        return f"{self.frames}x{self.height}x{self.width}"

    def token_shape(
        self, patch_size: int = 14, tubelet_size: int = 1, *, bounded: bool = True
    ) -> tuple[int, int, int]:
        """Number of tokens along (time, height, width).

        Args:
            bounded: Refuse pools beyond the limit. False is for grids that are only candidates.

        Raises:
            ValueError: Height or width is not a whole number of patches, the frames are not a whole number of
                tubelets, or the pool is larger than :func:`max_pool`.
        """
        shape = []
        for name, size, unit in (
            ("frames", self.frames, tubelet_size),
            ("height", self.height, patch_size),
            ("width", self.width, patch_size),
        ):
            if size % unit:
                raise ValueError(
                    f"grid {self}: {name} {size} is not a multiple of {unit}; "
                    f"use {size // unit * unit or unit} or {(size // unit + 1) * unit}"
                )
            shape.append(size // unit)
        pool = math.prod(shape)
        if bounded and pool > (most := max_pool()):
            raise ValueError(
                f"grid {self}: its pool has {pool} tokens, more than the limit of {most}; use fewer frames "
                f"or a smaller size, or set FLUXVIT_MAX_POOL={pool}"
            )
        return shape[0], shape[1], shape[2]

    def tokens(self, patch_size: int = 14, tubelet_size: int = 1, *, bounded: bool = True) -> int:
        """Number of tokens in the pool; arguments and errors are those of :meth:`token_shape`."""
        frames, height, width = self.token_shape(patch_size, tubelet_size, bounded=bounded)
        return frames * height * width


def with_aspect(grid: SamplingGrid, aspect: float, patch_size: int, least: int = 1) -> SamplingGrid:
    """The shape of a grid's frames that is nearest to that of a video, so that little is cropped.

    Args:
        grid: The grid. The result has as many frames, at most as many patches, and at least three quarters.
        aspect: Width of the video over its height.
        patch_size: Side of a patch in pixels.
        least: Patches that each frame must have at least, no more than the grid's.
    """
    most = grid.height // patch_size * (grid.width // patch_size)
    least = max(least, math.ceil(0.75 * most))
    shapes = [(h, w) for h in range(1, most + 1) for w in range(1, most // h + 1) if h * w >= least]
    height, width = min(
        shapes, key=lambda shape: (abs(math.log(shape[1] / shape[0] / aspect)), -math.prod(shape))
    )
    return SamplingGrid(grid.frames, height * patch_size, width * patch_size)


def max_pool() -> int:
    """Largest number of tokens in the pool of a clip in this process.

    Raises:
        ValueError: ``FLUXVIT_MAX_POOL`` is not a positive integer.
    """
    text = os.environ.get("FLUXVIT_MAX_POOL")
    if text is None:
        return MAX_POOL
    if not re.fullmatch(r"0*[1-9]\d{0,11}", text, re.ASCII):
        raise ValueError(f"FLUXVIT_MAX_POOL={text}: a limit is a positive integer of up to 12 digits")
    return int(text)


def legal_grids(
    frames: Iterable[int],
    sizes: Iterable[int],
    min_tokens: int,
    max_tokens: int,
    *,
    patch_size: int = 14,
    tubelet_size: int = 1,
) -> tuple[SamplingGrid, ...]:
    """Square grids whose pool has ``min_tokens`` to ``max_tokens`` tokens, sorted.

    ``range(4, 26, 2), range(168, 280, 28), 2048, 4096`` gives the 18 grids of the paper (tables 14 and 16),
    and ``range(6, 26, 2), range(112, 364, 28), 2048, 6144`` the 41 of the authors' fine-tuning scripts.

    Raises:
        ValueError: No grid is legal.
    """
    frames, sizes = list(frames), list(sizes)
    grids = tuple(
        sorted(
            grid
            for grid in (SamplingGrid(t, s, s) for t in frames for s in sizes)
            if min_tokens <= grid.tokens(patch_size, tubelet_size, bounded=False) <= max_tokens
        )
    )
    if not grids:
        raise ValueError(
            f"no grid of frames {frames} and sizes {sizes} has {min_tokens} to {max_tokens} tokens "
            f"(patch {patch_size}, tubelet {tubelet_size}); widen the ranges or the token limits"
        )
    return grids


def draw_grid(grids: Sequence[SamplingGrid], seed: int, step: int) -> SamplingGrid:
    """The grid of a training step, drawn uniformly from ``grids``.

    It depends only on ``seed`` and ``step``, so every rank draws the same grid, and a resumed run draws the
    same grids as an uninterrupted one. (In the authors' code each rank draws from its own running generator,
    so that ranks wait for the slowest one, and resuming changes the draws.)
    """
    # random() is the only method that Python promises to keep reproducible across versions.
    return grids[int(random.Random(f"grid {seed} {step}").random() * len(grids))]
