"""Decodes the videos of a bulk job, part by part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fluxvit.deploy.bulk.inputs import Item, open_item
from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Plan
from fluxvit.utils.terminal import printable
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.transforms import read_clips


class Part(NamedTuple):
    """Part ``number`` of the videos of a job."""

    number: int
    items: Sequence[Item]


class Clip(NamedTuple):
    """A decoded video: where it starts, its seconds, its plan, and the frames of N views of it, uint8
    ``[N, T, height, width, 3]``.
    """

    path: str
    start: float
    seconds: float
    plan: Plan
    frames: np.ndarray


class Decoded(NamedTuple):
    """A part after decoding: its clips, (path, reason) of those that cannot be read, and the seconds that it
    took.
    """

    number: int
    clips: list[Clip]
    damaged: list[tuple[str, str]]
    busy_s: float


class Sampler(NamedTuple):
    """Chooses the frames of a video.

    Args:
        sampling: How the frames of a clip are spread over a video.
        plans: The plan; with a rate, the plans for 1, 2 and more tokens, up to the most of a clip.
        rate: Tokens for each second of video. By default every video has one clip of one plan.
    """

    sampling: ClipSampling
    plans: tuple[Plan, ...]
    rate: Budget | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan of all videos; None if each has its own."""
        return None if self.rate else self.plans[0]

    def read(self, item: Item) -> Clip:
        """The clip of a video.

        Raises:
            VideoError: The video cannot be read, or is too short for the rate.
        """
        with open_item(item.path) as reader:
            start, end = item.span(reader.end)
            views, plan = 1, self.plans[0]
            if self.rate is not None:
                try:
                    views, tokens = self.rate.spread(end - start, len(self.plans))
                except ValueError as error:
                    raise VideoError.of(item.path, str(error)) from None
                plan = self.plans[tokens - 1]
            grid, fps = plan.grid, reader.fps
            times = [
                self.sampling.times(start, end, grid.frames, fps, view=view, views=views)
                for view in range(views)
            ]
            frames = read_clips(reader, [(moments, (grid.height, grid.width)) for moments in times])
        return Clip(item.path, start, end - start, plan, np.stack(frames))


def decode(part: Part, sampler: Sampler) -> Decoded:
    """Read the clips of a part."""
    started = time.perf_counter()
    clips, damaged = [], []
    for item in part.items:
        try:
            clips.append(sampler.read(item))
        except VideoError as error:
            reason = str(error).removeprefix(f"{printable(item.path)}: ").removeprefix("<file>: ")
            damaged.append((item.path, reason))
    return Decoded(part.number, clips, damaged, time.perf_counter() - started)
