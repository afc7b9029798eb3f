"""One decoded frame to an upright RGB array."""

from __future__ import annotations

from typing import IO, Any, Literal

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter


def orientation(frame: av.VideoFrame) -> tuple[bool, int]:
    """Whether a frame is to be mirrored left and right, and its clockwise quarter turns (0 to 3) after that.

    Cameras store a matrix with their pictures, and phones mirror what their front camera sees.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 lists no data of a frame if some is of a kind that it does not know, such as EXIF, for which
        # see exif_orientation. Of other data only the angle is known.
        return False, round(-frame.rotation / 90) % 4
    if matrix is None:
        return False, 0
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(np.float64)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    across, down = np.hypot(a, c), np.hypot(b, d)
    if not (across and down):
        return False, 0
    # The angle need not be a multiple of 90.
    return bool(mirrored), round(np.degrees(np.arctan2(b / down, a / across)) / 90) % 4


# EXIF's numbers of orientations, as `orientation` tells them.
_EXIF = {
    1: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 3),
    6: (False, 1),
    7: (True, 1),
    8: (False, 3),
}
_EXIF_BYTES = 1 << 16


def exif_orientation(file: IO[bytes]) -> tuple[bool, int] | None:
    """The orientation in the EXIF data of a JPEG file, as from :func:`orientation`, or None.

    PyAV before 19 does not distinguish mirrored images from turned ones.
    """
    file.seek(0)
    start = file.read(_EXIF_BYTES)
    at = start.find(b"Exif\0\0")
    if start[:2] != b"\xff\xd8" or at < 0:
        return None
    data = start[at + 6 :]
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(position: int, size: int) -> int:
        return int.from_bytes(data[position : position + size], order)

    entries = number(4, 4)
    for entry in range(entries + 2, entries + 2 + 12 * min(number(entries, 2), 1000), 12):
        if number(entry, 2) == 0x0112:  # Orientation.
            return _EXIF.get(number(entry + 8, 2))
    return None


class RGBConverter:
    """Converts the frames of one video, keeping the scaler between them since setting it up is slow.

    Every frame comes out at one size, even where the stream changes resolution half-way. An alpha channel
    is dropped, not composited.

    Args:
        first: A frame of the video; it fixes size and orientation.
        short_side: Shrink to this many pixels along the shorter side; never enlarges. None keeps the size.
        pixel_aspect: Width of a stored pixel over its height; the picture is stretched or squeezed along its
            width, so that pixels come out square.
        stored: Orientation of the stored picture, as from :func:`orientation`; None: read it from the frame.

    Attributes:
        size: Height and width of what comes out.
        turns: Clockwise quarter turns from the stored to the upright picture.
    """

    def __init__(
        self,
        first: av.VideoFrame,
        short_side: int | None,
        pixel_aspect: float = 1.0,
        stored: tuple[bool, int] | None = None,
    ) -> None:
        width, height = display_width(first.width, pixel_aspect), first.height
        scale = 1.0 if short_side is None else min(1.0, short_side / min(width, height))
        self._width, self._height = max(1, round(width * scale)), max(1, round(height * scale))
        self._mirrored, self.turns = orientation(first) if stored is None else stored
        self.size = (self._height, self._width) if self.turns % 2 == 0 else (self._width, self._height)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB uint8 ``[H, W, 3]``, upright."""
        shrinks = frame.width > self._width or frame.height > self._height
        rgb = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="rgb24",
            interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC,
        ).to_ndarray()
        return np.rot90(rgb[:, ::-1] if self._mirrored else rgb, -self.turns)


def display_width(width: int, pixel_aspect: float) -> int:
    """The width at which stored pixels of such an aspect are shown as squares."""
    return max(1, round(width * pixel_aspect))
