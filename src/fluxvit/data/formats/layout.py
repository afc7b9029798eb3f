"""What the readers of data sets share: the list of videos, the registry of formats, splits, and files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fluxvit.data.formats.text_files import shown
from fluxvit.data.formats.walk import LeftOut, walk
from fluxvit.data.manifest import MOST_SECONDS, Entry

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class VideoList:
    """Videos that are yet to be checked.

    Attributes:
        split: ``train``, ``val``, ``test`` or a name of the data set's own; empty if it has none.
        root: Absolute folder that holds the videos.
        entries: Their paths are absolute; files need not exist.
        labels: Class names; empty if the data set ships none.
        notes: What the reader passed over, one sentence each.
        name: The format that it was read as, such as ``kinetics``, or a name of its own.

    Raises:
        TypeError: A class name or a caption is not a text.
    """

    split: str
    root: Path
    entries: tuple[Entry, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        captions = (caption for entry in self.entries for caption in entry.captions)
        if not all(isinstance(text, str) for text in (*self.labels, *captions)):
            raise TypeError("class names and captions must be texts")


# --- Formats -----------------------------------------------------------------------------------------------

Reader = TypeVar("Reader", bound=Callable[..., VideoList])

FORMATS: dict[str, Callable[..., VideoList]] = {}
"""Readers by format. A reader takes the source, the folder of the videos or None, and the split or None."""

FOLDER_MARKS: dict[str, str] = {}
"""Formats by the patterns of file names that only a folder of that format has."""

ROW_KEYS: dict[str, frozenset[str]] = {}
"""Keys by format: a row of JSON that has all of them is of that format."""


def data_format(name: str, *marks: str, row_keys: frozenset[str] = frozenset()) -> Callable[[Reader], Reader]:
    """Register the reader of a format; what `fluxvit.data.formats.registry` imports can be read by its name.

    Args:
        name: Name of the format.
        marks: Patterns of file names, such as ``COIN.json``. A folder that holds such a file is
            recognised as this format.
        row_keys: Keys that together mark a row of JSON as one of this format.
    """

    def register(reader: Reader) -> Reader:
        FORMATS[name] = reader
        FOLDER_MARKS.update(dict.fromkeys(marks, name))
        if row_keys:
            ROW_KEYS[name] = row_keys
        return reader

    return register


# --- Splits ------------------------------------------------------------------------------------------------


class SplitNeeded(ValueError):
    """The data set has splits, and none was requested."""


class NoSuchSplit(ValueError):
    """The data set has no split of that name."""


_SPLIT = re.compile(
    r"(?<![a-z])(train|val|test)(?:ing|idation|idate|id)?"
    r"(?:sets?|splits?|lists?|data|videos?|clips?|frames?|images?|files?)?(?![a-z])"
)


def split_in(name: str) -> str | None:
    """The split that the name of a file or folder mentions, such as ``val`` for ``validationSet``; None if
    it mentions none or several.
    """
    found = set(_SPLIT.findall(name.lower().replace("trainval", "train_val")))
    return found.pop() if len(found) == 1 else None


def requested_split(split: str | None, source: Path, found: Sequence[str] = SPLITS) -> str:
    """The requested split, or the one that the name of the source mentions, or the only one that exists.

    Args:
        found: The splits that exist.

    Raises:
        SplitNeeded: None was requested, and several exist.
        NoSuchSplit: The requested split does not exist.
    """
    named = split or (source.stem if source.is_file() else "")
    name = named if named in found else split_in(named)
    if name is not None and name in found:
        return name
    if split is not None:
        raise NoSuchSplit(f"{source}: no split {split!r}; choose {' or '.join(found)}")
    if len(found) != 1:
        raise SplitNeeded(f"{source}: which of its splits? Choose with --split {' or '.join(found)}")
    return found[0]


def name_split(split: str | None, file: Path) -> str:
    """The requested split, or else the one that the name of the list mentions; empty if neither exists."""
    return split or split_in(file.stem) or ""


# --- Files -------------------------------------------------------------------------------------------------


def files_in(folder: Path) -> list[Path]:
    """Files of a folder, sorted, without hidden ones."""
    return sorted(p for p in folder.iterdir() if os.path.isfile(p) and not p.name.startswith("."))


def folders_in(folder: Path, left_out: LeftOut) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones.

    Args:
        left_out: Receives links that lead nowhere, and those to the folder itself or to one that holds it.
    """
    folders = [folder / name for name in next(walk(folder, left_out), ("", [], []))[1]]
    above = {path for path in folders if folder.resolve().is_relative_to(path.resolve())}
    left_out.again += sorted(map(str, above))
    return [path for path in folders if path not in above]


def is_video(name: str) -> bool:
    """Whether a text ends like the name of a video file."""
    return name.strip().lower().endswith(tuple(VIDEO_SUFFIXES))


def is_list(path: Path) -> bool:
    """Whether a file is named like a list of videos."""
    return path.suffix.lower() in (".csv", ".tsv", ".txt")


def list_file(source: Path, split: str | None) -> Path:
    """The list of a split: ``source`` itself, or the file of it in that folder."""
    if source.is_file():
        return source
    lists = [path for path in files_in(source) if is_list(path)]
    splits = [split_in(path.stem) for path in lists]
    requested = requested_split(split, source, found=[name for name in SPLITS if name in splits])
    chosen = [path for path, name in zip(lists, splits, strict=True) if name == requested]
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen)
        raise ValueError(f"{source}: several lists of the split {requested} ({names}); give one of them")
    return chosen[0]


def first_of(folder: Path, names: Sequence[str]) -> Path:
    """The first of ``names`` that is a file of the folder; a ValueError names them if none is."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder}: no file {' or '.join(names)}")


def seconds_of(text: str, where: object) -> float:
    """A number of seconds.

    Raises:
        ValueError: The text is not a number, or more than any video lasts; the message begins with ``where``.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.inf
    if not abs(seconds) <= MOST_SECONDS:
        raise ValueError(f"{where}: {shown(text)} is not a number of seconds")
    return seconds


class VideoFinder:
    """Finds videos in any folder below ``root`` by their names without suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path] = {}
        for path in videos_below(root, LeftOut()):
            name = path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
            self._paths.setdefault(name, path)

    def find(self, *names: str, expected: Path | None = None) -> Path:
        """The first of the names that a video has; else ``expected``, by default the first name as an mp4."""
        found = (self._paths[name] for name in names if name in self._paths)
        return next(found, expected or self.root / f"{names[0]}.mp4")


def videos_below(folder: Path, left_out: LeftOut, keep_broken: bool = False) -> list[Path]:
    """Video files and folders of frames at and below a folder, sorted.

    Args:
        left_out: Receives what is not a video, or cannot be read.
        keep_broken: List links that lead nowhere, too, if they are named like videos.
    """
    videos = []
    known = len(left_out.broken)
    for parent, folders, files in walk(folder, left_out):
        suffixes = {os.path.splitext(name)[1].lower() for name in files}
        if not suffixes & VIDEO_SUFFIXES and suffixes & IMAGE_SUFFIXES:
            videos.append(Path(parent))
            folders.clear()
            continue
        for name in files:
            path = os.path.join(parent, name)
            if is_video(name):
                videos.append(Path(path))
            else:
                left_out.others.append(path)
    if keep_broken:
        videos += [Path(path) for path in left_out.broken[known:] if is_video(path)]
        left_out.broken[known:] = [path for path in left_out.broken[known:] if not is_video(path)]
    return sorted(videos)
