"""A folder of image files as a video."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from fluxvit.video.base import VideoError, VideoInfo
from fluxvit.video.container import is_animated_webp, open_container
from fluxvit.video.frames_reader import DEFAULT_FPS, FixedRateReader
from fluxvit.video.limits import VideoLimits, image_size
from fluxvit.video.rgb import RGBConverter, exif_orientation, orientation
from fluxvit.video.tar_members import image_pattern

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_VIDEOS = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".m4v", ".gif"}
_DIGITS = re.compile(r"([0-9]+)")
# How systems call a second copy of a file, "img_1 (1)", "img_1 - Copy", "img_1 copy 2", and a small one.
_COPY = re.compile(
    r"(.+?)( ?\([0-9]+\)| - copy( \([0-9]+\))?|[ _-]copy[ _]?[0-9]*|[._-]thumb(nail)?)", re.IGNORECASE
)
# Pictures that stand for the whole video.
_POSTERS = {"banner", "cover", "folder", "poster", "preview", "thumb", "thumbnail"}
_MOST_NAMED = 6  # Groups of images that an error names.


class FolderReader(FixedRateReader):
    """Reads the images of a folder, in natural order of their names (``2.png`` before ``10.png``).

    Files that are no images, hidden ones, posters (``cover.jpg``), and copies and thumbnails of other images
    (``img_1 (1).jpg``, ``img_1.thumb.jpg``) are passed over; sub-folders are not entered. Images are grouped
    by their names without numbers: ``img_%d.jpg``, ``flow_x_%d.jpg``, ... The only group with consecutive
    numbers is the video, and others are passed over. If several groups could be it, ``count`` or ``pattern``
    must say which one.

    Each image is turned as its own EXIF orientation says.

    Args:
        path: The folder.
        fps: Images per second.
        short_side: See `fluxvit.video.reader.open_video`.
        count: Number of frames by a list of videos: of several groups, the one with so many images is read.
        pattern: Name of the images, with ``*`` for any text or ``%d``, ``%05d`` or ``{:05d}`` for a number.
            All that it fits are read, in natural order.

    Raises:
        VideoError: The folder does not exist or holds no images, several groups of images could be the video,
            or an image cannot be read.
        ValueError: ``fps`` is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = DEFAULT_FPS,
        short_side: int | None = None,
        count: int | None = None,
        pattern: str | None = None,
    ) -> None:
        path = Path(path)
        shown = path if pattern is None else path / pattern
        names = _image_names(path)
        if pattern is not None:
            fitting = image_pattern(pattern)
            names = sorted(filter(fitting.fullmatch, names), key=_natural_order)
            if not names:
                raise VideoError.of(shown, "no image of the folder has such a name")
        else:
            names = _choose(path, names, count)
        if reason := VideoLimits.current().too_many(len(names)):
            raise VideoError.of(shown, reason)
        self._files = [path / name for name in names]
        super().__init__(len(names), fps)
        self._short_side = short_side
        first, stored = _decode_image(self._files[0])
        self._converters: dict[tuple[tuple[int, int], tuple[bool, int]], RGBConverter] = {}
        self._size = _upright_size(first, stored)
        self.info = VideoInfo(
            path=shown,
            width=self._size[0],
            height=self._size[1],
            frames=len(self._files),
            fps=self._fps,
            duration=self._end,
            rotation=90 * stored[1],
            codec=self._files[0].suffix.lower().lstrip("."),
            pixel_format=first.format.name,
        )

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            frame, stored = _decode_image(self._files[index])
            size = _upright_size(frame, stored)
            if size != self._size:
                raise VideoError.of(
                    self._files[index],
                    f"is {size[0]}x{size[1]}, the first image of its folder {self._size[0]}x{self._size[1]}",
                )
            key = (frame.width, frame.height), stored
            if key not in self._converters:
                self._converters[key] = RGBConverter(frame, self._short_side, stored=stored)
            yield self._converters[key](frame)


