"""Searches folders for files. Links are followed, and nothing that cannot be read ends the search."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class LeftOut:
    """What a search of folders left out.

    Attributes:
        broken: Links that lead nowhere, or to themselves.
        unreadable: Folders and files that may not be looked at.
        again: Links to folders that were entered before, or that contain the searched one.
        others: Files that are not what was searched for.
    """

    broken: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each reason, with the number of paths and the first of them."""
        reasons = {
            "links that lead nowhere": self.broken,
            "folders or files that cannot be read": self.unreadable,
            "links back to folders that were entered already or lie above": self.again,
            "files that are not named like videos": self.others,
        }
        found = [(reason, paths) for reason, paths in reasons.items() if paths]
        return tuple(f"left out {len(paths)} {reason}, such as {paths[0]}" for reason, paths in found)

    def may_hold(self, path: str) -> bool:
        """Whether a path lies at or below a place that could not be read, so that it may still exist."""
        places = (*self.broken, *self.unreadable)
        return any(path == place or path.startswith(place + os.sep) for place in places)


def walk(top: str | Path, left_out: LeftOut) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the folders at and below a folder, with their files, like ``os.walk`` with ``followlinks=True``.

    Every folder is entered once, however many links lead to it, and links to folders that hold ``top`` are
    not followed, so links that form a loop end. Hidden files and folders (``.name``), devices, pipes and
    sockets are skipped. What cannot be read is added to ``left_out`` instead of being raised.

    Args:
        top: The folder to start from.
        left_out: Receives what is left out.

    Yields:
        The folder, the names of the folders in it, and the names of the files in it, both sorted. Names that
        the caller removes from the list of folders are not entered.
    """
    path = Path(os.path.abspath(top))
    seen = {folder_identity(folder) for folder in {*path.parents, *path.resolve().parents}}
    waiting = [os.fspath(top)]
    while waiting:
        folder = waiting.pop()
        try:
            identity = folder_identity(folder)
            if identity in seen:
                left_out.again.append(folder)
                continue
            seen.add(identity)
            with os.scandir(folder) as found:
                children = sorted(found, key=lambda child: child.name)
        except OSError:
            left_out.unreadable.append(folder)
            continue
        folders, files = [], []
        for child in children:
            if child.name.startswith("."):
                continue
            try:
                if child.is_dir():
                    folders.append(child.name)
                elif child.is_file():
                    files.append(child.name)
                elif child.is_symlink():
                    left_out.broken.append(child.path)
            except OSError:
                (left_out.broken if child.is_symlink() else left_out.unreadable).append(child.path)
        yield folder, folders, files
        waiting += [os.path.join(folder, name) for name in reversed(folders)]


def folder_identity(path: str | Path) -> tuple[int, int]:
    """The device and the number of a folder, which all paths that lead to it share.

    Raises:
        OSError: There is no such folder, or it may not be looked at.
    """
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino
