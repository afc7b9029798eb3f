"""Finds the videos that a list names: below a folder, moved from another machine, or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PureWindowsPath

TRIED = 50
"""Names of a list whose files are looked for to tell where the others lie."""

_SUGGESTED_BY = 5  # Names that are looked for in each folder that may be the root.
_LEVELS, _MOST_FOLDERS = 4, 100  # How deep below a folder roots are searched for, and how many in each level.


def place(home: Path, name: str) -> Path:
    """The path of a video in a list; a name without a suffix is a folder of frames or an mp4 file."""
    path = home / name
    if "." not in os.path.basename(name) and path.name and not os.path.isdir(path):
        path = path.with_name(path.name + ".mp4")
    return path


def exists(home: Path, name: str) -> bool:
    """Whether there is a video of that name."""
    try:
        return bool(name) and os.path.exists(place(home, name))
    except (OSError, ValueError):
        return False


def locate(names: Sequence[str], root: Path | None, home: Path) -> tuple[list[Path], Path, tuple[str, ...]]:
    """The paths of a list's videos, the folder that holds them, and notes on what was changed to find them.

    Args:
        names: The paths of the list; relative ones start from ``root``.
        root: The folder that was given for the videos. Absolute paths of which none exists are looked for
            below it by their last parts.
        home: The folder of the list, used if no root is given.
    """
    base = root or home
    names = [name.removeprefix("file://") for name in names]
    sample = [name for name in names if "\\" in name][:TRIED]
    if os.sep == "/" and sample and not any(exists(base, name) for name in sample):
        # A list from Windows.
        names = [PureWindowsPath(name).as_posix() if "\\" in name else name for name in names]
    if not names or not all(os.path.isabs(name) or PureWindowsPath(name).drive for name in names):
        return [place(base, name) for name in names], base, ()
    sample = list(names[:TRIED])
    if root is not None and not any(exists(root, name) for name in sample):
        cuts = (_parts_to_cut(name, root) for name in sample)
        if cut := next(filter(None, cuts), None):
            former = PurePath(*PurePath(sample[0]).parts[:cut])
            parts = [PurePath(name).parts for name in names]
            paths = [place(root, str(PurePath(*(part[cut:] or part)))) for part in parts]
            return paths, root, (f"the paths of the list begin with {former}, which {root} replaces",)
    paths = [place(base, name) for name in names]
    if all(path.is_absolute() for path in map(Path, names)):
        base = Path(os.path.commonpath([path.parent for path in paths]))
    return paths, base, ()


def suggest_root(paths: Sequence[Path], root: Path, source: Path) -> Path | None:
    """A folder near a list below which its videos would be found, if it were given as the root.

    Args:
        paths: The paths where they were expected.
        root: The folder that they were expected below.
        source: The list, or the folder of the data set.
    """
    home = source if source.is_dir() else source.parent
    sample = [path for path in paths[:_SUGGESTED_BY] if path.is_relative_to(root)]
    names = [str(path.relative_to(root)) for path in sample]
    is_moved = root != home and not root.is_dir()
    for folder in _near(home, root):
        if folder != root and any(os.path.exists(folder / name) for name in names):
            return folder
        if is_moved and any(_parts_to_cut(str(path), folder) for path in sample):
            return folder
    return None


def _parts_to_cut(name: str, root: Path) -> int | None:
    """How many of the first parts of an absolute path ``root`` replaces, so that the rest exists below it."""
    parts = PurePath(name).parts
    return next((cut for cut in range(1, len(parts)) if exists(root, str(PurePath(*parts[cut:])))), None)


def _near(home: Path, root: Path) -> Iterator[Path]:
    """Folders that may hold the videos of a list: those around it, and those in these."""
    seen: set[Path] = set()
    for start in (root, home, *home.parents[:2], Path.cwd()):
        level = [start] if start.parent != start else []
        for _ in range(_LEVELS):
            fresh = [folder for folder in level if folder not in seen][:_MOST_FOLDERS]
            yield from fresh
            seen.update(fresh)
            level = [child for folder in fresh for child in _children(folder)]


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            names = sorted(child.name for child in found if not child.name.startswith(".") and child.is_dir())
    except OSError:
        return []
    return [folder / name for name in names[:_MOST_FOLDERS]]