def _image_names(folder: Path) -> list[str]:
    """Names of the images in a folder, in no order; posters, copies and thumbnails of others are left out."""
    try:
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries if not entry.name.startswith(".") and not _is_dir(entry)]
    except FileNotFoundError:
        raise VideoError.of(folder, "no such folder") from None
    except OSError as error:
        raise VideoError.of(folder, (error.strerror or str(error)).lower()) from None
    names = [name for name in files if os.path.splitext(name)[1].lower() in _SUFFIXES]
    if not names:
        videos = sum(os.path.splitext(name)[1].lower() in _VIDEOS for name in files)
        cure = f"; it holds {videos} videos, to be given one by one" if videos else ""
        raise VideoError.of(folder, f"a folder without images ({', '.join(sorted(_SUFFIXES))}){cure}")
    known = {name.casefold() for name in names}

    def is_frame(name: str) -> bool:
        stem, suffix = os.path.splitext(name)
        copied = _COPY.fullmatch(stem)
        return stem.casefold() not in _POSTERS and not (
            copied is not None and (copied[1] + suffix).casefold() in known
        )

    # A folder of nothing else is taken as it is.
    return list(filter(is_frame, names)) or names


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


@dataclass(frozen=True)
class _Group:
    """Images whose names differ in their numbers only, in natural order.

    Attributes:
        pattern: Their name with ``%d`` in place of numbers that differ.
        names: File names.
    """

    pattern: str
    names: list[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> _Group:
        names = sorted(names, key=_natural_order)
        parts = [_DIGITS.split(name) for name in names]
        pattern = "".join(
            "%d" if number % 2 and len({row[number] for row in parts}) > 1 else text
            for number, text in enumerate(parts[0])
        )
        stem, suffix = os.path.splitext(pattern)
        is_mixed = len({os.path.splitext(name)[1].lower() for name in names}) > 1
        return cls(f"{stem}.*" if is_mixed else f"{stem}{suffix}", names)

    @property
    def is_numbered(self) -> bool:
        return len(self.names) > 1 and _DIGITS.search(self.names[0]) is not None

    @cached_property
    def is_consecutive(self) -> bool:
        keys = [_numbers(name) for name in self.names]
        if len({key[:-1] for key in keys}) > 1 or len(keys[-1][-1][1]) > 18:
            return False
        first, last = (int(key[-1][1] or 0) for key in (keys[0], keys[-1]))
        return last - first + 1 == len(set(keys)) == len(keys)

    def __str__(self) -> str:
        return self.pattern if len(self.names) == 1 else f"{self.pattern} ({len(self.names)})"


def _choose(folder: Path, names: list[str], count: int | None) -> list[str]:
    """The images that are the video, in order.

    Raises:
        VideoError: Several groups of images could be it, or two images are the same frame.
    """
    groups = _group(names)
    chosen = groups[0]
    if len(groups) > 1:
        numbered = [group for group in groups if group.is_numbered]
        fitting = [group for group in groups if len(group.names) == count]
        if len(fitting) == 1:
            (chosen,) = fitting
        elif not numbered:
            # Names without numbers are frames in alphabetical order.
            return sorted(names, key=_natural_order)
        else:
            consecutive = [group for group in numbered if group.is_consecutive]
            chosen = max(consecutive or numbered, key=lambda group: len(group.names))
            others = [group for group in consecutive or numbered if group is not chosen]
            others += [group for group in numbered if len(group.names) >= len(chosen.names)]
            is_clear = not [group for group in others if group is not chosen]
            if not is_clear or 2 * len(chosen.names) <= len(names):
                examples = ", ".join(map(str, groups[:_MOST_NAMED])) + ", ..." * (len(groups) > _MOST_NAMED)
                raise VideoError.of(
                    folder,
                    f"holds images of several kinds: {examples}; say which are the video, as in "
                    f"{folder / groups[0].pattern}",
                )
    numbers: dict[tuple[tuple[int, str], ...], str] = {}
    for name in chosen.names:
        first = numbers.setdefault(_numbers(name), name)
        if chosen.is_numbered and first != name:
            raise VideoError.of(
                folder,
                f"{first} and {name} have the same number; remove one, or name the frames by a pattern",
            )
    return chosen.names


def _group(names: list[str]) -> list[_Group]:
    """Images by their names without numbers, the largest group first."""
    by_text: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        stem = os.path.splitext(name)[0]
        by_text[tuple(text.casefold() for text in _DIGITS.split(stem)[::2])].append(name)
    groups = [_Group.of(part) for alike in by_text.values() for part in _split(alike)]
    return sorted(groups, key=lambda group: (-len(group.names), group.pattern))


def _split(names: list[str]) -> list[list[str]]:
    """Images with the same text in their names, split where they are several videos: the same frames as jpg
    and as png, or the same numbers after each of several others (``cam1_%d.jpg``, ``cam2_%d.jpg``).
    """
    if max(Counter(map(_numbers, names)).values()) > 1:
        by_suffix: dict[str, list[str]] = defaultdict(list)
        for name in names:
            by_suffix[os.path.splitext(name)[1].lower().replace("jpeg", "jpg")].append(name)
        if len(by_suffix) > 1:
            return [part for alike in by_suffix.values() for part in _split(alike)]
    texts, keys = _DIGITS.split(os.path.splitext(names[0])[0])[::2], list(map(_numbers, names))
    varying = [place for place in range(len(texts) - 1) if len({key[place] for key in keys}) > 1]
    if len(varying) != 2 or varying[1] != len(texts) - 2 or texts[varying[1]] == ".":
        return [names]
    # Two digits below 60 each are minutes and seconds.
    if all(key[place][0] <= 2 and int(key[place][1] or 0) < 60 for key in keys for place in varying):
        fields = [_DIGITS.split(name)[1::2] for name in names]
        if all(len(field[place]) == 2 for field in fields for place in varying):
            return [names]
    by_first: dict[tuple[int, str], list[str]] = defaultdict(list)
    for name, key in zip(names, keys, strict=True):
        by_first[key[varying[0]]].append(name)
    is_parted = len({key[varying[1]] for key in keys}) == len(keys) or min(map(len, by_first.values())) < 2
    return [names] if is_parted else list(by_first.values())


def _upright_size(frame: av.VideoFrame, stored: tuple[bool, int]) -> tuple[int, int]:
    """Width and height of an image as displayed."""
    size = frame.width, frame.height
    return size if stored[1] % 2 == 0 else size[::-1]


def _decode_image(path: Path) -> tuple[av.VideoFrame, tuple[bool, int]]:
    """An image and its orientation, as from `fluxvit.video.rgb.orientation`."""
    try:
        with path.open("rb") as file:
            size = image_size(file)
            exif = exif_orientation(file)
        if size is not None and (reason := VideoLimits.current().too_large(*size)):
            raise VideoError.of(path, reason)
        with open_container(path) as container:
            frame = next(container.decode(video=0))
        return frame, exif or orientation(frame)
    except VideoError:
        raise
    except (FFmpegError, OSError, IndexError, StopIteration):
        raise VideoError.of(path, _why_not_decoded(path)) from None


def _why_not_decoded(path: Path) -> str:
    try:
        if path.stat().st_size == 0:
            return "the file is empty (0 bytes)"
        with path.open("rb") as file:
            if is_animated_webp(file.read(32)):
                return "an animation, which this FFmpeg cannot decode; save its frames as images of their own"
            return "not an image, or it is damaged"
    except FileNotFoundError:
        return "a broken link" if path.is_symlink() else "the file is gone"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _numbers(name: str) -> tuple[tuple[int, str], ...]:
    """The numbers in the stem of a name, as keys that sort like them, however many digits they have."""
    digits = (text.lstrip("0") for text in _DIGITS.findall(os.path.splitext(name)[0]))
    return tuple((len(text), text) for text in digits)


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits as numbers, of any length."""
    return [
        (0, len(digits := text.lstrip("0")), digits) if number % 2 else (1, 0, text.casefold())
        for number, text in enumerate(_DIGITS.split(name))
    ]
