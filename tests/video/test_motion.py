"""Motion maps from the vectors of codecs, on a textured square that moves over a textured background."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from fluxvit.video.reader import open_video
from fluxvit.video.transforms import crop_box, read_clips, resize_and_crop

HEIGHT, WIDTH, FRAMES, SIDE = 96, 128, 24, 32
TIMES = (np.arange(FRAMES) + 0.5) / 25


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth noise, in which an encoder finds the movement."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")[0]
    return (255 * image).byte().permute(1, 2, 0).numpy()


def square_at(frame: int) -> tuple[int, int]:
    """Top and left of the square."""
    return 32, 8 + 3 * frame


def scene(camera: int) -> list[np.ndarray]:
    """The square moves to the right; the background moves by ``camera`` pixels a frame to the left."""
    background, square = texture(HEIGHT, WIDTH + camera * FRAMES, 0), texture(SIDE, SIDE, 1)
    frames = []
    for number in range(FRAMES):
        image = background[:, camera * number : camera * number + WIDTH].copy()
        top, left = square_at(number)
        image[top : top + SIDE, left : left + SIDE] = square
        frames.append(image)
    return frames


def encode(path: Path, frames: list[np.ndarray], codec: str, options: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt, stream.bit_rate, stream.options = "yuv420p", 2_000_000, options or {}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def maps(path: Path, size: tuple[int, int], shape: tuple[int, int, int]) -> np.ndarray | None:
    with open_video(path, motion=True) as reader:
        read_clips(reader, [(TIMES, size)])
        info = reader.info
        return reader.motion_maps(TIMES, crop_box((info.height, info.width), size), shape)


def covered(top: int, left: int, height: int, width: int) -> np.ndarray:
    """The share of each 16x16 cell of the picture that a square's path in two frames covers, per cell."""
    mask = np.zeros((HEIGHT, WIDTH))
    mask[max(0, top) : top + height, max(0, left) : left + width] = 1
    return mask.reshape(HEIGHT // 16, 16, WIDTH // 16, 16).mean((1, 3))


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"bf": "0"}), ("libx264", {"bf": "3"}), ("libx264", {"g": "6", "bf": "0"}), ("mpeg4", {})],
)
@pytest.mark.parametrize("camera", [0, 2])
def test_the_vectors_are_on_the_square(
    tmp_path: Path, codec: str, options: dict[str, str], camera: int
) -> None:
    """Also where the camera pans: without removing its motion, the background would move as well."""
    path = encode(tmp_path / "clip.mp4", scene(camera), codec, options)
    moving = maps(path, (HEIGHT, WIDTH), (6, HEIGHT // 16, WIDTH // 16))
    assert moving is not None
    assert moving.shape == (6, 6, 8)
    for step in range(6):
        (top, left), (_, right) = square_at(4 * step), square_at(4 * step + 3)
        share = covered(top, left, SIDE, right + SIDE - left)
        on, off = moving[step][share > 0.9].mean(), moving[step][share == 0].mean()
        assert on > 4 * off, (step, on, off)
        assert on > 1


def test_a_crop_has_the_cells_of_the_picture(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", scene(0), "libx264", {"bf": "0"})
    whole = maps(path, (HEIGHT, WIDTH), (6, 6, 8))
    cropped = maps(path, (48, 48), (6, 6, 6))  # Half the size; 16 columns of pixels are cut off on each side.
    assert whole is not None
    assert cropped is not None
    np.testing.assert_allclose(cropped, whole[:, :, 1:7], atol=1e-5)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_rotated_video_has_upright_maps(tmp_path: Path, turn: int) -> None:
    path = encode(tmp_path / "clip.mp4", scene(0), "libx264", {"bf": "0"})
    upright = maps(path, (HEIGHT, WIDTH), (6, 6, 8))
    turned = tmp_path / "turned.mp4"
    content = bytearray(path.read_bytes())
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    a, b = round(np.cos(np.radians(turn))), round(np.sin(np.radians(turn)))
    matrix = np.array([a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    start = content.index(identity, content.index(b"tkhd"))
    content[start : start + len(matrix)] = matrix
    turned.write_bytes(content)
    with open_video(turned) as reader:
        assert reader.info.rotation == turn
    size, shape = ((HEIGHT, WIDTH), (6, 6, 8)) if turn == 180 else ((WIDTH, HEIGHT), (6, 8, 6))
    found = maps(turned, size, shape)
    assert upright is not None
    np.testing.assert_allclose(found, np.rot90(upright, -turn // 90, axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("clip.webm", "libvpx-vp9", {"cpu-used": "8"}), ("intra.mp4", "libx264", {"g": "1"})],
)
def test_no_vectors_give_no_maps(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = encode(tmp_path / name, scene(0), codec, options)
    assert maps(path, (HEIGHT, WIDTH), (6, 6, 8)) is None


def test_images_have_no_maps() -> None:
    with open_video(np.stack(scene(0)), motion=True) as reader:
        reader.read(TIMES)
        assert reader.motion_maps(TIMES, (0, 0, 1, 1), (6, 6, 8)) is None


def test_motion_does_not_change_the_frames(tmp_path: Path) -> None:
    """Vectors come beside the frames, also where frames that are not asked for would be left out."""
    path = encode(tmp_path / "clip.mp4", scene(2), "libx264", {"bf": "3"})
    with open_video(path) as plain, open_video(path, motion=True) as measured:
        assert np.array_equal(plain.read(TIMES[::3]), measured.read(TIMES[::3]))
        assert measured.motion is not None
        assert plain.motion is None
        assert plain.motion_maps(TIMES[::3], (0, 0, 1, 1), (8, 6, 8)) is None


@pytest.mark.parametrize("frame", [(96, 128), (128, 96), (97, 131), (20, 400), (400, 20)])
def test_the_box_of_a_crop_is_what_resizing_keeps(frame: tuple[int, int]) -> None:
    """A picture whose values are its coordinates keeps those of the box's middle and corners."""
    size = (32, 24)
    down, across = torch.meshgrid(*(torch.linspace(0.5, n - 0.5, n) / n for n in frame), indexing="ij")
    kept = resize_and_crop(torch.stack([down, across, down])[:, None], size)[:, 0]
    top, left, bottom, right = crop_box(frame, size)
    half_row, half_column = (bottom - top) / 2 / size[0], (right - left) / 2 / size[1]
    inner = kept[:2, 4:-4, 4:-4]
    expected_down = torch.linspace(top + half_row, bottom - half_row, size[0])[4:-4]
    expected_across = torch.linspace(left + half_column, right - half_column, size[1])[4:-4]
    torch.testing.assert_close(inner[0, :, 0], expected_down, atol=2e-3, rtol=0)
    torch.testing.assert_close(inner[1, 0], expected_across, atol=2e-3, rtol=0)
