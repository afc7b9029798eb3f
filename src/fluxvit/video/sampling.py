"""Chooses the times at which a video is sampled, in seconds; readers turn them into frames.

With a generator the choice is random, for training. Without one it is fixed, and ``view`` chooses one of
``views`` evenly spread samples, whose scores are averaged at test time. ``views=1`` gives the central one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluxvit.utils.schema import Frames, Rate, check

SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 0.01, 86_400.0


@dataclass(frozen=True)
class ClipSampling:
    """How the frames of a clip are spread over a video.

    Args:
        kind: ``sparse`` takes one frame from each of several equal segments of the video. ``dense`` takes
            every ``stride``-th frame of a window, whose position is random in training and the middle in
            tests; the last frame of a video shorter than the window is repeated.
        stride: Frames from one sampled frame to the next in dense sampling.
        fps: Frame rate at which the stride counts; by default the rate of each video. With one rate for all
            videos a stride is a time: 2 at 10 frames per second is 0.2 seconds.

    Raises:
        ValueError: A value is unknown or out of its range.
    """

    kind: Literal["sparse", "dense"] = "sparse"
    stride: Frames = 4
    fps: Rate | None = None

    def __post_init__(self) -> None:
        check(self)

    def times(
        self,
        start: float,
        end: float,
        frames: int,
        fps: float,
        *,
        generator: np.random.Generator | None = None,
        view: int = 0,
        views: int = 1,
    ) -> np.ndarray:
        """Times of a clip.

        Sparse times are those of :func:`segment_times`. The window of dense sampling lasts
        ``frames * stride / fps`` seconds. With a generator its position is random. Otherwise the windows of
        all views are spread evenly from the first to the last possible position; a single view is in the
        middle. A video shorter than the window is played from its start, and its last frame is repeated.

        Args:
            fps: Frame rate of the video.

        Returns:
            float64 ``[frames]`` seconds, never falling, within ``[start, end)``.

        Raises:
            ValueError: The span is empty, or a number is out of range.
        """
        if self.kind == "sparse":
            return segment_times(start, end, frames, generator=generator, view=view, views=views)
        _check(start, end, frames, generator, view, views)
        rate = self.fps or fps
        room = max(0.0, end - start - frames * self.stride / rate)
        if generator is not None:
            offset = generator.uniform(0, room)
        else:
            offset = room / 2 if views == 1 else room * view / (views - 1)
        # Times lie in the middle of frames; at a border, rounding would choose the frame.
        times = start + offset + (np.arange(frames) * self.stride + 0.5) / rate
        return _within(times, start, end)

    def window(self, frames: int, fps: float = 25.0) -> float | None:
        """Seconds that a clip of dense sampling spans; None if it spans the whole video.

        Args:
            fps: Frame rate of the video.
        """
        return None if self.kind == "sparse" else frames * self.stride / (self.fps or fps)

    @property
    def facts(self) -> dict[str, str]:
        """The setting to store with results; empty for sparse sampling, as in older results."""
        return {} if self.kind == "sparse" else {"sampling": str(self)}

    def __str__(self) -> str:
        if self.kind == "sparse":
            return self.kind
        rate = "the video's own rate" if self.fps is None else f"{self.fps:g} frames a second"
        return f"{self.kind}, every {self.stride}. frame at {rate}"


SPARSE = ClipSampling()


def segment_times(
    start: float,
    end: float,
    frames: int,
    *,
    generator: np.random.Generator | None = None,
    view: int = 0,
    views: int = 1,
) -> np.ndarray:
    """One time from each of ``frames`` equal segments of ``[start, end)``.

    With a generator it is random within each segment. Otherwise it lies ``(view + 1) / (views + 1)`` of the
    way through the segment, which is the middle for one view.

    Returns:
        float64 ``[frames]`` seconds, rising, within ``[start, end)``.

    Raises:
        ValueError: The span is empty, or ``frames``, ``view`` or ``views`` is out of range.
    """
    _check(start, end, frames, generator, view, views)
    part = (view + 1) / (views + 1) if generator is None else generator.random(frames)
    times = start + (np.arange(frames) + part) * ((end - start) / frames)
    return _within(times, start, end)


def check_window(seconds: float, name: str = "window") -> None:
    """Raise a ValueError unless a window lasts from a hundredth of a second to a day."""
    if not SHORTEST_WINDOW_S <= seconds <= LONGEST_WINDOW_S:
        raise ValueError(
            f"{name} {seconds:g}: it must be from {SHORTEST_WINDOW_S:g} to {LONGEST_WINDOW_S:g} seconds"
        )


def _check(
    start: float, end: float, frames: int, generator: np.random.Generator | None, view: int, views: int
) -> None:
    if not -np.inf < start < end < np.inf:
        raise ValueError(f"a span of video must end after it starts, got {start} to {end} seconds")
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if not 0 <= view < views:
        raise ValueError(f"view must be within 0..views-1, got view={view}, views={views}")
    if generator is not None and views != 1:
        raise ValueError("a random draw has no views; give either a generator or view and views")


def _within(times: np.ndarray, start: float, end: float) -> np.ndarray:
    """Clip times to the half-open span, whose end rounding can reach."""
    return np.clip(times, start, np.nextafter(end, start))
