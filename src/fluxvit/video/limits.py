"""Limits on the memory that a video may make this process allocate, checked before anything is decoded.

A header of a few bytes can ask for gigabytes. The limits are far above any video that people have. They are
read from the environment each time, so that worker processes share them:

===========================  ==========================================  ==================================
variable                     limits                                      default
===========================  ==========================================  ==================================
FLUXVIT_MAX_PIXELS           width times height of a frame               40 000 000 (8K video has 35 389 440)
FLUXVIT_MAX_FRAMES           frames of one file or folder                4 000 000 (18 h at 60 a second)
FLUXVIT_MAX_PIXELS_PER_BYTE  pixels of all frames over the file's size   1 000 000 (black video: 100 000)
FLUXVIT_MAX_READ_BYTES       decoded frames that one read returns        4 294 967 296 (4 GiB)
===========================  ==========================================  ==================================
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import IO, TypeAlias

_PREFIX = "FLUXVIT_MAX_"
_FEW_PIXELS = 1 << 31

# The most boxes of one level of an MP4 file that are read; a film in fragments of a second has thousands.
_MOST_BOXES = 100_000

_MP4_OPENINGS = (b"ftyp", b"mdat", b"wide", b"free", b"skip")

# Begin and end in a file.
_Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class VideoLimits:
    """Limits on a video; see the module's table.

    Args:
        pixels: Width times height of a frame.
        frames: Frames of one file or folder.
        pixels_per_byte: Pixels of all frames of a file over its size in bytes, if they are more than 2^31.
        read_bytes: Decoded frames that one read returns, in bytes.
    """

    pixels: int = 40_000_000
    frames: int = 4_000_000
    pixels_per_byte: int = 1_000_000
    read_bytes: int = 1 << 32

    @classmethod
    def current(cls) -> VideoLimits:
        """The limits of this process.

        Raises:
            ValueError: A variable is not a positive integer; the message names it.
        """
        given = {}
        for field in fields(cls):
            variable = _PREFIX + field.name.upper()
            if (text := os.environ.get(variable)) is not None:
                if not re.fullmatch("0*[1-9][0-9]{0,17}", text):
                    raise ValueError(f"{variable}={text}: a limit is a positive integer of up to 18 digits")
                given[field.name] = int(text)
        return cls(**given)

    def too_large(self, width: int, height: int) -> str | None:
        """Why frames of this size are not decoded; None if they may be."""
        if width * height <= self.pixels:
            return None
        return (
            f"its frames have {width}x{height} pixels, more than the limit of {self.pixels}; set "
            f"{_PREFIX}PIXELS={width * height} to read it all the same"
        )

    def grown(self) -> str:
        """Why frames are not decoded if the decoder refuses their size without reporting it."""
        return (
            f"the size of its frames is beyond the limit of {self.pixels} pixels, or damaged; if it is "
            f"right, set {_PREFIX}PIXELS to a larger number"
        )

    def too_many(self, frames: int) -> str | None:
        """Why a video of so many frames is not read; None if it may be."""
        if frames <= self.frames:
            return None
        return (
            f"it has more frames than the limit of {self.frames}; set {_PREFIX}FRAMES to a larger number to "
            "read it all the same"
        )

    def too_dense(self, frames: int, pixels: int, size: int) -> str | None:
        """Why a file of ``size`` bytes with so many frames of so many pixels is not read; None if it may be.

        A small file may claim many huge frames, which take minutes to decode.
        """
        if frames * pixels <= max(_FEW_PIXELS, self.pixels_per_byte * size):
            return None
        return (
            f"it has {size} bytes, but claims {frames} frames or more of {pixels} pixels each, more than the "
            f"limit of {self.pixels_per_byte} pixels in a byte; set {_PREFIX}PIXELS_PER_BYTE to a larger "
            "number to read it all the same"
        )

    def too_much(self, frames: int, height: int, width: int) -> str | None:
        """Why so many decoded frames are not read at once; None if they may be."""
        size = frames * height * width * 3
        if size <= self.read_bytes:
            return None
        return (
            f"{frames} frames of {width}x{height} at once take {size / 1e9:.1f} GB, more than the limit of "
            f"{self.read_bytes / 1e9:.1f} GB; read fewer or smaller ones (short_side), or set "
            f"{_PREFIX}READ_BYTES={size}"
        )


def image_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Width and height that the header of a GIF, PNG, BMP, WebP or JPEG file claims; None for other files.

    FFmpeg decodes the first image of such a file while it opens it, so the size must be known before that.
    The file is left at its beginning.
    """
    file.seek(0)
    start = file.read(32)
    try:
        if start[:2] == b"\xff\xd8":
            return _jpeg_size(file)
        if start[:4] == b"GIF8":
            return struct.unpack_from("<HH", start, 6)
        if start[:8] == b"\x89PNG\r\n\x1a\n":
            return struct.unpack_from(">II", start, 16)
        if start[:2] == b"BM":
            width, height = struct.unpack_from("<ii", start, 18)
            return abs(width), abs(height)
        if start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X":
            width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (24, 27))
            return width, height
    except struct.error:  # The header is cut short.
        return None
    finally:
        file.seek(0)
    return None


