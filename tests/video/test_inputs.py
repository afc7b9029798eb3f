"""Videos that are given as bytes, files or frames."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import encode, numbered, numbers_of

from fluxvit.video.inputs import as_file
from fluxvit.video.reader import VideoError, open_video, probe
from fluxvit.video.transforms import read_clips, resize_and_crop, to_tensor

FRAMES = np.stack([numbered(number) for number in range(6)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("clips") / "clip.mp4", count=30, options={"g": "5"})


def test_the_content_of_a_file_is_read_as_the_file(clip: Path) -> None:
    times = [0.9, 0.1, 1.1, 0.5]
    with open_video(clip) as reader:
        wanted = reader.read(times)
    data = clip.read_bytes()
    with (
        clip.open("rb") as file,
        clip.open("rb", buffering=0) as raw,
        tempfile.SpooledTemporaryFile() as spool,
    ):
        spool.write(data)  # And it stands at its end.
        for video in (data, bytearray(data), memoryview(data), io.BytesIO(data), file, raw, spool):
            with open_video(video) as reader:
                np.testing.assert_array_equal(reader.read(times), wanted)
                assert str(reader.info.path).startswith("<")
        # They stay open, and can be read again.
        assert not file.closed
        assert probe(file).frames == 30


def test_compressed_files_are_files(clip: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "clip.gz", "wb") as packed:
        packed.write(clip.read_bytes())
    with gzip.open(tmp_path / "clip.gz", "rb") as file, open_video(file) as reader:
        assert numbers_of(reader.read([0.0, 0.4])) == [0, 10]


@pytest.mark.parametrize(
    "video",
    [
        FRAMES,
        torch.from_numpy(FRAMES),
        list(FRAMES),
        tuple(FRAMES),
        list(torch.from_numpy(FRAMES)),
        FRAMES[::-1][::-1],
    ],
    ids=["array", "tensor", "list", "tuple", "tensors", "view"],
)
def test_frames_in_memory(video: Any) -> None:
    with open_video(video, fps=10) as reader:
        assert (reader.info.frames, reader.info.fps, reader.end) == (6, 10, 0.6)
        np.testing.assert_array_equal(reader.read([0.55, 0.0, 0.21]), FRAMES[[5, 0, 2]])
    with open_video(video, short_side=48) as reader:
        assert reader.end == 6 / 25
        small = reader.read(reader.times)
        assert small.shape == (6, 48, 64, 3)
        assert numbers_of(small) == list(range(6))


def test_frames_that_cannot_be_written_to() -> None:
    frames = np.broadcast_to(FRAMES[0], FRAMES.shape)
    with open_video(frames) as reader:
        (found,) = read_clips(reader, [(reader.times, (48, 64))])
    assert numbers_of(found) == [0] * 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pil_images(mode: str) -> None:
    images = pytest.importorskip("PIL.Image")
    grey = np.repeat(FRAMES.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    video = [images.fromarray(frame).convert(mode) for frame in grey]
    with open_video(video) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(6))
    with pytest.raises(ValueError, match=r"or a VideoDecoder .*, not an object of type Image"):
        open_video(video[0])


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (None, "not an object of type NoneType"),
        (3, "of type int"),
        ({"path": "x"}, "of type dict"),
        ((frame for frame in FRAMES), "of type generator"),
        ([], "without frames"),
        (FRAMES[:0], "at least one frame"),
        (FRAMES / 255, r"got float64 \[6, 96, 128, 3\]; for values from 0 to 1: \(255 \* frames\)"),
        (torch.rand(4, 8, 8, 3, requires_grad=True), "got float32.*; for values from 0 to 1"),
        (FRAMES.astype(np.int64), "got int64.*; convert"),
        (FRAMES.transpose(0, 3, 1, 2), r"got uint8 \[6, 3, 96, 128\]; .* permute\(0, 2, 3, 1\)"),
        (torch.zeros(3, 8, 96, 128, dtype=torch.uint8), r"permute\(1, 2, 3, 0\)"),
        (FRAMES[..., :1], r"got uint8 \[6, 96, 128, 1\]$"),
        (FRAMES[0], r"got uint8 \[96, 128, 3\]$"),
        (FRAMES[None], r"got uint8 \[1, 6, 96, 128, 3\]$"),
        (np.zeros(50, np.uint8), r"got uint8 \[50\]$"),
        ([FRAMES[0], FRAMES[1, :50]], "frame 1 is 128x50, the first is 128x96"),
        ([FRAMES[0], FRAMES[1].transpose(2, 0, 1)], r"frame 1 must be uint8 \[H, W, 3\].*permute\(1, 2, 0\)"),
        ([FRAMES[0], None], "item 1 of the list is of type NoneType"),
        (["a.mp4", "b.mp4"], "item 0 of the list is of type str; .*videos are given one by one"),
        (b"", "<bytes>: it is empty"),
        (b"no video whatever one does to it", "<bytes>: not a video"),
        (io.BytesIO(), "<file>: it is empty"),
        (io.StringIO("text"), r"<file>: .*gives str, not bytes.*open\(path, 'rb'\)"),
        ("", "the path of the video is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_video_says_what_to_do(video: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_video(video)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(clip: Path) -> None:
    file = clip.open("rb")
    file.close()
    with pytest.raises(VideoError, match=r"clip\.mp4>: not a seekable binary file \(.*closed file"):
        open_video(file)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe:
        os.write(write_end, b"0123")
        os.close(write_end)
        with pytest.raises(VideoError, match=r"not a seekable binary file .*or give its content: file\.read"):
            open_video(pipe)

    class Upload:
        async def read(self, size: int) -> bytes:
            return b""

    with pytest.raises(VideoError, match=r"its read\(\) gives coroutine, not bytes"):
        open_video(Upload())  # type: ignore[arg-type]


def test_errors_of_a_file_are_errors_of_the_video(clip: Path) -> None:
    class Failing(io.BytesIO):
        fails = False

        def read(self, size: int | None = -1) -> bytes:
            if self.fails and size:
                raise KeyError("the storage is gone")
            return super().read(size)

    file = Failing(clip.read_bytes())
    _, borrowed = as_file(file)
    file.fails = True
    with pytest.raises(VideoError, match=r"<file>: cannot be read \(KeyError: 'the storage is gone'"):
        borrowed.read(100)
    with pytest.raises(VideoError, match=r"<file>: cannot be read"):
        open_video(file)


def test_a_path_as_bytes_is_refused(clip: Path) -> None:
    with pytest.raises(VideoError, match="this is a path, not a video"):
        open_video(os.fsencode(clip))


@pytest.mark.parametrize("kind", [str, Path])
def test_addresses_are_not_opened(kind: Callable[[str], Any], tmp_path: Path) -> None:
    for scheme in ("http", "https", "rtsp", "s3", "file"):
        with pytest.raises(VideoError, match=r"an address, not a path; open it as a file, such as"):
            open_video(kind(f"{scheme}://127.0.0.1:9/clip.mp4"))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e-9, 1e9, "25"])
def test_rates_out_of_range(fps: Any) -> None:
    with pytest.raises(ValueError, match="fps must be a number of frames per second"):
        open_video(FRAMES, fps=fps)


def test_a_file_in_memory_knows_its_rate(clip: Path) -> None:
    with pytest.raises(ValueError, match="<bytes>: fps is only for folders"):
        open_video(clip.read_bytes(), fps=10)


@pytest.mark.parametrize("size", [(40, 40), (24, 56), (96, 128), (200, 100)])
def test_clips_are_those_of_a_read(clip: Path, size: tuple[int, int]) -> None:
    # Times may repeat and fall, and clips may share some.
    first, second = np.array([0.1, 0.1, 1.0, 0.4]), np.array([0.0, 0.4])
    with open_video(clip) as reader:
        found = read_clips(reader, [(first, size), (second, None), (second, size)])
        wanted = resize_and_crop(to_tensor(reader.read(first)), size).permute(1, 2, 3, 0)
        np.testing.assert_array_equal(found[0], wanted)
        np.testing.assert_array_equal(found[1], reader.read(second))
        np.testing.assert_array_equal(found[2][1], wanted[3])


def test_bytes_with_gaps_and_files_for_writing(tmp_path: Path) -> None:
    content = encode(tmp_path / "a.mp4", count=3).read_bytes()
    with open_video(memoryview(b"".join(bytes([byte, 0]) for byte in content))[::2]) as reader:
        assert len(reader.times) == 3
    with (
        (tmp_path / "b.mp4").open("wb") as file,
        pytest.raises(VideoError, match="not a seekable binary file"),
    ):
        open_video(file)


class _Unreadable:
    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("no\nway")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.empty(4, 8, 8, 3, dtype=torch.uint8, device="meta"), "frames cannot be read from type Tensor"),
        (
            torch.zeros(2, 8, 8, 3, dtype=torch.uint8).to_sparse(),
            "frames cannot be read from type Tensor.*dense",
        ),
        (torch.zeros(2, 8, 8, 3, dtype=torch.bfloat16), "must be uint8.*for values from 0 to 1"),
        (_Unreadable(), r"frames cannot be read from type _Unreadable \(no way\)"),
    ],
)
def test_arrays_without_content_are_one_line(frames: Any, message: str) -> None:
    for video in (frames, [frames]):
        with pytest.raises(ValueError, match=message if video is frames else "frame") as caught:
            open_video(video)
        assert "\n" not in str(caught.value)


class Decoder:
    """Decodes frames of given times as torchcodec does; frame k is filled with k."""

    def __init__(self, starts: list[float], end: float, *, channels_last: bool = False) -> None:
        self.starts, self.channels_last = np.array(starts), channels_last
        self.metadata = SimpleNamespace(
            num_frames=len(starts),
            begin_stream_seconds=starts[0],
            end_stream_seconds=end,
            height=24,
            width=32,
            codec="h264",
        )

    def get_frames_played_at(self, seconds: list[float]) -> SimpleNamespace:
        assert self.starts[0] <= min(seconds)
        assert max(seconds) < self.metadata.end_stream_seconds
        shown = np.searchsorted(self.starts, seconds, side="right") - 1
        frames = torch.tensor(shown, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 24, 32)
        return SimpleNamespace(data=frames.permute(0, 2, 3, 1) if self.channels_last else frames)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_decoder_says_which_frame_is_shown(channels_last: bool) -> None:
    # The rate varies, and the first frame is at 1.5 seconds.
    decoder = Decoder([1.5, 1.6, 2.5, 3.0], 3.5, channels_last=channels_last)
    with open_video(decoder) as reader:
        assert (reader.end, reader.fps) == (2, 2)
        clip = reader.read([0, 0.1, 0.99, 1.0, 1.7, 9, -1, 0.05])
        assert clip.shape == (8, 24, 32, 3)
        assert clip[:, 0, 0, 0].tolist() == [0, 1, 1, 2, 3, 3, 0, 0]
        assert (clip == clip[:, :1, :1, :1]).all()
        assert [image[0, 0, 0] for image in reader.walk(np.linspace(0, 1.99, 40))][::13] == [0, 1, 2, 3]
    with open_video(decoder, short_side=12) as reader:
        assert reader.read([0]).shape == (1, 12, 16, 3)


def test_decoders_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="a decoder knows its own"):
        open_video(Decoder([0, 1], 2), fps=3)
    decoder = Decoder([0, 1], 2)
    decoder.metadata.num_frames = 0
    with pytest.raises(VideoError, match="<decoder>: it knows no frames"):
        open_video(decoder)
    decoder = Decoder([0, 1], 2)
    decoder.get_frames_played_at = lambda seconds: SimpleNamespace(data=torch.zeros(len(seconds), 3, 24, 32))
    with pytest.raises(VideoError, match="not uint8 RGB"):
        open_video(decoder).read([0])
