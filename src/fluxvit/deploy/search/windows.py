"""A long video cut into windows, as clips to embed, while it is read once from its beginning to its end.

Windows overlap by half, so that what happens on the border of one is whole in another. They do not reach
across hard cuts between shots, which are told by their colours: the frames are there anyway.
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

# A cut changes this part of the colours (of 4 x 4 x 4) in each ninth of the picture, and leaves no more than
# 0.6 of correlation between its shades: motion does less of the first, a fade nothing of the second. (In 14
# clips of streets, cartoons and experiments cuts change 0.40 to 0.96, motion 0.37 at most.)
_COLOURS_CHANGE, _SHADES_CHANGE = 0.4, 0.4
_LEVELS, _PARTS = 4, 3
# Cuts are sought at this rate at least, even if windows take fewer frames.
_LEAST_RATE = 4.0
# But long windows have no more frames than this, as they are held in memory.
_MOST_FRAMES = 1024
# Parts of a window: shots that are shorter, such as flashes, do not end in a cut; and what is left at the end
# of a shot gets a window if it is longer.
_SHORTEST, _LEAST_REST = 0.25, 0.125


@dataclass(frozen=True)
class Window:
    """A part of a video: seconds, and its frames on the grid, uint8 ``[3, T, H, W]``."""

    start: float
    end: float
    video: Tensor


def windows(video: VideoInput, grid: SamplingGrid, seconds: float, *, shots: bool = True) -> Iterator[Window]:
    """Cut a video into windows of about ``seconds``.

    Args:
        video: Whatever :func:`~fluxvit.video.reader.open_video` takes.
        grid: Sampling grid of the clips.
        shots: Windows end where shots do.

    Raises:
        VideoError: It cannot be read.
        ValueError: ``seconds`` is not from a hundredth to a day.
    """
    check_window(seconds)
    with open_video(video, short_side=max(grid.height, grid.width)) as reader:
        end = reader.end
        rate = max(min(_LEAST_RATE, _MOST_FRAMES / seconds), grid.frames / min(seconds, end))
        times = _sampled_times(reader.times, end, rate, seconds)
        shot: list[tuple[float, np.ndarray]] = []
        former: _Look | None = None
        done = 0.0  # Up to where the shot's windows reach; its start while it has none.
        for time, frame in zip(times.tolist(), reader.walk(times), strict=True):
            look = _Look.of(frame)
            if shot and time - shot[-1][0] > 1.5 / rate:
                # The rest of a still picture was left out.
                yield from _last(shot, done, shot[-1][0] + 1 / rate, seconds, grid)
                shot, done, former = [], time, None
            # After a short shot, such as a flash, a cut is none.
            long = bool(shot) and time - shot[0][0] >= _SHORTEST * seconds
            if shots and long and former is not None and look.is_cut_from(former):
                yield from _last(shot, done, time, seconds, grid)
                shot, done = [], time
            elif shot and time - shot[0][0] >= seconds:
                # Later windows begin half a window further on.
                start = shot[0][0]
                yield _window([image for _, image in shot], start, time, grid)
                done = time
                shot = [(at, image) for at, image in shot if at >= start + seconds / 2]
            former = look
            shot.append((time, frame))
        yield from _last(shot, done, end, seconds, grid)


def _sampled_times(starts: np.ndarray, end: float, rate: float, seconds: float) -> np.ndarray:
    """Times at ``rate`` a second, ``[T]``; of a picture that stays for longer than a window, only those of
    its first window. A clock that leaps thus costs no more than a window.

    Args:
        starts: Seconds at which frames start, ``[N]``, rising from 0.
        end: Seconds at which the last frame ends.
    """
    first, last = (np.ceil(edges * rate).astype(np.int64) for edges in (starts, np.append(starts[1:], end)))
    counts = (last - first).clip(0, int(np.ceil(seconds * rate)) + 1)
    offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return (np.repeat(first, counts) + offsets) / rate


def _last(
    shot: list[tuple[float, np.ndarray]], done: float, end: float, seconds: float, grid: SamplingGrid
) -> Iterator[Window]:
    """What is left at the end of a shot, if windows do not reach there yet."""
    whole = not shot or done <= shot[0][0]  # The shot has no window so far.
    if shot and (whole or end - done >= _LEAST_REST * seconds):
        yield _window([image for _, image in shot], shot[0][0], end, grid)


def _window(frames: list[np.ndarray], start: float, end: float, grid: SamplingGrid) -> Window:
    places = ((np.arange(grid.frames) + 0.5) * len(frames) / grid.frames).astype(int)
    clip = to_tensor(np.stack([frames[place] for place in places]))
    return Window(start, end, resize_and_crop(clip, (grid.height, grid.width)))


@dataclass(frozen=True)
class _Look:
    """What tells a cut: the part of each of 64 colours in each ninth of a frame, and its shades of grey."""

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
        # A picture of one shade is like no other.
        alike = float((self.shades * former.shades).sum()) / sizes if sizes else 0.0
        return changed > _COLOURS_CHANGE and 1 - alike > _SHADES_CHANGE
