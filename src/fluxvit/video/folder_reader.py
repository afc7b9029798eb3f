"""A folder of image files as a video."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from fluxvit.video.base import VideoError
from fluxvit.video.container import is_animated_webp, open_container
from fluxvit.video.frames_reader import DEFAULT_FPS, FixedRateReader
from fluxvit.video.limits import VideoLimits, image_size
from fluxvit.video.rgb import RGBConverter, orientation
from fluxvit.video.tar_members import image_pattern

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_DIGITS = re.compile(r"([0-9]+)")
_MOST_NAMED = 6  # Series of images that an error names.


class FolderReader(FixedRateReader):
    """Reads the images of a folder, in natural order of their names (``2.png`` before ``10.png``).

    Hidden files and files that are not images are left out, and sub-folders are not entered. Images whose
    names differ in their numbers only form a series. If there is one series, it is the video, and single
    images such as ``cover.jpg`` are left out; if there is none, all images are the video. If several videos
    are possible, ``pattern`` must choose one.

    Each image is turned as its own EXIF orientation says.

    Args:
        path: The folder.
        fps: Images per second.
        short_side: See `fluxvit.video.reader.open_video`.
        pattern: Name of the images, with ``*`` for any text or ``%d``, ``%05d`` or ``{:05d}`` for a number.
            All images with such a name are read, in natural order.

    Raises:
        VideoError: The folder does not exist or holds no images, several videos are possible, or an image
            cannot be read.
        ValueError: ``fps`` is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = DEFAULT_FPS,
        short_side: int | None = None,
        pattern: str | None = None,
    ) -> None:
        path = Path(path)
        shown = path if pattern is None else path / pattern
        names = sorted(_image_names(path), key=_natural_order)
        if pattern is not None:
            names = list(filter(image_pattern(pattern).fullmatch, names))
            if not names:
                raise VideoError.of(shown, "no image of the folder has such a name")
        else:
            names = _choose(path, names)
        if reason := VideoLimits.current().too_many(len(names)):
            raise VideoError.of(shown, reason)
        self._files = [path / name for name in names]
        self._short_side = short_side
        self._converters: dict[tuple[int, int, bool, int], RGBConverter] = {}
        first = _decode_image(self._files[0])
        converter = self._converter(first)
        self._size = converter.shown
        super().__init__(
            shown,
            len(names),
            fps,
            self._size,
            codec=self._files[0].suffix.lower().lstrip("."),
            rotation=90 * converter.turns,
        )

    def _converter(self, image: av.VideoFrame) -> RGBConverter:
        key = image.width, image.height, *orientation(image)
        if key not in self._converters:
            self._converters[key] = RGBConverter(image, self._short_side)
        return self._converters[key]

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            image = _decode_image(self._files[index])
            converter = self._converter(image)
            if converter.shown != self._size:
                (height, width), (first_height, first_width) = converter.shown, self._size
                raise VideoError.of(
                    self._files[index],
                    f"is {width}x{height}, the first image of its folder {first_width}x{first_height}",
                )
            yield converter(image)


def _image_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise VideoError.of(folder, (error.strerror or str(error)).lower()) from None
    names = [
        name for name in files if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")
    ]
    if not names:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise VideoError.of(folder, f"a folder without images ({kinds}); give videos one by one")
    return names


def _choose(folder: Path, names: list[str]) -> list[str]:
    """The images that are the video, of all images in natural order.

    Raises:
        VideoError: Several videos are possible.
    """
    by_text: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        by_text[tuple(text.casefold() for text in _parts(name)[::2])].append(name)
    series = sorted((alike for alike in by_text.values() if len(alike) > 1), key=len, reverse=True)
    if not series:
        return names
    if len(series) == 1 and 2 * len(series[0]) > len(names) and _is_sequence(series[0]):
        return series[0]
    examples = [f"{_pattern(alike)} ({len(alike)})" for alike in series]
    listed = ", ".join(examples[:_MOST_NAMED]) + ", ..." * (len(examples) > _MOST_NAMED)
    raise VideoError.of(
        folder,
        f"its images may be several videos: {listed}; say which images to read, as in "
        f"{folder / _pattern(series[0])}",
    )


def _parts(name: str) -> list[str]:
    """The stem of a name, split into text (even positions) and numbers (odd positions)."""
    return _DIGITS.split(os.path.splitext(name)[0])


def _is_sequence(names: list[str]) -> bool:
    """Whether exactly one of the numbers in these names varies, and no two names have the same numbers."""
    numbers = [tuple(map(int, _parts(name)[1::2])) for name in names]
    varying = sum(len(set(column)) > 1 for column in zip(*numbers, strict=True))
    return varying == 1 and len(set(numbers)) == len(names)


def _pattern(names: list[str]) -> str:
    """The name of a series of images, with ``%d`` in place of the numbers that vary."""
    columns = zip(*map(_parts, names), strict=True)
    stem = ("%d" if index % 2 and len(set(column)) > 1 else column[0] for index, column in enumerate(columns))
    return "".join(stem) + os.path.splitext(names[0])[1]


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits as numbers."""
    return [
        (0, int(text), "") if index % 2 else (1, 0, text.casefold())
        for index, text in enumerate(_DIGITS.split(name))
    ]


def _decode_image(path: Path) -> av.VideoFrame:
    try:
        with path.open("rb") as file:
            size = image_size(file)
        if size is not None and (reason := VideoLimits.current().too_large(*size)):
            raise VideoError.of(path, reason)
        with open_container(path) as container:
            return next(container.decode(video=0))
    except (FFmpegError, OSError, IndexError, StopIteration):
        raise VideoError.of(path, _why_not_decoded(path)) from None


def _why_not_decoded(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except FileNotFoundError:
        return "a broken link" if path.is_symlink() else "the file is gone"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if not start:
        return "the file is empty (0 bytes)"
    if is_animated_webp(start):
        return "an animation, which this FFmpeg cannot decode; save its frames as separate images"
    return "not an image, or it is damaged"
