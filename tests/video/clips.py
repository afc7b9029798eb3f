"""Clips for tests: every frame carries its number, so that a wrong frame is noticed."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8
FPS = 25


def numbered(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` whose upper half shows ``number`` as eight dark or bright blocks."""
    image = np.full((height, width, 3), 96, dtype=np.uint8)
    # Something that moves, so that frames depend on each other as they do in real video.
    left = number * 3 % (width - 16)
    image[-height // 3 :, left : left + 16] = (200, 60, 40)
    for bit in range(BITS):
        block = slice(bit * width // BITS, (bit + 1) * width // BITS)
        image[: height // 2, block] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: np.ndarray) -> int:
    """The number in an image made by `numbered`, whatever its size."""
    height, width = image.shape[:2]
    blocks = np.array_split(image[height // 8 : height // 3].mean(axis=(0, 2)), BITS)
    margin = max(1, width // BITS // 4)
    return sum(int(block[margin:-margin].mean() > 128) << bit for bit, block in enumerate(blocks))


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(image) for image in frames]


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 60,
    size: tuple[int, int] = (128, 96),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    rotation: float | None = None,
    muxer: dict[str, str] | None = None,
    sound: bool = False,
    metadata: dict[str, str] | None = None,
    start: int = 0,
) -> Path:
    """Write ``count`` numbered frames, from number ``start`` on, of ``size`` = (width, height) to ``path``.

    ``pts`` are hand-set times in milliseconds, otherwise frames come at `FPS`. ``rotation`` is the display
    rotation in FFmpeg's counter-clockwise degrees.
    """
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=FPS)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.options = options or {}
        container.metadata.update(metadata or {})
        stream.codec_context.thread_count = 1
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            audio: Any = container.add_stream("aac", rate=16000)
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            tone.sample_rate = 16000
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(start + number, *size), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            container.mux(audio.encode(tone))
            container.mux(audio.encode())
    if rotation is not None:
        _rotate(path, rotation)
    return path


def _rotate(path: Path, degrees: float) -> None:
    """Set the display rotation of an MP4 file; PyAV can from version 16 on only."""
    content = bytearray(path.read_bytes())
    angle = math.radians(degrees)
    a, b = round(math.cos(angle) * 2**16), round(math.sin(angle) * 2**16)
    matrix = struct.pack(">9i", a, -b, 0, b, a, 0, 0, 0, 2**30)
    place = content.index(b"tkhd") + 44
    content[place : place + len(matrix)] = matrix
    path.write_bytes(content)


def encode_sound(path: Path) -> Path:
    """One second of silence, without pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def save_image(path: Path, image: np.ndarray) -> Path:
    """Write one image in the format of the suffix."""
    codec, pix_fmt = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p"), ".bmp": ("bmp", "bgr24")}[
        path.suffix
    ]
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width = image.shape[:2]
    context.pix_fmt = pix_fmt
    context.time_base = Fraction(1, FPS)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format=pix_fmt)
    frame.pts = 0
    packets = context.encode(frame) + context.encode(None)
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


def cut_short(path: Path, part: float) -> Path:
    """Keep the first ``part`` of the bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path
