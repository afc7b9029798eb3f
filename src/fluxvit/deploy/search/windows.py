"""Cuts a long video into windows, which are embedded as clips, in one pass from beginning to end.

Windows overlap by half, so that an event on the border of one window is complete in another. They do not
reach across hard cuts between shots, which are detected by the colours of the frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import check_window
from fluxvit.video.transforms import resize_and_crop, to_tensor

# A cut changes more than the first share of the colours (4 x 4 x 4 levels, in each ninth of the frame), and
# leaves a correlation of less than 1 minus the second number between the shades of grey. Motion changes fewer
# colours, and a fade does not lower the correlation. (In 14 clips of streets, cartoons and experiments cuts
# change 0.40 to 0.96 of the colours, and motion at most 0.37.)
_COLOURS_CHANGE, _SHADES_CHANGE = 0.4, 0.4
_LEVELS, _PARTS = 4, 3
# Lowest rate in frames per second at which cuts are detected, even if windows have fewer frames.
_LEAST_RATE = 4.0
# Largest number of frames of a long window, because the frames are held in memory.
_MOST_FRAMES = 1024
# Lengths as shares of a window. A shot shorter than the first, such as a flash, does not end in a cut. The
# rest at the end of a shot gets a window if it is at least as long as the second.
_SHORTEST, _LEAST_REST = 0.25, 0.125


@dataclass(frozen=True)
class Window:
    """A part of a video: start and end in seconds, and its frames on the grid, uint8 ``[3, T, H, W]``."""

    start: float
    end: float
    video: Tensor


def windows(
    video: VideoInput,
    grid: SamplingGrid,
    seconds: float,
    *,
    shots: bool = True,
    stride: float | None = None,
) -> Iterator[Window]:
    """Cut a video into windows of about ``seconds``.

    Args:
        video: A video that :func:`~fluxvit.video.reader.open_video` accepts.
        grid: Sampling grid of the windows.
        seconds: Length of a window in seconds.
        shots: Whether windows end at cuts between shots.
        stride: Seconds from one window to the next, at most ``seconds``. By default it is half of them.

    Raises:
        VideoError: The video cannot be read.
        ValueError: ``seconds`` is below a hundredth of a second or above a day.
    """
    check_window(seconds)
    with open_video(video, short_side=max(grid.height, grid.width)) as reader:
        end = reader.end
        rate = max(min(_LEAST_RATE, _MOST_FRAMES / seconds), grid.frames / min(seconds, end))
        stride = stride or seconds / 2
        if stride != seconds / 2:
            # A window begins at a sampled frame, so that the stride must be a whole number of them.
            rate = max(1, np.ceil(rate * stride - 1e-9)) / stride
        times = _sampled_times(reader.times, end, rate, seconds)
        shot: list[tuple[float, np.ndarray]] = []
        former: _Look | None = None
        done = 0.0  # End of the last window of the shot; the start of the shot if it has none.
        for time, frame in zip(times.tolist(), reader.walk(times), strict=True):
            look = _Look.of(frame)
            if shot and time - shot[-1][0] > 1.5 / rate:
                # Times were left out here, because a still picture stays for long.
                yield from _last(shot, done, shot[-1][0] + 1 / rate, seconds, grid)
                shot, done, former = [], time, None
            # A cut after a short shot, such as a flash, is ignored.
            long = bool(shot) and time - shot[0][0] >= _SHORTEST * seconds
            if shots and long and former is not None and look.is_cut_from(former):
                yield from _last(shot, done, time, seconds, grid)
                shot, done = [], time
            elif shot and time - shot[0][0] >= seconds:
                start = shot[0][0]
                yield _window([image for _, image in shot], start, time, grid)
                done = time
                shot = [(at, image) for at, image in shot if at >= start + stride - 1e-9]
            former = look
            shot.append((time, frame))
        yield from _last(shot, done, end, seconds, grid)


def _sampled_times(starts: np.ndarray, end: float, rate: float, seconds: float) -> np.ndarray:
    """Times at which frames are sampled, ``rate`` per second, ``[T]``.

    A picture that stays for longer than a window is only sampled in its first window, so that a jump of the
    clock costs no more than a window.

    Args:
        starts: Start of each frame in seconds, ``[N]``, rising from 0.
        end: End of the last frame in seconds.
    """
    first, last = (np.ceil(edges * rate).astype(np.int64) for edges in (starts, np.append(starts[1:], end)))
    counts = (last - first).clip(0, int(np.ceil(seconds * rate)) + 1)
    offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return (np.repeat(first, counts) + offsets) / rate


def _last(
    shot: list[tuple[float, np.ndarray]], done: float, end: float, seconds: float, grid: SamplingGrid
) -> Iterator[Window]:
    """A window for the rest at the end of a shot, if earlier windows do not reach it."""
    whole = not shot or done <= shot[0][0]  # The shot has no window so far.
    if shot and (whole or end - done >= _LEAST_REST * seconds):
        yield _window([image for _, image in shot], shot[0][0], end, grid)


def _window(frames: list[np.ndarray], start: float, end: float, grid: SamplingGrid) -> Window:
    places = ((np.arange(grid.frames) + 0.5) * len(frames) / grid.frames).astype(int)
    clip = to_tensor(np.stack([frames[place] for place in places]))
    return Window(start, end, resize_and_crop(clip, (grid.height, grid.width)))


@dataclass(frozen=True)
class _Look:
    """The features that detect cuts: shares of 64 colours in each ninth of a frame, and shades of grey."""

    colours: np.ndarray
    shades: np.ndarray

    @classmethod
    def of(cls, frame: np.ndarray) -> _Look:
        small = frame[::2, ::2]
        levels = (small // (256 // _LEVELS)).astype(np.int64)
        numbers = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
        rows = [
            np.bincount(part.ravel(), minlength=_LEVELS**3) / max(1, part.size)
            for band in np.array_split(numbers, _PARTS)
            for part in np.array_split(band, _PARTS, axis=1)
        ]
        grey = small.mean(-1)
        return cls(np.stack(rows), grey - grey.mean())

    def is_cut_from(self, former: _Look) -> bool:
        changed = np.abs(self.colours - former.colours).sum(1).mean() / 2
        sizes = float(np.linalg.norm(self.shades) * np.linalg.norm(former.shades))
        # A picture with a single shade resembles no other.
        alike = float((self.shades * former.shades).sum()) / sizes if sizes else 0.0
        return changed > _COLOURS_CHANGE and 1 - alike > _SHADES_CHANGE
