"""Sampling grids: how many frames of which size are cut into tokens.

A *grid* is frames x height x width in pixels; its *pool* is every token that it yields. Training draws one
legal grid a batch (paper section 3, tables 14 and 16); at test time a denser grid may feed the same budget.
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

# Far beyond any video: they stop typing errors before anything is allocated.
_Frames = Annotated[int, Meta(ge=1, le=1 << 14)]
_Pixels = Annotated[int, Meta(ge=1, le=1 << 16)]
MAX_POOL = 1 << 17
"""Tokens that the pool of one clip may have: several times those of the largest published grids. The
environment variable ``FLUXVIT_MAX_POOL`` sets another bound.
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
            ValueError: ``text`` is neither.
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
        """Tokens along (time, height, width).

        Args:
            bounded: Refuse pools beyond `MAX_POOL`. False where a grid is only considered.

        Raises:
            ValueError: A side is not a whole number of patches, or the frames of tubelets; or the pool is
                larger than `MAX_POOL` or what ``FLUXVIT_MAX_POOL`` allows.
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
        """Size of the pool; arguments and errors as for :meth:`token_shape`."""
        frames, height, width = self.token_shape(patch_size, tubelet_size, bounded=bounded)
        return frames * height * width


def max_pool() -> int:
    """Tokens that the pool of one clip may have in this process.

    Raises:
        ValueError: ``FLUXVIT_MAX_POOL`` is no positive integer.
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
    """Square grids whose pool lies within ``[min_tokens, max_tokens]``, sorted.

    ``range(4, 26, 2), range(168, 280, 28), 2048, 4096`` gives the 18 grids of the paper (tables 14 and 16);
    ``range(6, 26, 2), range(112, 364, 28), 2048, 6144`` the 41 of the authors' fine-tuning scripts.

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
    """The grid of a training step, uniform over ``grids``.

    It depends on ``(seed, step)`` alone, so every rank draws the same one and a resumed run draws on as if
    it had never stopped. (The release draws per rank from a running generator, so that ranks wait for the
    slowest and a resume changes the draws.)
    """
    # random() is the one method that Python promises to keep reproducible across versions.
    return grids[int(random.Random(f"grid {seed} {step}").random() * len(grids))]
