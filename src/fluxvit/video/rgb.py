"""One decoded frame to an upright RGB array."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter


def quarter_turns(frame: av.VideoFrame) -> int:
    """Clockwise quarter turns (0 to 3) that make ``frame`` upright. Mirroring is ignored."""
    # FFmpeg counts counter-clockwise, and the angle need not be a multiple of 90.
    return round(-frame.rotation / 90) % 4


class RGBConverter:
    """Converts the frames of one video, keeping the scaler between them since setting it up is slow.

    Every frame comes out at one size, even where the stream changes resolution half-way. An alpha channel
    is dropped, not composited; the sample aspect ratio is ignored.

    Args:
        first: A frame of the video; it fixes size and rotation.
        short_side: Shrink to this many pixels along the shorter side; never enlarges. None keeps the size.
    """

    def __init__(self, first: av.VideoFrame, short_side: int | None) -> None:
        scale = 1.0 if short_side is None else min(1.0, short_side / min(first.width, first.height))
        self._width = round(first.width * scale)
        self._height = round(first.height * scale)
        self._turns = quarter_turns(first)
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
        )
        return np.rot90(rgb.to_ndarray(), -self._turns)
