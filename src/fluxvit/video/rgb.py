"""One decoded frame to an upright RGB array."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter


def orientation(frame: av.VideoFrame) -> tuple[bool, int]:
    """Whether to mirror a frame left and right, and its clockwise quarter turns (0 to 3) after that.

    Cameras store a matrix with their pictures, and phones mirror the pictures of their front camera.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 lists no data of a frame if it does not know one kind of it, such as EXIF.
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


class RGBConverter:
    """Converts the frames of one video. It keeps the scaler between them, since setting it up is slow.

    All frames are converted to one size, even where the stream changes resolution half-way. An alpha channel
    is dropped, not composited.

    Args:
        first: A frame of the video; it fixes size and orientation.
        short_side: Shrink to this many pixels along the shorter side; never enlarges. None keeps the size.
        pixel_aspect: Width of a stored pixel over its height. The picture is stretched or squeezed along its
            width to make its pixels square.

    Attributes:
        shown: Height and width of the upright picture, before it is shrunk.
        turns: Clockwise quarter turns from the stored to the upright picture.
    """

    def __init__(
        self, first: av.VideoFrame, short_side: int | None = None, pixel_aspect: float = 1.0
    ) -> None:
        width, height = display_width(first.width, pixel_aspect), first.height
        scale = 1.0 if short_side is None else min(1.0, short_side / min(width, height))
        self._width, self._height = max(1, round(width * scale)), max(1, round(height * scale))
        self._mirrored, self.turns = orientation(first)
        self.shown = (height, width) if self.turns % 2 == 0 else (width, height)
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
    """The width at which stored pixels of this aspect are shown as squares."""
    return max(1, round(width * pixel_aspect))
