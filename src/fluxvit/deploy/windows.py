"""A long video cut into windows, as clips to embed, while it is read once from its beginning to its end.

Windows overlap by half, so that what happens on the border of one is whole in another. They do not reach
across hard cuts between shots, which are told by their colours: the frames are there anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import resize_and_crop, to_tensor

# Part of the pixels that change their colour, of 4 x 4 x 4, in a cut; motion changes fewer.
_CUT = 0.5
_LEVELS = 4
# Cuts are sought at this rate at least, even if windows take fewer frames.
_LEAST_RATE = 4.0
# Shorter parts of a window are left to the one before, and shots of this length are no windows of their own.
_SHORTEST = 0.25


@dataclass(frozen=True)
class Window:
    """A part of a video: seconds, and its frames on the grid, uint8 ``[3, T, H, W]``."""

    start: float
    end: float
    video: Tensor


def windows(path: str | Path, grid: SamplingGrid, seconds: float, *, shots: bool = True) -> Iterator[Window]:
    """Cut a video into windows of about ``seconds``.

    Args:
        grid: Of the clips.
        shots: Windows end where shots do.

    Raises:
        VideoError: It cannot be read.
    """
    with open_video(path, short_side=max(grid.height, grid.width)) as reader:
        end = reader.end
        rate = max(_LEAST_RATE, grid.frames / min(seconds, end))
        times = np.arange(max(1, int(np.ceil(end * rate)))) / rate
        shot: list[tuple[float, np.ndarray]] = []
        former: np.ndarray | None = None
        done = 0.0  # Up to where the shot's windows reach; its start while it has none.
        for time, frame in zip(times.tolist(), reader.walk(times), strict=True):
            colours = _colours(frame)
            # After a short shot, such as a flash, a cut is none.
            long = bool(shot) and time - shot[0][0] >= _SHORTEST * seconds
            if shots and long and former is not None and _differ(colours, former) > _CUT:
                yield from _last(shot, done, time, seconds, grid)
                shot, done = [], time
            elif shot and time - shot[0][0] >= seconds:
                # Later windows begin half a window further on.
                start = shot[0][0]
                yield _window([image for _, image in shot], start, time, grid)
                done = time
                shot = [(at, image) for at, image in shot if at >= start + seconds / 2]
            former = colours
            shot.append((time, frame))
        yield from _last(shot, done, end, seconds, grid)


def _last(
    shot: list[tuple[float, np.ndarray]], done: float, end: float, seconds: float, grid: SamplingGrid
) -> Iterator[Window]:
    """What is left at the end of a shot, if windows do not reach there yet."""
    whole = not shot or done <= shot[0][0]  # The shot has no window so far.
    if shot and (whole or end - done >= _SHORTEST * seconds):
        yield _window([image for _, image in shot], shot[0][0], end, grid)


def _window(frames: list[np.ndarray], start: float, end: float, grid: SamplingGrid) -> Window:
    places = ((np.arange(grid.frames) + 0.5) * len(frames) / grid.frames).astype(int)
    clip = to_tensor(np.stack([frames[place] for place in places]))
    return Window(start, end, resize_and_crop(clip, (grid.height, grid.width)))


def _colours(frame: np.ndarray) -> np.ndarray:
    """Part of a frame's pixels in each of 64 colours."""
    levels = (frame[::2, ::2] // (256 // _LEVELS)).astype(np.int64)
    numbers = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    counts = np.bincount(numbers.ravel(), minlength=_LEVELS**3)
    return counts / counts.sum()


def _differ(one: np.ndarray, other: np.ndarray) -> float:
    """Part of the pixels that would have to change their colour: half the L1 distance."""
    return float(np.abs(one - other).sum() / 2)
