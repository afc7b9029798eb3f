"""The two pixel operations with which everything is drawn."""

from __future__ import annotations

import numpy as np


def bilinear(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sample ``image``, float32 ``[H, W, C]``, at pixel coordinates ``y`` and ``x``, both ``[...]``.

    Coordinates outside are moved to the nearest edge. Returns float32 ``[..., C]``.
    """
    height, width = image.shape[:2]
    pixels = image.reshape(height * width, -1)
    y = np.clip(y, 0, height - 1.001)
    x = np.clip(x, 0, width - 1.001)
    row, column = y.astype(np.int32), x.astype(np.int32)
    # A float32 minus an int32 would be a float64, and slow down all that follows.
    weight_y = (y - row).astype(np.float32)[..., None]
    weight_x = (x - column).astype(np.float32)[..., None]
    index = row * width + column
    # Gathering first and mixing in place takes about half the time of one weighted sum of four gathers.
    top = pixels.take(index, 0)
    top += (pixels.take(index + 1, 0) - top) * weight_x
    bottom = pixels.take(index + width, 0)
    bottom += (pixels.take(index + width + 1, 0) - bottom) * weight_x
    top += (bottom - top) * weight_y
    return top


def shifted_crop(image: np.ndarray, y: float, x: float, height: int, width: int) -> np.ndarray:
    """Crop whose top left corner lies at a sub-pixel position inside ``image``, float32 ``[H, W, C]``."""
    row, column = int(y), int(x)
    weight_y, weight_x = np.float32(y - row), np.float32(x - column)
    crop = image[row : row + height + 1, column : column + width + 1]
    crop = crop[:, :-1] + (crop[:, 1:] - crop[:, :-1]) * weight_x
    return crop[:-1] + (crop[1:] - crop[:-1]) * weight_y
