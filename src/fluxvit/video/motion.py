"""Motion from the stream: the vectors by which a codec predicts the blocks of a frame from other frames.

H.264 and the codecs of the MPEG family tell them while they decode; FFmpeg gives none for HEVC, VP9 and AV1.
The motion of the camera, the median vector of a frame, is removed. Key frames have no vectors and count for
nothing. A block of another frame that has none is new content, and counts as if it moved fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np

# Side of the smallest blocks in pixels: FFmpeg gives one vector for the parts of an 8x8 block.
_BLOCK = 8
# Pixels by which a block without a vector counts as moving. MotionWorld was classified better with 8 and 16
# than with 0.
_NEW = 8.0
# The camera's motion is the median of about so many blocks.
_SAMPLES = 1000


@dataclass(frozen=True)
class BlockMotion:
    """The motion of the blocks of an upright picture.

    Args:
        pixels: Mean movement of each block in stored pixels a frame, float32 ``[R, C]``.
        down, across: Borders of the rows and of the columns, from 0 to 1 of the picture, ``[R + 1]`` and
            ``[C + 1]``.
    """

    pixels: np.ndarray
    down: np.ndarray
    across: np.ndarray

    def cells(self, box: tuple[float, float, float, float], shape: tuple[int, int]) -> np.ndarray:
        """Mean motion in each cell of a part of the picture, float32 of ``shape``.

        Args:
            box: Top, left, bottom and right of the part, from 0 to 1 of the picture.
            shape: Rows and columns of equal cells.
        """
        top, left, bottom, right = box
        rows = _overlaps(np.linspace(top, bottom, shape[0] + 1), self.down)
        return rows @ self.pixels @ _overlaps(np.linspace(left, right, shape[1] + 1), self.across).T


class MotionMeter:
    """Sums the motion of decoded frames, block by block.

    Attributes:
        orientation: Whether stored frames are mirrored left and right for display, and the clockwise quarter
            turns after that.
    """

    def __init__(self) -> None:
        self.orientation = False, 0
        self._total: np.ndarray | None = None
        self._count, self._size = 0, (0, 0)

    def add(self, frame: av.VideoFrame) -> None:
        """Add a frame, unless it has no vectors."""
        try:
            data: Any = frame.side_data.get("MOTION_VECTORS")
        except ValueError:  # PyAV 18 lists no data of a frame if it does not know one kind of it.
            return
        if data is None or not len(data):
            return
        motion = _motion(data.to_ndarray(), frame.height, frame.width)
        if self._total is None or self._total.shape != motion.shape:
            self._total, self._count, self._size = motion, 0, (frame.height, frame.width)
        else:
            self._total += motion
        self._count += 1

    def take(self) -> BlockMotion | None:
        """The mean of the frames since the last call; None if no frame had vectors."""
        if self._total is None:
            return None
        pixels, (height, width) = self._total / self._count, self._size
        self._total = None
        down, across = _borders(height), _borders(width)
        mirrored, turns = self.orientation
        if mirrored:
            pixels, across = pixels[:, ::-1], 1 - across[::-1]
        for _ in range(turns):
            pixels, down, across = np.rot90(pixels, -1), across, 1 - down[::-1]
        return BlockMotion(pixels, down, across)


def _motion(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """Movement of each block relative to the camera, float32 ``[R, C]``."""
    # Whole macroblocks of 16x16 pixels, each of four blocks.
    rows, columns = 2 * -(-height // (2 * _BLOCK)), 2 * -(-width // (2 * _BLOCK))
    fastest = np.full(rows * columns, np.nan, np.float32)
    past = vectors["source"] < 0
    # A block of a B-frame may have a vector of each kind.
    for part in (vectors,) if past.all() or not past.any() else (vectors[past], vectors[~past]):
        np.fmax(fastest, _speeds(part, rows, columns), out=fastest)
    speeds = np.where(np.isnan(fastest), np.float32(_NEW), fastest).reshape(rows, columns)
    return speeds[: -(-height // _BLOCK), : -(-width // _BLOCK)]


def _speeds(vectors: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Movement of each block relative to the camera, float32 ``[R * C]``; NaN where there is no vector."""
    across, down = vectors["w"] // _BLOCK, vectors["h"] // _BLOCK
    left = (vectors["dst_x"] - vectors["w"] // 2) // _BLOCK
    top = (vectors["dst_y"] - vectors["h"] // 2) // _BLOCK
    scale = np.maximum(vectors["motion_scale"], 1).astype(np.float32)
    steps = vectors["motion_x"] / scale + 1j * (vectors["motion_y"] / scale)
    inside = (left >= 0) & (top >= 0) & (left + across <= columns) & (top + down <= rows)
    first = top.astype(np.intp) * columns + left  # Vectors have 16 bits, which large frames exceed.
    field = np.full(rows * columns, np.nan, np.complex64)
    field[first[inside]] = steps[inside]
    for offset, larger in ((1, across > 1), (columns, down > 1), (columns + 1, (across > 1) & (down > 1))):
        chosen = inside & larger
        field[first[chosen] + offset] = steps[chosen]
    known = field[~np.isnan(field)]
    if len(known):
        some = known[:: 1 + len(known) // _SAMPLES]
        field -= np.complex64(np.median(some.real) + 1j * np.median(some.imag))
    return np.abs(field)


def _borders(length: int) -> np.ndarray:
    """Borders of the blocks along a side, from 0 to 1; the last block may be cut."""
    return np.minimum(np.arange(0, length + _BLOCK, _BLOCK), length) / length


def _overlaps(cells: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The share of each cell that each block covers, float32 ``[cells, blocks]``, from their borders."""
    ends, starts = np.minimum(cells[1:, None], blocks[1:]), np.maximum(cells[:-1, None], blocks[:-1])
    return (np.maximum(ends - starts, 0) / (cells[1:] - cells[:-1])[:, None]).astype(np.float32)
