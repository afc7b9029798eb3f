"""The base class of video readers, which reads frames by time, with the facts about a file and its errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluxvit.utils.terminal import printable
from fluxvit.video.limits import VideoLimits
from fluxvit.video.motion import BlockMotion

# Rounding may put a time just before a frame's start (3 * 0.04 < 0.12). Video clocks do not tick faster.
CLOCK_SLACK = 1e-6

_SPACES = "\n\r\t"


class VideoError(ValueError):
    """A video that cannot be read. The message is one line, ``PATH: reason``."""

    @classmethod
    def of(cls, path: str | Path, reason: str) -> VideoError:
        """The error for ``path``; ``reason`` says what is wrong and, if there is one, the cure."""
        return cls(f"{printable(path)}: {' '.join(printable(reason, keep=_SPACES).split())}")


@dataclass(frozen=True)
class VideoInfo:
    """The claims of a file's header. Headers can be wrong; ``VideoReader.times`` cannot.

    Attributes:
        path: The file, or the folder of images.
        width: Displayed width, after rotation and with pixels stretched to squares.
        height: Displayed height, after rotation.
        frames: Number of frames, None if the header does not give it.
        fps: Average frames per second, None if unknown.
        duration: Seconds, None if the header does not give them.
        rotation: Clockwise degrees (0, 90, 180, 270) by which stored frames are turned for display.
        codec: Name of the codec, such as ``h264``.
        pixel_aspect: Width of a stored pixel over its height; 1 for square pixels.
    """

    path: Path
    width: int
    height: int
    frames: int | None
    fps: float | None
    duration: float | None
    rotation: int
    codec: str
    pixel_aspect: float = 1.0


@contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Turn any error of a decoder into a `VideoError` for ``path``; no list of those errors is complete."""
    try:
        yield
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError.of(path, "decoding it needs more memory than there is") from error
    except Exception as error:
        raise VideoError.of(path, f"cannot be decoded ({type(error).__name__}: {error})") from error


class DamageFound(Exception):
    """Random access met damage. The frames must be read again, in stored order from the beginning."""


class VideoReader(ABC):
    """An open video that is read by time. Subclasses decode frames by number.

    A reader must not be shared between threads; open one for each.
    """

    info: VideoInfo
    motion: dict[int, BlockMotion | None] | None = None
    """The motion towards each frame that was read; None if the reader was not asked for it or knows none."""

    @property
    @abstractmethod
    def times(self) -> np.ndarray:
        """Start of every frame in the file: seconds from the first one, float64 ``[N]``, rising."""

    @property
    @abstractmethod
    def end(self) -> float:
        """Seconds at which the last frame stops being shown."""

    @property
    def fps(self) -> float:
        """Frames per second, from the number of frames and their times, because headers can be wrong."""
        return len(self.times) / self.end

    @abstractmethod
    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        """Yield one RGB uint8 ``[H, W, 3]`` image for each of ``indices``, which rise strictly."""

    def read(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Frames shown at ``times``: for each, the last frame that starts at or before it.

        Times before the first frame give the first, times after the last give the last.

        Args:
            times: ``[T]`` seconds from the first frame, in any order, repeats allowed.

        Returns:
            uint8 RGB ``[T, H, W, 3]``, in the order of ``times``.

        Raises:
            ValueError: There are no times, or one is not a finite number.
            VideoError: Nothing can be decoded, or the frames are larger than `fluxvit.video.limits` allows.
        """
        indices, positions = np.unique(self._shown(times), return_inverse=True)
        with decoding(self.info.path):
            try:
                return self._gather(indices, positions)
            except DamageFound:
                # The frames so far were read by jumps, which may give others than reading in stored order.
                return self._gather(indices, positions)

    def _gather(self, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Frames ``indices[positions]``, uint8 ``[T, H, W, 3]``."""
        clip = np.empty((0,), dtype=np.uint8)
        for count, image in zip(range(len(indices)), self._decode(indices.tolist()), strict=True):
            if count == 0:
                if reason := VideoLimits.current().too_much(len(positions), *image.shape[:2]):
                    raise VideoError.of(self.info.path, reason)
                clip = np.empty((len(positions), *image.shape), dtype=np.uint8)
            clip[positions == count] = image
        return clip

    def walk(self, times: Sequence[float] | np.ndarray) -> Iterator[np.ndarray]:
        """The frames of `read` one by one, for a video too long to be held at once.

        Args:
            times: ``[T]`` seconds from the first frame, never falling.

        Raises:
            ValueError: See `read`; also if a time is before the one in front of it.
            VideoError: Nothing can be decoded.
        """
        shown = self._shown(times)
        if (np.diff(shown) < 0).any():
            raise ValueError(f"{self.info.path}: times must not fall; read takes them in any order")
        indices, repeats = np.unique(shown, return_counts=True)
        done = 0
        while done < len(indices):
            with decoding(self.info.path):
                try:
                    for image in self._decode(indices[done:].tolist()):
                        for _ in range(repeats[done]):
                            yield image
                        done += 1
                except DamageFound:
                    continue

    def motion_maps(
        self,
        times: Sequence[float] | np.ndarray,
        box: tuple[float, float, float, float],
        shape: tuple[int, int, int],
    ) -> np.ndarray | None:
        """How much the cells of a part of the picture move, by the vectors of the codec.

        The frames at ``times`` must have been read before, by a reader that was opened with ``motion``. The
        motion towards a frame is that of all frames decoded since the frame that was read before it.

        Args:
            times: ``[T]`` seconds, as for `read`.
            box: Top, left, bottom and right of the part, from 0 to 1 of the picture.
            shape: Steps of time, which T divides into, and rows and columns of equal cells.

        Returns:
            float32 of ``shape``, in stored pixels a frame, without the motion of the camera; 0 where nothing
            is known. None if no frame has vectors.
        """
        known = [(self.motion or {}).get(frame) for frame in self._shown(times).tolist()]
        if not any(known):
            return None
        cells = [motion.cells(box, shape[1:]) if motion else np.full(shape[1:], np.nan) for motion in known]
        steps = np.stack(cells).reshape(shape[0], -1, *shape[1:])
        counted = ~np.isnan(steps[..., :1, :1])
        return (np.nansum(steps, 1) / np.maximum(counted.sum(1), 1)).astype(np.float32)

    def _shown(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Number of the frame shown at each time."""
        seconds = np.asarray(times, dtype=np.float64)
        if seconds.ndim != 1 or seconds.size == 0 or not np.isfinite(seconds).all():
            raise ValueError(f"{self.info.path}: times must be one or more finite seconds, got {times!r}")
        return (np.searchsorted(self.times, seconds + CLOCK_SLACK, side="right") - 1).clip(0)

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
