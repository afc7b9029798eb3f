"""Searches folders for files. Links are followed, and nothing that cannot be read ends the search."""

from __future__ import annotations

import os
from collections import deque
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
        return tuple(
            f"left out {len(paths)} {reason}, such as {paths[0]}"
            for reason, paths in reasons.items()
            if paths
        )

    def may_hold(self, path: str) -> bool:
        """Whether a path lies at or below a place that could not be read, so that it may still exist."""
        return any(
            path == place or path.startswith(place + os.sep) for place in (*self.broken, *self.unreadable)
        )


def walk(top: str | Path, left_out: LeftOut) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the folders at and below a folder, with their files, like ``os.walk`` with ``followlinks=True``.

    Links to folders are followed after all real folders, and every folder is entered once, however many ways
    lead to it; links to folders that hold ``top`` are not followed. So links that form a loop end, and a
    video that a folder and a link to it both show is listed once, by its own path. Hidden files and folders
    (``.name``), devices, pipes and sockets are skipped. What cannot be read is added to ``left_out`` instead
    of being raised.

    Args:
        top: The folder to start from.
        left_out: Receives what is left out.

    Yields:
        The folder, the names of the folders in it, and the names of the files in it, both sorted. Names that
        the caller removes from the list of folders are not entered.
    """
    # A link to a folder that holds this one would lead back here, by way of everything else in it.
    path = Path(os.path.abspath(top))
    seen = {folder_identity(folder) for folder in {*path.parents, *path.resolve().parents}}
    real, linked = deque([os.fspath(top)]), deque[str]()
    while real or linked:
        folder = real.popleft() if real else linked.popleft()
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
        folders, files, links = [], [], set()
        for child in children:
            if child.name.startswith("."):
                continue
            try:
                # These follow links.
                if child.is_dir():
                    folders.append(child.name)
                    if _is_link(child):
                        links.add(child.name)
                elif child.is_file():
                    files.append(child.name)
                elif child.is_symlink():
                    left_out.broken.append(child.path)
            except OSError:
                (left_out.broken if child.is_symlink() else left_out.unreadable).append(child.path)
        yield folder, folders, files
        for name in folders:
            (linked if name in links else real).append(os.path.join(folder, name))


def folder_identity(path: str | Path) -> object:
    """What two paths have in common if, and only if, they lead to the same folder.

    Raises:
        OSError: There is no such folder, or it may not be looked at.
    """
    facts = os.stat(path)
    # Some file systems of Windows do not number their files.
    return (facts.st_dev, facts.st_ino) if facts.st_ino else os.path.normcase(os.path.realpath(path))


def _is_link(child: os.DirEntry[str]) -> bool:
    # Junctions of Windows are no symbolic links, but lead elsewhere all the same (from Python 3.12 on).
    return child.is_symlink() or (hasattr(child, "is_junction") and child.is_junction())