def _jpeg_size(file: IO[bytes]) -> tuple[int, int] | None:
    """The size in the frame header of a JPEG file."""
    position = 2
    for _ in range(1000):
        file.seek(position)
        marker = file.read(9)
        if len(marker) < 9 or marker[0] != 0xFF:
            return None
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", marker, 5)
            return width, height
        position += 2 + int.from_bytes(marker[2:4], "big")
    return None


def claimed_samples(file: IO[bytes]) -> int:
    """The most samples that a track of an MP4 or QuickTime file claims by a number alone; 0 for other files.

    FFmpeg makes an index of them while it opens the file, of 24 or more bytes each. Uncompressed sound is
    left out, because FFmpeg does not list its samples, which are millions a minute. The file is left at its
    beginning.
    """
    with _box_span(file) as span:
        tracks = [
            _claimed_in(file, track) for index in _find(file, span, b"moov") for track in _tracks(file, index)
        ]
        runs = sum(_claimed_by_run(file, run) for run in _find(file, span, b"moof", b"traf", b"trun"))
        # QuickTime may compress an index; a sample takes four bytes of it, unless claimed as above.
        packed = [
            struct.unpack(">I", _bytes_at(file, position, 4))[0] // 4
            for position, _ in _find(file, span, b"moov", b"cmov", b"cmvd")
        ]
        return max([runs, *packed, *tracks])


def is_encrypted(file: IO[bytes]) -> bool:
    """Whether all pictures of an MP4 file are encrypted (the sample entry encv of ISO/IEC 23001-7).

    FFmpeg would decode them to noise. The file is left at its beginning.
    """
    with _box_span(file) as span:
        return any(
            {kind for kind, _ in _boxes(file, (start + 8, end))} == {b"encv"}
            for index in _find(file, span, b"moov")
            for track in _tracks(file, index)
            for start, end in _find(file, track, b"mdia", b"minf", b"stbl", b"stsd")
        )


def lacks_index(file: IO[bytes]) -> bool:
    """Whether a file begins as MP4 or QuickTime and has no ``moov`` box, nor the ``meta`` box of a still."""
    with _box_span(file) as span:
        kinds = [kind for kind, _ in _boxes(file, span)]
    return bool(kinds) and kinds[0] in _MP4_OPENINGS and not {b"moov", b"meta"} & {*kinds}


@contextmanager
def _box_span(file: IO[bytes]) -> Iterator[_Span]:
    """The part of a file that holds boxes, empty if it is not an MP4. The file is left at its beginning."""
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(4)
        yield 0, length if file.read(4).isalnum() else 0
    finally:
        file.seek(0)


def _tracks(file: IO[bytes], index: _Span) -> Iterator[_Span]:
    """The parts of a file that hold the tracks of an index, except compressed ones."""
    for kind, span in _boxes(file, index):
        if kind == b"trak":
            yield span
        elif kind == b"moov":
            yield from _tracks(file, span)


def _claimed_in(file: IO[bytes], track: _Span) -> int:
    """The samples that a track claims without a size for each."""
    sound = uncompressed = False
    count = 0
    for position, _ in _find(file, track, b"mdia", b"hdlr"):
        sound = _bytes_at(file, position + 8, 4) == b"soun"
    for table in _find(file, track, b"mdia", b"minf", b"stbl"):
        for position, _ in _find(file, table, b"stsz"):
            size, number = struct.unpack(">II", _bytes_at(file, position + 4, 8))
            count = number if size else 0
        for position, _ in _find(file, table, b"stts"):
            entries, _, duration = struct.unpack(">III", _bytes_at(file, position + 4, 12))
            uncompressed = entries == duration == 1
    return 0 if sound and uncompressed else count


def _claimed_by_run(file: IO[bytes], run: _Span) -> int:
    """The samples that a run of a fragment claims, if it says nothing of each."""
    flags, count = struct.unpack(">II", _bytes_at(file, run[0], 8))
    return count if flags & 0xF00 == 0 else 0


def _find(file: IO[bytes], span: _Span, *path: bytes) -> Iterator[_Span]:
    """The contents of all boxes that a path of names leads to."""
    for kind, content in _boxes(file, span):
        if kind == path[0]:
            if len(path) == 1:
                yield content
            else:
                yield from _find(file, content, *path[1:])


def _boxes(file: IO[bytes], span: _Span) -> Iterator[tuple[bytes, _Span]]:
    """The boxes in a part of a file: their names, and where their contents begin and end."""
    start, end = span
    for _ in range(_MOST_BOXES):
        header = _bytes_at(file, start, 16)
        size, content = int.from_bytes(header[:4], "big"), start + 8
        if size == 1:
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        following = end if size == 0 else min(start + size, end)
        if following < content:
            return
        yield header[4:8], (content, following)
        start = following


def _bytes_at(file: IO[bytes], position: int, count: int) -> bytes:
    """Bytes from a position on; zeros after the end of the file."""
    file.seek(position)
    return file.read(count).ljust(count, b"\0")
