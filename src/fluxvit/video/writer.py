"""Writes frames to a video file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fluxvit.utils.files import atomic_path
from fluxvit.video.frames_reader import checked_fps


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    *,
    gop: int = 8,
    crf: int = 23,
    preset: str = "veryfast",
) -> int:
    """Encode frames as H.264 and return how many were written.

    A short group of pictures (``gop``) makes random access cheap: at most ``gop`` frames are decoded to
    reach any one. Odd sizes are kept by falling back to 4:4:4 chroma. The file appears only when complete.
    One version of x264 writes the same bytes on every CPU.

    Args:
        path: Destination; its suffix chooses the container (``.mp4``, ``.mkv``, ``.mov``).
        frames: RGB frames, uint8 ``[H, W, 3]``, all of one size.
        fps: Frames per second, from one a day to 100 000.
        gop: Frames between key frames.
        crf: Constant rate factor of x264, 0 (lossless) to 51.
        preset: x264 speed preset.

    Raises:
        ValueError: There are no frames, they differ in size or have another shape or type, or ``fps``,
            ``gop`` or ``crf`` is out of range.
    """
    checked_fps(float(fps))
    if gop < 1 or not 0 <= crf <= 51:
        raise ValueError(f"gop must be at least 1 and crf from 0 to 51, got gop={gop}, crf={crf}")
    count, rate = 0, Fraction(fps).limit_denominator(1001 if fps >= 1 else 100_000)
    with atomic_path(path) as partial, av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        # The vector code of x264's macroblock tree rounds differently from one CPU to the next and, about
        # once in a thousand clips, from one run to the next.
        exact = {"x264-params": "cpu-independent=1"}
        stream.options = {"crf": str(crf), "preset": preset, "g": str(gop), "bf": "0", **exact}
        stream.codec_context.thread_count = 1
        for frame in frames:
            _check_image(frame, f"{path}: frame {count}")
            height, width = frame.shape[:2]
            if count == 0:
                stream.width, stream.height = width, height
                stream.pix_fmt = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
            elif (stream.width, stream.height) != (width, height):
                raise ValueError(
                    f"{path}: frame {count} is {width}x{height}, the first was {stream.width}x{stream.height}"
                )
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
            count += 1
        if count == 0:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode())
    return count


def _check_image(image: np.ndarray, name: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"{name}: a frame is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
