"""The videos of a bulk job: what the inputs list, and how each is opened."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fluxvit.data.formats.layout import IMAGE_SUFFIXES, is_video, videos_below
from fluxvit.data.formats.walk import LeftOut
from fluxvit.data.manifest import Entry, read_manifest
from fluxvit.video.base import VideoError, VideoReader
from fluxvit.video.reader import open_video
from fluxvit.video.tar_members import TarMember, is_url, may_exist, with_scheme

# An index at the end of a file is read without losing what was read of its beginning.
_CACHE = {"cache_type": "blockcache", "block_size": 4 << 20}


class Item(NamedTuple):
    """A video of a job: an absolute path or an address, and the segment of a manifest in seconds."""

    path: str
    start: float | None = None
    end: float | None = None

    def span(self, length: float) -> tuple[float, float]:
        """Seconds at which it starts and ends in a file of ``length`` seconds; a VideoError if there is no
        such segment.
        """
        return Entry(Path(self.path), start=self.start, end=self.end).span(length)


def list_inputs(inputs: Sequence[str]) -> list[Item]:
    """The videos of inputs, each once, sorted.

    Raises:
        ValueError: An input does not exist or holds no videos, or a storage cannot be reached, for example
            because the bucket or the credentials are missing.
    """
    items = {item for text in inputs for item in _listed(text)}
    _check_storages(item.path for item in items)
    return sorted(items, key=lambda item: (item.path, item.start or 0, item.end or 0))


def list_digest(items: Sequence[Item]) -> str:
    """16 hexadecimal digits that identify a list of videos."""
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]


def _listed(text: str) -> Iterator[Item]:
    if _is_remote(text):
        yield from map(Item, _remote(text))
    elif text.endswith(".jsonl"):
        for entry in read_manifest(text, target=None).entries:
            path = with_scheme(entry.path) if is_url(entry.path) else os.path.abspath(entry.path)
            yield Item(path, entry.start, entry.end)
    elif os.path.isdir(text):
        yield from _below(Path(text))
    elif os.path.exists(text) or not _is_glob(text):
        if not may_exist(Path(text)):
            raise ValueError(f"{text}: there is no such file or folder")
        yield Item(os.path.abspath(text))
    else:
        found = sorted(glob.glob(text, recursive=True))
        if not found:
            raise ValueError(f"{text}: no such file or folder, and nothing matches it as a pattern")
        for path in found:
            if os.path.isdir(path):
                yield from _below(Path(path))
            elif is_video(path):
                yield Item(os.path.abspath(path))


def _is_glob(text: str) -> bool:
    """Whether it is a pattern of files. A pattern of images stands for one video."""
    return glob.has_magic(text) and Path(text).suffix.lower() not in IMAGE_SUFFIXES


def _below(folder: Path) -> Iterator[Item]:
    left_out = LeftOut()
    found = videos_below(folder, left_out)
    if not found:
        raise ValueError("; ".join((f"{folder}: no videos in it", *left_out.notes)))
    for path in found:
        yield Item(os.path.abspath(path))


# Object stores and web servers ------------------------------------------------------------------------------


def _is_remote(path: str) -> bool:
    return is_url(path) and TarMember.parse(path) is None


def _is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _storage(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        ValueError: A package is missing, or there is no such kind of storage.
    """
    try:
        import fsspec
    except ImportError:
        raise ValueError(f"{url}: addresses need: pip install 'fluxvit[bulk]'") from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from None


def _remote(url: str) -> list[str]:
    """The addresses of the videos that an address stands for: a file, a folder or a pattern."""
    if url.endswith(".jsonl"):
        raise ValueError(f"{url}: a manifest must lie on this machine; copy it here")
    if _is_web(url):
        return [url]
    storage, path = _storage(url)
    try:
        if glob.has_magic(url):
            found = storage.glob(path)
        elif storage.isdir(path):
            found = storage.find(path)
        else:
            return [url]
    except Exception as error:  # Every kind of storage raises errors of its own.
        raise _unreachable(url, error) from error
    videos = [storage.unstrip_protocol(path) for path in found if is_video(path)]
    if not videos:
        raise ValueError(f"{url}: no videos there")
    return videos


def _check_storages(paths: Iterable[str]) -> None:
    """Ask each bucket for one of its videos.

    Raises:
        ValueError: There is no such bucket, or it cannot be reached.
    """
    first: dict[str, str] = {}
    for path in paths:
        if _is_remote(path) and not _is_web(path):
            first.setdefault("/".join(path.split("/")[:3]), path)
    for bucket, url in first.items():
        storage, path = _storage(url)
        try:
            known = storage.exists(path) or storage.exists(_storage(bucket)[1])
        except Exception as error:
            raise _unreachable(url, error) from error
        if not known:
            raise ValueError(f"{url}: there is no {bucket}, or it may not be listed")


def _unreachable(url: str, error: Exception) -> ValueError:
    return ValueError(f"{url}: the storage cannot be read ({type(error).__name__}: {error})")


@contextmanager
def open_item(path: str) -> Iterator[VideoReader]:
    """Open a video of a job.

    Raises:
        VideoError: It cannot be read or fetched.
    """
    if not _is_remote(path):
        with open_video(path) as reader:
            yield reader
        return
    storage, name = _storage(path)
    try:
        file = storage.open(name, "rb", **_CACHE)
        if not file.seekable():  # The server sends whole files only.
            file.close()
            file = io.BytesIO(storage.cat_file(name))
    except Exception as error:
        raise VideoError.of(path, f"cannot be fetched ({type(error).__name__}: {error})") from error
    with file, open_video(file) as reader:
        yield reader
