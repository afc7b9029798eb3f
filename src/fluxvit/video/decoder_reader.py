"""Reads the frames of a ``VideoDecoder`` of torchcodec, or of an object like it. Imports no torchcodec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.video.base import VideoError
from fluxvit.video.frames_reader import FixedRateReader, Shrinker

_TICKS = 1_000_000  # Times are given to the decoder in microseconds.
_AT_ONCE = 16


def is_decoder(video: Any) -> bool:
    """Whether an object decodes a video as torchcodec's ``VideoDecoder`` does."""
    return hasattr(video, "get_frames_played_at") and hasattr(video, "metadata")


class DecoderReader(FixedRateReader):
    """Reads a video through a decoder that the caller has opened and configured.

    The decoder says which frame is shown at a time, also where the frame rate varies. ``times`` assumes a
    constant rate, because decoders do not list the times of their frames.

    Args:
        decoder: A decoder of uint8 RGB frames, in either order of dimensions, on any device.
        short_side: See `fluxvit.video.reader.open_video`.

    Raises:
        VideoError: The decoder knows no frames.
    """

    def __init__(self, decoder: Any, *, short_side: int | None = None) -> None:
        facts, name = decoder.metadata, "<decoder>"
        count, start, end = facts.num_frames, facts.begin_stream_seconds, facts.end_stream_seconds
        if not count or start is None or end is None or not end > start:
            raise VideoError.of(name, "it knows no frames, or not when they begin and end")
        size = facts.height, facts.width
        super().__init__(Path(name), count, count / (end - start), size, codec=facts.codec or "unknown")
        self._decoder, self._start, self._shrink = decoder, start, Shrinker(size, short_side)

    def _shown(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        super()._shown(times)  # Raises if they are not times.
        # The number of a frame is the time at which it is shown, after a little slack for rounded times.
        ticks = np.floor(np.asarray(times, np.float64) * _TICKS) + 1
        return ticks.clip(0, int(self.end * _TICKS) - 1).astype(np.int64)

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        for first in range(0, len(indices), _AT_ONCE):
            seconds = [self._start + tick / _TICKS for tick in indices[first : first + _AT_ONCE]]
            for image in self._decoder.get_frames_played_at(seconds).data.cpu():
                yield self._shrink(_pixels(image))


def _pixels(image: Any) -> np.ndarray:
    """An image of a decoder as uint8 ``[H, W, 3]``."""
    array = image.numpy()
    if array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1)
    if array.dtype != np.uint8 or array.shape[-1] != 3:
        raise ValueError(f"it gives frames {array.dtype} {list(array.shape)}, not uint8 RGB")
    return array
