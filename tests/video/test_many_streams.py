"""Files with several picture streams, with pixels that are not square, with mirrored pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import encode, numbered, numbers_of

from fluxvit.data.check import inspect_video
from fluxvit.video.reader import open_video


def with_streams(path: Path, *streams: tuple[str, tuple[int, int], int, int]) -> Path:
    """Picture streams of (codec, (width, height), frames, disposition); stream n counts from 50 * n."""
    with av.open(str(path), "w") as container:
        made: list[Any] = []
        for codec, (width, height), _, disposition in streams:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            stream.disposition = disposition
            made.append(stream)
        for number, (stream, (_, size, count, _)) in enumerate(zip(made, streams, strict=True)):
            for index in range(count):
                image = numbered(50 * number + index, *size)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return path


DEFAULT, COVER = 1, 1024
SMALL, LARGE = (128, 96), (160, 120)


@pytest.mark.parametrize(
    ("streams", "first"),
    [
        # The default stream, be it smaller or later.
        ((("libx264", LARGE, 10, 0), ("libx264", SMALL, 10, DEFAULT)), 50),
        # The largest, if the file marks none or all.
        ((("libx264", SMALL, 10, 0), ("libx264", LARGE, 10, 0)), 50),
        ((("libx264", SMALL, 10, DEFAULT), ("libx264", LARGE, 10, DEFAULT)), 50),
        # The first of equals.
        ((("libx264", SMALL, 10, 0), ("libx264", SMALL, 10, 0)), 0),
        # No cover, however large and early, marked as such or not.
        ((("mjpeg", LARGE, 1, COVER), ("libx264", SMALL, 10, 0)), 50),
        ((("mjpeg", LARGE, 1, DEFAULT), ("libx264", SMALL, 10, 0)), 50),
        ((("png", LARGE, 1, 0), ("libx264", SMALL, 10, 0)), 50),
        # No single frame of any codec beside a video, as in animations in AVIF.
        ((("libx264", LARGE, 1, DEFAULT), ("libx264", SMALL, 10, 0)), 50),
        # Motion JPEG is a video all the same.
        ((("mjpeg", SMALL, 10, 0),), 0),
    ],
)
def test_the_main_stream_is_read(tmp_path: Path, streams: Any, first: int) -> None:
    path = with_streams(
        tmp_path
        / (
            "several.mov"
            if streams[0][0] == "png" or streams[0][3] == COVER or streams[0][2] == 1
            else "several.mkv"
        ),
        *streams,
    )
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(first, first + 10))
    assert inspect_video(path, deep=True)["ok"]


@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(8, 9), Fraction(2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pixels_come_out_square(tmp_path: Path, aspect: Fraction, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 90, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number, 90, 64), format="rgb24")))
        container.mux(stream.encode())
    width = round(90 * aspect)
    with open_video(path) as reader:
        assert (reader.info.width, reader.info.height) == (width, 64)
        assert reader.info.pixel_aspect == pytest.approx(float(aspect))
        frames = reader.read(reader.times)
        assert frames.shape == (5, 64, width, 3)
        assert numbers_of(frames) == list(range(5))
    with open_video(path, short_side=32) as reader:
        shown = reader.read([0.0]).shape[1:3]
        assert min(shown) == 32
        assert max(shown) / 32 == pytest.approx(max(width, 64) / min(width, 64), abs=0.04)
    facts = inspect_video(path)
    assert (facts["width"], facts["height"]) == (width, 64)
    assert facts["pixel_aspect"] == round(float(aspect), 4)


def test_square_pixels_are_not_remarked_upon(tmp_path: Path) -> None:
    assert "pixel_aspect" not in inspect_video(encode(tmp_path / "clip.mp4", count=2))


def corners(image: np.ndarray) -> str:
    """Which of four grey levels (1 to 4) lies in the upper left and right, and the lower left and right."""
    spots = image[[4, 4, -5, -5], [4, -5, 4, -5]].mean(-1)
    return "".join(str(round(level / 60) + 1) for level in spots)


MATRICES = {
    (1, 0, 0, 1): "1234",
    (-1, 0, 0, 1): "2143",  # Mirrored left and right.
    (1, 0, 0, -1): "3412",
    (-1, 0, 0, -1): "4321",
    (0, 1, -1, 0): "3142",  # A quarter turn clockwise.
    (0, -1, 1, 0): "2413",
    (0, 1, 1, 0): "1324",  # Mirrored along the diagonals.
    (0, -1, -1, 0): "4231",
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_pictures_are_shown_as_the_camera_meant(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    for number, (top, left) in enumerate(((0, 0), (0, 32), (32, 0), (32, 32))):
        image[top : top + 32, left : left + 32] = 60 * number
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    # The matrix of the track header (tkhd, version 0) begins 44 bytes behind the box's name.
    at = data.index(b"tkhd") + 44
    for place, value in zip((0, 1, 3, 4), matrix, strict=True):
        data[at + 4 * place : at + 4 * place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    with open_video(path) as reader:
        assert corners(reader.read([0.0])[0]) == MATRICES[matrix]
