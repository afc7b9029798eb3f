from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
from clips import FPS, encode, numbered, numbers_of, save_image

from fluxvit.video import stream
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times
from fluxvit.video.stream import FileFrames, TimedFrames, open_stream
from fluxvit.video.writer import write_video


def feed(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``data`` come in through a pipe as standard input."""
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb") as file:
            file.write(data)

    Thread(target=write, daemon=True).start()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read_end))


def picks(times: list[float], period: float) -> list[int]:
    return [int(image) for image in TimedFrames(zip(times, range(99), strict=False)).sample(period)]


def test_frames_one_by_one_are_those_of_a_read(tmp_path: Path) -> None:
    with open_video(encode(tmp_path / "clip.mp4", count=30, options={"g": "5"})) as reader:
        times = [0.0, 0.0, 0.1, 0.5, 0.5, 0.52, 1.1, 7.0]
        assert numbers_of(np.stack(list(reader.walk(times)))) == numbers_of(reader.read(times))
        with pytest.raises(ValueError, match="must not fall"):
            list(reader.walk([0.5, 0.1]))


@pytest.mark.parametrize("frames", [1, 7, 8, 40])
def test_a_file_gives_the_frames_that_are_read_by_time(tmp_path: Path, frames: int) -> None:
    path = encode(tmp_path / "clip.mp4", count=30)
    with open_video(path) as reader:
        wanted = reader.read(segment_times(0, reader.end, frames))
        sampled = list(open_stream(str(path)).sample(reader.end / frames))
    np.testing.assert_array_equal(sampled, wanted)


@pytest.mark.parametrize("period", [0.03, 0.04, 0.17])
def test_a_pipe_gives_the_frames_of_the_file(
    tmp_path: Path, period: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "clip.mkv", count=30)
    feed(path.read_bytes(), monkeypatch)
    piped = list(open_stream("-").sample(period))
    np.testing.assert_array_equal(piped, list(open_stream(str(path)).sample(period)))


def test_a_folder_is_a_source_too(tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / f"{number}.png", numbered(number))
    assert numbers_of(np.stack(list(open_stream(str(tmp_path)).sample(1 / FPS)))) == [0, 1, 2, 3]


def test_frames_are_picked_by_their_times() -> None:
    # Shown for 1, 0.1, 0.9 and, as the one before, 0.9 seconds; samples at 0.25, 0.75, 1.25, ...
    assert picks([5.0, 6.0, 6.1, 7.0], 0.5) == [0, 0, 2, 2, 3, 3]
    assert picks([0.0, 1.0, 2.0], 2.0) == [1]  # At 1 s, by when the second frame is shown.
    assert picks([], 1.0) == picks([3.0], 1.0) == []


def test_a_clock_that_steps_back_goes_on() -> None:
    assert picks([10.0, 11.0, 12.0, 0.0, 1.0, 2.0], 1.0) == [0, 1, 2, 3, 4, 5]


def test_a_leap_of_the_clock_is_no_still_picture() -> None:
    assert picks([0.0, 1.0, 2.0, 1e9, 1e9 + 1], 1.0) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="finite seconds, got nan"):
        picks([0.0, float("nan")], 1.0)


def test_a_leap_of_the_clock_in_a_file(tmp_path: Path) -> None:
    pts = [0, 40, 80, 90_000_000, 90_000_040]
    source = open_stream(str(encode(tmp_path / "leap.mkv", count=5, pts=pts)))
    assert source.seconds == pytest.approx(0.2, abs=1e-3)
    assert numbers_of(np.stack(list(source.sample(0.04)))) == [0, 1, 2, 3, 4]


def test_many_samples_are_taken_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mp4", count=30)
    wanted = list(open_stream(str(path)).sample(0.03))
    monkeypatch.setattr(stream, "_SAMPLES_AT_ONCE", 7)
    np.testing.assert_array_equal(list(open_stream(str(path)).sample(0.03)), wanted)


def test_frames_in_memory_are_a_source() -> None:
    frames = np.stack([numbered(number) for number in range(4)])
    assert numbers_of(np.stack(list(FileFrames(frames, fps=10).sample(0.1)))) == [0, 1, 2, 3]


def test_only_sampled_frames_are_converted() -> None:
    converted: list[int] = []

    def convert(frame: int) -> np.ndarray:
        converted.append(frame)
        return np.array(frame)

    frames = ((k / 10, k) for k in range(20))
    assert len(list(TimedFrames(frames, convert=convert).sample(0.5))) == 4
    assert converted == [2, 7, 12, 17]


# What cannot be opened -------------------------------------------------------------------------------------


def test_a_terminal_is_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(ValueError, match="is a terminal; pipe a video"):
        open_stream("-")


@pytest.mark.parametrize("data", [b"", b"no video at all, whatever one does to it"])
def test_a_pipe_without_video(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(data, monkeypatch)
    with pytest.raises(VideoError, match=r"^standard input: .*use ffmpeg \.\.\. -f matroska"):
        open_stream("-")


def test_mp4_with_its_index_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", noise, FPS, crf=1)
    data = (tmp_path / "clip.mp4").read_bytes()
    feed(data, monkeypatch)
    assert len(data) > 2**16  # A smaller one fits into FFmpeg's buffer, in which it can go back.
    with pytest.raises(VideoError, match=r"use ffmpeg \.\.\. -f matroska"):
        list(open_stream("-").sample(0.1))


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("nowhere.mp4", {}, "nowhere.mp4: no such file"),
        ("clip.mp4", {"live": True}, "a file waits"),
        ("/dev/video97", {}, "is it connected, allowed, and not in use"),
        ("rtsp://127.0.0.1:9/x", {}, r"cannot be opened \(Connection refused\)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems say it in other words")
def test_what_cannot_be_opened(address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stream(address, **options)


@pytest.mark.parametrize(
    ("system", "address", "device", "name"),
    [
        ("linux", "camera:1", "v4l2", "/dev/video1"),
        ("linux", "/dev/video0", "v4l2", "/dev/video0"),
        ("darwin", "camera:FaceTime", "avfoundation", "FaceTime"),
        ("win32", "camera:My Cam", "dshow", "video=My Cam"),
    ],
)
def test_cameras_by_system(
    system: str, address: str, device: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    path = encode(tmp_path / "clip.mkv", count=3)
    really_open = av.open

    def fake_open(file: str, mode: str, *, format: str, **_: Any) -> Any:
        opened.append((file, format))
        return really_open(str(path))

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(av, "open", fake_open)
    source = open_stream(address)
    assert opened == [(name, device)]
    assert source.live
    assert len(list(source.sample(1 / FPS))) == 3


def test_what_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mkv", count=3)
    feed(path.read_bytes(), monkeypatch)
    assert not open_stream("-").live
    feed(path.read_bytes(), monkeypatch)
    assert open_stream("-", live=True).live
    really_open = av.open
    monkeypatch.setattr(av, "open", lambda *_, **__: really_open(str(path)))
    assert open_stream("rtsp://camera/1").live
    assert not open_stream("https://host/clip.mp4").live
    assert open_stream("https://host/clip.m3u8", live=True).live
