"""Reads videos inside tar files (shards), on disk or behind a URL, by byte range.

Such a video has a path like any other, ``shards/train-000001.tar#1536+204800#00000017.mp4``: 204800 bytes
from byte 1536 of the tar on, where they are the member ``00000017.mp4``. The path alone says where to read:
there is no index to load, and videos are reached in any order.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fluxvit.video.base import VideoError

_MEMBER = re.compile(r"(?P<tar>.+\.tar)#(?P<offset>\d+)\+(?P<size>\d+)#(?P<name>[^/#]+)", re.DOTALL)

# A Path keeps one slash of "s3://"; a single letter would be a drive of Windows.
_URL = re.compile(r"([a-z][a-z0-9+]+):/+")

# The header of a member lies right before its bytes and begins with its name.
_BLOCK = 512
_NAME_BYTES = 100


@dataclass(frozen=True)
class TarMember:
    """A video in a tar file.

    Attributes:
        tar: File or URL of the tar.
        offset: Position of the first byte of the video in the tar.
        size: Bytes of the video.
        name: Name of the member, ASCII.
    """

    tar: str
    offset: int
    size: int
    name: str

    @classmethod
    def parse(cls, path: str | Path) -> TarMember | None:
        """The member that a path names; None if the path has another form."""
        match = _MEMBER.fullmatch(str(path))
        if match is None:
            return None
        return cls(with_scheme(match["tar"]), int(match["offset"]), int(match["size"]), match["name"])

    def __str__(self) -> str:
        return f"{self.tar}#{self.offset}+{self.size}#{self.name}"

    def open(self) -> IO[bytes]:
        """The bytes of the video as a file that can be read and sought in.

        Raises:
            VideoError: The tar is missing, cut short, or holds something else at this position; or the URL
                cannot be read.
            ValueError: The package that reads such URLs is not installed.
        """
        if self.size == 0 or self.offset < _BLOCK:
            raise self._error("the manifest names no bytes of a member of a tar")
        return self._open_remote() if is_url(self.tar) else self._open_local()

    def _open_local(self) -> IO[bytes]:
        try:
            tar = open(self.tar, "rb")  # noqa: SIM115 - closed by who reads it.
        except FileNotFoundError:
            raise self._error("no such shard") from None
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None
        try:
            tar.seek(self.offset - _BLOCK)
            self._expect(os.fstat(tar.fileno()).st_size, tar.read(_BLOCK))
        except VideoError:
            tar.close()
            raise
        return io.BufferedReader(Window(tar, self.offset, self.size, str(self)))

    def _open_remote(self) -> IO[bytes]:
        try:
            import fsspec
        except ImportError:
            raise ValueError(f"{self.tar}: shards behind a URL need: pip install 'fluxvit[shards]'") from None
        start, end = self.offset - _BLOCK, self.offset + self.size
        try:
            files, path = fsspec.core.url_to_fs(self.tar)
            content = files.cat_file(path, start=start, end=end)
        except ImportError as error:
            raise ValueError(f"{self.tar}: {error}") from None
        except Exception as error:
            # Every kind of storage raises errors of its own.
            raise self._error(f"cannot be fetched ({type(error).__name__}: {error})") from error
        if len(content) > end - start:
            raise self._error("cannot be fetched: its server does not answer requests for a byte range")
        self._expect(start + len(content), content[:_BLOCK])
        return io.BytesIO(content[_BLOCK:])

    def _expect(self, length: int, header: bytes) -> None:
        """Raise unless a tar of ``length`` bytes with this header before the video holds it."""
        if length < self.offset + self.size:
            raise self._error(
                f"the shard is cut short: it ends at byte {length}, the video at {self.offset + self.size}; "
                "copy or download it again"
            )
        name = header[:_NAME_BYTES].partition(b"\0")[0]
        if name != self.name.encode()[:_NAME_BYTES]:
            raise self._error(
                "the shard holds something else at this position: it is damaged, or was not made together "
                "with this manifest"
            )

    def _error(self, reason: str) -> VideoError:
        return VideoError.of(str(self), reason)


class Window(io.RawIOBase):
    """``size`` bytes of a file from ``offset`` on, as a file.

    Args:
        name: Name for messages.
        owned: Close the file with this one.

    Raises (from reading):
        VideoError: The file cannot be read, whatever error it raises.
    """

    def __init__(self, file: Any, offset: int, size: int, name: str, *, owned: bool = True) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0
        self._name, self._owned = name, owned

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(0, self._size - self._at))
        try:
            self._file.seek(self._offset + self._at)
            data = self._file.read(count)
        except Exception as error:
            raise VideoError.of(self._name, f"cannot be read ({type(error).__name__}: {error})") from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._owned:
            self._file.close()
        super().close()


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL such as ``s3://bucket/x``; a `Path` keeps only one of two slashes."""
    return _URL.match(str(path)) is not None


def with_scheme(path: str | Path) -> str:
    """A path as text, with both slashes of a URL."""
    return _URL.sub(r"\1://", str(path), count=1) if is_url(path) else str(path)


def image_pattern(name: str) -> re.Pattern[str]:
    """The names that a pattern matches: ``*`` is any text; ``%d``, ``%05d`` or ``{:05d}`` is a number."""
    parts = re.split(r"(\*|%[0-9]*d|\{:?[0-9]*d?\})", name)
    texts = [
        (".*" if part == "*" else "[0-9]+") if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(texts), re.IGNORECASE)


def split_pattern(path: Path) -> tuple[Path, str] | None:
    """The folder and the pattern of a path such as ``frames/img_%05d.jpg``; None if it is no such path."""
    if image_pattern(path.name).pattern == re.escape(path.name) or not os.path.isdir(path.parent):
        return None
    return path.parent, path.name


def may_exist(path: Path) -> bool:
    """Whether the file, the shard or the folder of a video exists, or its shard is behind a URL."""
    member = TarMember.parse(path)
    if member is None:
        # False, too, for names that no file can have.
        return os.path.exists(path) or split_pattern(path) is not None
    return is_url(member.tar) or os.path.isfile(member.tar)
