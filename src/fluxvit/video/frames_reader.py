"""Frames at a fixed rate as a video: the base class for images, and the reader of frames in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path

import av
import numpy as np

from fluxvit.video.base import VideoInfo, VideoReader
from fluxvit.video.rgb import RGBConverter

DEFAULT_FPS = 25.0
"""Frames per second of images and arrays, which do not know their own."""

# One image a day, and the fastest rate at which rounded times still differ between frames.
_SLOWEST, _FASTEST = 1 / 86_400, 100_000.0


def checked_fps(fps: float, name: str = "fps") -> float:
    """A rate in frames per second.

    Raises:
        ValueError: It is not a number, or not between one frame a day and 100 000 a second.
    """
    # Rates may be fractions, so the comparison is with a slack.
    if not isinstance(fps, Real) or not _SLOWEST * 0.999 <= fps <= _FASTEST:
        raise ValueError(f"{name} must be a number of frames per second, above 0 and up to 100000, got {fps}")
    return float(fps)


class FixedRateReader(VideoReader):
    """A reader of ``count`` frames of (height, width), ``fps`` a second.

    Raises:
        ValueError: ``fps`` is out of range.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        fps: float,
        size: tuple[int, int],
        *,
        codec: str,
        rotation: int = 0,
    ) -> None:
        fps = checked_fps(fps)
        self._times, self._end = np.arange(count) / fps, count / fps
        self.info = VideoInfo(
            path=path,
            width=size[1],
            height=size[0],
            frames=count,
            fps=fps,
            duration=self._end,
            rotation=rotation,
            codec=codec,
        )

    @property
    def times(self) -> np.ndarray:
        return self._times

    @property
    def end(self) -> float:
        return self._end

    def close(self) -> None:
        """Nothing stays open between reads."""


class ArrayReader(FixedRateReader):
    """Reads frames that are in memory already.

    Args:
        frames: uint8 RGB, each ``[H, W, 3]``, all of one size; see `fluxvit.video.inputs.as_frames`.
        fps: Frames per second.
        short_side: See `fluxvit.video.reader.open_video`.

    Raises:
        ValueError: ``fps`` is out of range.
    """

    def __init__(
        self,
        frames: np.ndarray | Sequence[np.ndarray],
        *,
        fps: float = DEFAULT_FPS,
        short_side: int | None = None,
    ) -> None:
        height, width = frames[0].shape[:2]
        size = height, width
        super().__init__(Path("<frames>"), len(frames), fps, size, codec="rawvideo")
        self._frames, self._shrink = frames, Shrinker(size, short_side)

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield self._shrink(self._frames[index])


class Shrinker:
    """Shrinks images of (height, width) to ``short_side``, if that is smaller than their shorter side."""

    def __init__(self, size: tuple[int, int], short_side: int | None) -> None:
        self._short_side = short_side if short_side is not None and short_side < min(size) else None
        self._convert: RGBConverter | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        # Tensors are made from the image later, and PyTorch warns about memory that is read-only.
        image = np.require(image, requirements=["C", "W"])
        if self._short_side is None:
            return image
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._convert = self._convert or RGBConverter(frame, self._short_side)
        return self._convert(frame)
