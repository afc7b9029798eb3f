from __future__ import annotations

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from clips import encode, numbered, numbers_of, save_image

from fluxvit.data.check import inspect_video
from fluxvit.video.limits import VideoLimits, claimed_samples, image_size, is_encrypted
from fluxvit.video.reader import VideoError, open_video


def gif_of(width: int, height: int) -> bytes:
    """A GIF of 43 bytes that claims so many pixels."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00" + bytes(3) + b"\xff\xff\xff"
    control = b"\x21\xf9\x04\x01\x00\x00\x00\x00"
    image = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\x00\x02\x02\x44\x01\x00"
    return head + control + image + b"\x3b"


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def bmp_of(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    )


@pytest.mark.parametrize(("suffix", "make"), [(".gif", gif_of), (".png", png_of), (".bmp", bmp_of)])
@pytest.mark.parametrize("size", [(16000, 16000), (65535, 1100)])
def test_a_giant_in_a_few_bytes_is_refused(tmp_path: Path, suffix: str, make, size: tuple[int, int]) -> None:
    path = tmp_path / f"giant{suffix}"
    path.write_bytes(make(*size))
    with path.open("rb") as file:
        assert image_size(file) == size
        assert file.tell() == 0
    with pytest.raises(
        VideoError, match=f"{size[0]}x{size[1]} pixels, more than the limit of.*FLUXVIT_MAX_PIXELS"
    ):
        open_video(path)
    with pytest.raises(VideoError, match="FLUXVIT_MAX_PIXELS"):
        open_video(make(*size))
    assert "FLUXVIT_MAX_PIXELS" in inspect_video(path)["error"]


def test_an_image_of_a_folder_is_bounded_too(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", numbered(1))
    (tmp_path / "2.png").write_bytes(png_of(16000, 16000))
    with open_video(tmp_path) as reader, pytest.raises(VideoError, match=r"2\.png.*FLUXVIT_MAX_PIXELS"):
        reader.read(reader.times)


def test_sizes_of_images_are_read_from_their_headers(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png", ".bmp"):
        path = save_image(tmp_path / f"image{suffix}", numbered(1, 120, 90))
        with path.open("rb") as file:
            assert image_size(file) == (120, 90)
    with encode(tmp_path / "clip.mp4", count=2).open("rb") as file:
        assert image_size(file) is None
    for start in (b"", b"GIF89a\x01", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0"):
        path.write_bytes(start)
        with path.open("rb") as file:
            assert image_size(file) is None


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (
            {"PIXELS": 128 * 96 - 1},
            "128x96 pixels.*limit of 12287; set FLUXVIT_MAX_PIXELS=12288",
        ),
        ({"FRAMES": 9}, "more frames than the limit of 9; set FLUXVIT_MAX_FRAMES"),
        (
            {"READ_BYTES": 128 * 96 * 3 * 10 - 1},
            "10 frames of 128x96.*FLUXVIT_MAX_READ_BYTES=368640",
        ),
    ],
)
def test_every_bound_is_one_line_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], reason: str
) -> None:
    path = encode(tmp_path / "clip.mp4", count=10)
    for name, limit in limits.items():
        monkeypatch.setenv(f"FLUXVIT_MAX_{name}", str(limit))
    with pytest.raises(VideoError, match=reason) as caught, open_video(path) as reader:
        reader.read(reader.times)
    assert "\n" not in str(caught.value)
    for name, limit in (("PIXELS", 128 * 96), ("FRAMES", 10), ("READ_BYTES", 128 * 96 * 3 * 10)):
        monkeypatch.setenv(f"FLUXVIT_MAX_{name}", str(limit))
    with open_video(path) as reader:
        assert len(reader.read(reader.times)) == 10


def test_many_huge_frames_in_a_small_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = gif_of(6000, 6000)
    frame = single[single.index(b"\x21\xf9") : -1]
    path = tmp_path / "many.gif"
    path.write_bytes(single[:-1] + frame * 99 + b"\x3b")
    with open_video(path) as reader, pytest.raises(VideoError, match=r"pixels in a byte.*PIXELS_PER_BYTE"):
        reader.read([0.0])
    with open_video(path.read_bytes()) as reader, pytest.raises(VideoError, match="PIXELS_PER_BYTE"):
        reader.times  # noqa: B018
    assert "PIXELS_PER_BYTE" in inspect_video(path)["error"]
    # As many frames of a size that people have.
    small = gif_of(600, 600)
    path.write_bytes(small[:-1] + frame * 99 + b"\x3b")
    with open_video(path) as reader:
        assert len(reader.times) == 100
    monkeypatch.setenv("FLUXVIT_MAX_PIXELS_PER_BYTE", "0")
    with pytest.raises(ValueError, match="FLUXVIT_MAX_PIXELS_PER_BYTE=0"):
        open_video(path)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9", "", "9" * 30, "٣"])
def test_a_bad_bound_names_its_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXVIT_MAX_PIXELS", text)
    with pytest.raises(ValueError, match="FLUXVIT_MAX_PIXELS"):
        VideoLimits.current()


def test_stretched_pixels_count_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24"))
        )
        container.mux(stream.encode())
    monkeypatch.setenv("FLUXVIT_MAX_PIXELS", str(128 * 48 - 1))
    with pytest.raises(VideoError, match="128x48"):
        open_video(path)


def test_a_number_of_samples_is_bounded_before_ffmpeg_lists_them(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "a.mov", "mjpeg", count=3, pix_fmt="yuvj420p", muxer={"movflags": "faststart"}, sound=True
    )
    with open_video(path) as reader:
        assert len(reader.times) == 3
    data = bytearray(path.read_bytes())
    for name, place, numbers in (("stsz", 8, (100, 10**9)), ("stts", 12, (10**9,)), ("stsc", 16, (10**9,))):
        start = data.index(name.encode()) + place
        data[start : start + 4 * len(numbers)] = b"".join(number.to_bytes(4, "big") for number in numbers)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="more frames than the limit of 4000000; set FLUXVIT_MAX_FRAMES"):
        open_video(path)


def test_a_large_image_in_a_video_is_not_called_damaged(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", "mjpeg", count=3, pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (60000).to_bytes(2, "big") * 2
    path.write_bytes(data)
    with pytest.raises(VideoError, match="60000x60000 pixels, more than the limit"):
        open_video(path)


@pytest.mark.parametrize(("flags", "claims"), [(b"\0\0\0\0", True), (b"\0\0\2\0", False)])
def test_samples_of_fragments_are_bounded_too(tmp_path: Path, flags: bytes, claims: bool) -> None:
    movflags = "frag_keyframe+empty_moov+default_base_moof"
    path = encode(tmp_path / "a.mp4", count=20, muxer={"movflags": movflags})
    with path.open("rb") as file:
        assert claimed_samples(file) == 0
    data = bytearray(path.read_bytes())
    # A run that says nothing of each sample takes 16 bytes, whatever their number. The rest becomes free.
    start = data.index(b"trun") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    run = struct.pack(">I4s4sI", 16, b"trun", flags, 5 * 10**7) + struct.pack(">I4s", length - 16, b"free")
    data[start : start + len(run)] = run
    path.write_bytes(data)
    with path.open("rb") as file:
        assert claimed_samples(file) == (5 * 10**7 if claims else 0)
    if claims:
        with pytest.raises(VideoError, match="more frames than the limit"):
            open_video(path)


@pytest.mark.parametrize("hidden", [b"free" * 1, b"\0\0\0\0", b"a b "])
def test_claims_behind_odd_boxes_are_found(tmp_path: Path, hidden: bytes) -> None:
    data = encode(tmp_path / "a.mp4", count=3).read_bytes()
    place = data.index(b"stsz")
    data = data[: place + 8] + struct.pack(">II", 100, 10**8) + data[place + 16 :]
    # A duration of one tick is that of uncompressed sound, which is not listed; this is a picture.
    place = data.index(b"stts")
    data = data[: place + 8] + struct.pack(">III", 1, 10**8, 1) + data[place + 20 :]
    start = data.index(b"moov") - 4
    index = struct.pack(">I4s", 8, hidden) * 1500 + data[start + 8 :]
    path = tmp_path / "b.mp4"
    path.write_bytes(data[:start] + struct.pack(">I4s", len(index) + 8, b"moov") + index)
    with pytest.raises(VideoError, match="more frames than the limit"):
        open_video(path)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_that_grow_beyond_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    suffix = {"libx264": ".h264", "libx265": ".hevc"}[codec]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    parts = [
        encode(tmp_path / f"{width}{suffix}", codec, count=5, size=(width, 192), options=options)
        for width in (256, 512)
    ]
    path = tmp_path / f"grows{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    monkeypatch.setenv("FLUXVIT_MAX_PIXELS", str(512 * 192 - 1))
    with pytest.raises(VideoError, match="512x192 pixels, more than"), open_video(path) as reader:
        reader.read(reader.times)
    assert "512x192" in inspect_video(path, deep=True)["error"]


def test_encrypted_pictures_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", count=3)
    with path.open("rb") as file:
        assert not is_encrypted(file)
    # The sample entry alone; FFmpeg decodes encrypted pictures to noise without an error.
    path.write_bytes(path.read_bytes().replace(b"avc1\0\0\0\0\0\0", b"encv\0\0\0\0\0\0"))
    with pytest.raises(VideoError, match="its pictures are encrypted; decrypt it first"):
        open_video(path)


def test_a_compressed_index_is_bounded(tmp_path: Path) -> None:
    # A gigabyte of zeros takes a megabyte; FFmpeg would unpack it.
    content = struct.pack(">I", 1 << 30) + zlib.compress(bytes(1000))
    packed = (
        struct.pack(">I4s4s", 12, b"dcom", b"zlib") + struct.pack(">I4s", len(content) + 8, b"cmvd") + content
    )
    inside = struct.pack(">I4s", len(packed) + 8, b"cmov") + packed
    path = tmp_path / "a.mov"
    path.write_bytes(
        b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + struct.pack(">I4s", len(inside) + 8, b"moov") + inside
    )
    with pytest.raises(VideoError, match="more frames than the limit"):
        open_video(path)
