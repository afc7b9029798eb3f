"""Frames decoded by torchcodec, an optional backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from fluxvit.video.base import TimedReader, VideoError
from fluxvit.video.pyav_reader import PyAVReader
from fluxvit.video.rgb import RGBConverter


class TorchCodecReader(TimedReader):
    """Reads a video file through torchcodec in its exact seek mode.

    Frame times, facts and errors on opening are those of `PyAVReader`, so that both backends answer the same
    question with the same frame.

    Raises:
        ValueError: torchcodec is not installed, or finds no FFmpeg libraries.
        VideoError: As in `PyAVReader`.
    """

    def __init__(self, path: str | Path, *, short_side: int | None = None, threads: int = 1) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(
                f"backend 'torchcodec' cannot be loaded ({str(error).strip().splitlines()[0]}); "
                "pip install 'fluxvit[torchcodec]' and install FFmpeg, or use backend='pyav'"
            ) from None
        self._clock = PyAVReader(path)
        self.info = self._clock.info
        self._short_side = short_side
        try:
            self._decoder = VideoDecoder(
                str(path), dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode="exact"
            )
        except RuntimeError as error:
            self._clock.close()
            raise self._failed(error) from None

    @property
    def times(self) -> np.ndarray:
        return self._clock.times

    @property
    def end(self) -> float:
        return self._clock.end

    def close(self) -> None:
        self._clock.close()

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        starts = self._clock.contents.origin + self.times[indices]
        ends = self._clock.contents.origin + np.append(self.times, self.end)[np.array(indices) + 1]
        # The middle of a frame's time on screen, where no rounding can turn it into a neighbour.
        middles = (starts + ends) / 2
        metadata = self._decoder.metadata
        last = np.nextafter(metadata.end_stream_seconds, -np.inf)
        try:
            batch = self._decoder.get_frames_played_at(
                middles.clip(metadata.begin_stream_seconds, last).tolist()
            )
        except RuntimeError as error:
            raise self._failed(error) from None
        # In AVI, MPEG-PS, MPEG-TS and intra-refresh streams 0.13 was seen to return other frames, silently.
        found = batch.pts_seconds.numpy()
        if np.any(np.abs(found - starts) > (ends - starts) / 2):
            raise self._failed(RuntimeError("it returns frames of other times"))
        for image in batch.data.numpy():
            # torchcodec has already turned the image upright.
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            yield RGBConverter(frame, self._short_side)(frame)

    def _failed(self, error: RuntimeError) -> VideoError:
        return VideoError.of(
            self.info.path, f"torchcodec fails on it ({str(error).splitlines()[0]}); try backend='pyav'"
        )
