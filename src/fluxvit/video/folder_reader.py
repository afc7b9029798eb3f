"""A folder of image files as a video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from fluxvit.video.base import VideoError, VideoInfo
from fluxvit.video.container import open_container
from fluxvit.video.frames_reader import DEFAULT_FPS, FixedRateReader
from fluxvit.video.limits import VideoLimits, image_size
from fluxvit.video.rgb import RGBConverter

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class FolderReader(FixedRateReader):
    """Reads the images of a folder, in natural order of their names (``2.png`` before ``10.png``).

    Other and hidden files are passed over; sub-folders are not entered.

    Args:
        path: The folder.
        fps: Images per second.
        short_side: As in `fluxvit.video.reader.open_video`.

    Raises:
        VideoError: The folder does not exist or holds no images, or an image cannot be read.
        ValueError: ``fps`` is out of range.
    """

    def __init__(self, path: str | Path, *, fps: float = DEFAULT_FPS, short_side: int | None = None) -> None:
        path = Path(path)
        if not path.is_dir():
            raise VideoError.of(path, "no such folder")
        self._files = sorted(
            (f for f in path.iterdir() if f.suffix.lower() in _SUFFIXES and not f.name.startswith(".")),
            key=_natural_order,
        )
        if not self._files:
            raise VideoError.of(path, f"a folder without images ({', '.join(sorted(_SUFFIXES))})")
        super().__init__(len(self._files), fps)
        first = _decode_image(self._files[0])
        self._convert = RGBConverter(first, short_side)
        self._size = first.width, first.height
        turns = self._convert.turns
        width, height = self._size if turns % 2 == 0 else self._size[::-1]
        self.info = VideoInfo(
            path=path,
            width=width,
            height=height,
            frames=len(self._files),
            fps=self._fps,
            duration=self._end,
            rotation=90 * turns,
            codec=self._files[0].suffix.lower().lstrip("."),
            pixel_format=first.format.name,
        )

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            frame = _decode_image(self._files[index])
            if (frame.width, frame.height) != self._size:
                width, height = self._size
                raise VideoError.of(
                    self._files[index],
                    f"is {frame.width}x{frame.height}, the first image of its folder {width}x{height}",
                )
            yield self._convert(frame)


def _decode_image(path: Path) -> av.VideoFrame:
    try:
        with path.open("rb") as file:
            size = image_size(file)
        if size is not None and (reason := VideoLimits.current().too_large(*size)):
            raise VideoError.of(path, reason)
        with open_container(path) as container:
            return next(container.decode(video=0))
    except VideoError:
        raise
    except (FFmpegError, IndexError, StopIteration):
        raise VideoError.of(path, "not an image, or it is damaged") from None


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key that compares runs of digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
