"""A sheet of thumbnails: a row of frames for each window that was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fluxvit.deploy.search.database import Hit
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times
from fluxvit.video.transforms import resize_and_crop, to_tensor

_GAP = 4


def thumbnail_sheet(hits: Sequence[Hit], frames: int = 6, height: int = 112) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]``: the hits from top to bottom, ``frames`` of each from left to right.

    A row whose video cannot be read any more is grey.

    Raises:
        ValueError: There are no hits.
    """
    if not hits:
        raise ValueError("nothing was found that a sheet could show")
    width = height * 4 // 3
    rows = []
    for hit in hits:
        row = np.full((frames, height, width, 3), 128, np.uint8)
        try:
            with open_video(hit.path, short_side=height) as reader:
                clip = reader.read(segment_times(hit.start, min(hit.end, reader.end), frames))
            row = resize_and_crop(to_tensor(clip), (height, width)).permute(1, 2, 3, 0).numpy()
        except Exception:  # Whatever a decoder thinks of next: the other rows are shown.
            pass
        rows.append(_joined(list(row), axis=1))
    return _joined(rows, axis=0)


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Pictures side by side or one below the other, with white between them."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)
