"""Folders of images: which of them are the video."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from clips import numbered, numbers_of, save_image

from fluxvit.data.check import inspect_video
from fluxvit.video.reader import VideoError, open_video


def names(prefix: str, numbers: range, suffix: str = ".jpg") -> list[str]:
    return [f"{prefix}{number:05d}{suffix}" for number in numbers]


IMAGES = names("img_", range(1, 12))
FLOW = names("flow_x_", range(1, 11)) + names("flow_y_", range(1, 11))


def fill(folder: Path, files: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    image = save_image(folder.parent / "image.jpg", numbered(0)).read_bytes()
    for name in files:
        (folder / name).write_bytes(image)
    return folder


def chosen(folder: Path, **options: int) -> list[str]:
    with open_video(folder, **options) as reader:
        return [file.name for file in reader._files]


@pytest.mark.parametrize(
    "others",
    [
        ["Thumbs.db", "cover.jpg", "poster.png", "preview.jpg", "folder.jpg"],
        ["img_00001 (1).jpg", "img_00002 - Copy.jpg", "img_00003 copy 2.jpg", "img_00004(1).jpg"],
        ["mask_00003.png"],
    ],
)
def test_images_that_are_no_frames_are_passed_over(tmp_path: Path, others: list[str]) -> None:
    assert chosen(fill(tmp_path / "f", IMAGES + others)) == IMAGES


@pytest.mark.parametrize(
    "files",
    [
        ["1²2.png", "3.png"],  # A superscript is a digit to Python, but no number.
        ["٣.png", "٤.png"],
        ["a.jpg", "b.jpg", "c.png"],
        [f"frame ({number}).jpg" for number in range(1, 12)],
        [f"{number:06d}.png" for number in range(0, 50, 5)],
        ["9.png", "1" * 250 + ".png"],
        ["img_1.JPG", "IMG_2.jpg", "img_3.jpeg", "img_4.png"],
        ["8.jpg", "9.jpg", "10.jpg", "11.jpg"],
        [f"2020-01-01_10.01.{second:02d}.jpg" for second in (5, 6)],
        ["50%_1.png", "50%_2.png"],
        ["cover.jpg"],
    ],
)
def test_images_of_one_kind_are_a_video(tmp_path: Path, files: list[str]) -> None:
    assert chosen(fill(tmp_path / "f", files[::-1])) == files


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            IMAGES + FLOW,
            r"img_%d\.jpg \(11\), flow_x_%d\.jpg \(10\), flow_y_%d\.jpg \(10\); say .*f/img_%d\.jpg",
        ),
        (IMAGES + names("img_", range(1, 12), ".png"), r"img_%d\.jpg \(22\)"),
        (IMAGES + names("img_", range(1, 12), "_mask.jpg"), r"img_%d_mask\.jpg \(11\)"),
        (names("cam1_", range(5)) + names("cam2_", range(5)), r"cam%d_%d\.jpg \(10\)"),
        (IMAGES + names("img_", range(5), ".thumb.jpg"), r"img_%d\.jpg \(11\), img_%d\.thumb\.jpg"),
        # A gap among the frames does not make two previews the video.
        (IMAGES[:5] + IMAGES[6:] + ["preview_1.jpg", "preview_2.jpg"], r"preview_%d\.jpg \(2\)"),
        (["a.jpg", "b.jpg", "c.jpg", "x1.jpg", "x2.jpg"], r"x%d\.jpg \(2\)"),
        (["1.png", "01.png", "2.png"], r"%d\.png \(3\)"),
    ],
)
def test_what_may_be_several_videos_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        open_video(fill(tmp_path / "f", files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern", ["img_*.jpg", "img_%d.jpg", "img_%05d.jpg", "img_{:05d}.jpg", "img_{}.JPG"]
)
def test_images_by_a_pattern(tmp_path: Path, pattern: str) -> None:
    folder = fill(tmp_path / "f [1]", IMAGES + FLOW)
    assert chosen(folder / pattern) == IMAGES
    assert inspect_video(folder / pattern)["frames"] == 11
    with pytest.raises(VideoError, match="no image of the folder has such a name"):
        open_video(folder / f"x_{pattern}")
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path / "g" / pattern)


def test_a_file_is_no_pattern(tmp_path: Path) -> None:
    path = save_image(tmp_path / "img_%d.jpg", numbered(5))
    save_image(tmp_path / "img_7.jpg", numbered(7))
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == [5]


def test_each_image_has_its_own_orientation(tmp_path: Path) -> None:
    # A camera that was turned: the second image is stored upright, the others on their sides.
    for number in range(3):
        image = numbered(number) if number == 1 else np.rot90(numbered(number), 1 if number == 0 else -1)
        path = save_image(tmp_path / f"{number}.jpg", image)
        orientation = (6, 1, 8)[number]
        tag = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0, 0, 0, 0, 0])
        exif = b"Exif\0\0" + tag
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    with open_video(tmp_path) as reader:
        assert (reader.info.width, reader.info.height, reader.info.rotation) == (128, 96, 90)
        assert numbers_of(reader.read(reader.times)) == [0, 1, 2]
    with open_video(tmp_path, short_side=48) as reader:
        assert reader.read(reader.times).shape == (3, 48, 64, 3)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / f"{number}.png", numbered(number))
    (tmp_path / "4.png").touch()
    (tmp_path / "5.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "6.png").mkdir()
    save_image(tmp_path / "7.png", np.rot90(numbered(7)))
    with open_video(tmp_path) as reader:
        assert reader.info.frames == 7  # Without the folder.
        for at, reason in ((4, r"4\.png: the file is empty"), (5, r"5\.png: a broken link")):
            with pytest.raises(VideoError, match=reason):
                reader.read(reader.times[[at]])
        with pytest.raises(VideoError, match=r"7\.png: is 96x128, the first image of its folder 128x96"):
            reader.read(reader.times[[6]])
        (tmp_path / "1.png").unlink()
        with pytest.raises(VideoError, match=r"1\.png: the file is gone"):
            reader.read(reader.times[[1]])


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/f\xe9"
    os.mkdir(folder)
    for number in range(3):
        image = save_image(tmp_path / "image.png", numbered(number))
        os.rename(image, folder + b"/\xff%d_" + str(number).encode() + b".png")
    with open_video(os.fsdecode(folder)) as reader:
        assert numbers_of(reader.read(reader.times)) == [0, 1, 2]


def test_a_folder_of_videos_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.webm").touch()
    with pytest.raises(VideoError, match=r"without images .*; give videos one by one"):
        open_video(tmp_path)


# What EXIF's orientations do to a stored picture, from the standard: which stored row and column are shown
# first, and whether rows are shown as columns.
SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("number", [1, 3, 6, 8] if av.__version__.startswith("18.") else SHOWN)
@pytest.mark.parametrize("order", ["big", "little"])
def test_all_orientations_of_exif(tmp_path: Path, number: int, order: str) -> None:
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:32, :48], stored[:32, 48:], stored[32:, :48] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    path = save_image(tmp_path / "1.jpg", stored)
    plain = path.read_bytes()
    sign = ">" if order == "big" else "<"
    tiff = {"big": b"MM", "little": b"II"}[order] + struct.pack(f"{sign}HI", 42, 8)
    tiff += struct.pack(f"{sign}HHHIHHI", 1, 0x0112, 3, 1, number, 0, 0)
    exif = b"Exif\0\0" + tiff
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    with open_video(tmp_path) as reader:
        found = reader.read([0.0])[0]
        assert (reader.info.height, reader.info.width) == found.shape[:2]
    expected = SHOWN[number](stored)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_itself_beside_images_is_passed_over(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", numbered(1))
    (tmp_path / "loop").symlink_to("loop")
    with open_video(tmp_path) as reader:
        assert numbers_of(reader.read(reader.times)) == [1]


def test_an_animation_among_images_is_not_called_damaged(tmp_path: Path) -> None:
    header = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + (63).to_bytes(3, "little") * 2
    (tmp_path / "1.webp").write_bytes(b"RIFF" + struct.pack("<I", len(header) + 4) + b"WEBP" + header)
    with pytest.raises(VideoError, match=r"1\.webp: an animation, which this FFmpeg cannot decode"):
        open_video(tmp_path)
