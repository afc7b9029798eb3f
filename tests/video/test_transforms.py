"""Shapes, places and values of the transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxvit.video import transforms as t

RNG = np.random.default_rng(0)


def frames(height: int = 40, width: int = 60, count: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def ramp(height: int, width: int) -> torch.Tensor:
    """A float clip whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return t.to_tensor(np.stack([columns, rows, rows * 0], -1)[None])


def test_to_tensor_shares_memory() -> None:
    array = frames()
    video = t.to_tensor(array)
    assert video.shape == (3, 3, 40, 60)
    array[1, 2, 3, 0] = 77
    assert video[0, 1, 2, 3] == 77


@pytest.mark.parametrize("size", [(17, 23), (80, 120)])
def test_resizing_uint8_rounds_the_float_result(size: tuple[int, int]) -> None:
    video = t.to_tensor(frames())
    exact = t.resize(video.float(), size)
    assert (t.resize(video, size).float() - exact).abs().max() <= 1.0


def test_shrinking_is_antialiased() -> None:
    stripes = torch.zeros(3, 1, 32, 32)
    stripes[..., ::2] = 1
    inner = t.resize(stripes, (8, 8))[..., 1:-1]
    assert (inner - 0.5).abs().max() < 0.1


def test_center_crop_and_flip() -> None:
    crop = t.center_crop(ramp(10, 20), (4, 6))
    assert crop[0, 0, 0].tolist() == [7, 8, 9, 10, 11, 12]
    assert crop[1, 0, :, 0].tolist() == [3, 4, 5, 6]
    assert t.horizontal_flip(crop)[0, 0, 0].tolist() == [12, 11, 10, 9, 8, 7]


def test_crop_views_follow_the_longer_side() -> None:
    wide, tall = t.crop_views(ramp(8, 20), (8, 8)), t.crop_views(ramp(20, 8), (8, 8))
    assert wide.shape == (3, 3, 1, 8, 8)
    assert wide[:, 0, 0, 0, 0].tolist() == [0, 6, 12]
    assert tall[:, 1, 0, 0, 0].tolist() == [0, 6, 12]
    assert t.crop_views(ramp(8, 20), (8, 8), views=1)[0, 0, 0, 0, 0] == 6
    assert t.crop_views(ramp(10, 20), (8, 8))[:, 1, 0, 0, 0].tolist() == [1, 1, 1]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_random_resized_crop(height: int, width: int, seed: int) -> None:
    video = t.to_tensor(frames(height, width, count=2))
    one, two = (t.random_resized_crop(video, (8, 12), np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == (3, 2, 8, 12)
    assert torch.equal(one, two)


def test_random_resized_crop_keeps_to_its_ranges() -> None:
    video = ramp(100, 100)
    for seed in range(30):
        crop = t.random_resized_crop(video, (50, 50), np.random.default_rng(seed), (0.25, 0.25), (1, 1))
        # A 50x50 box needs no resizing: neighbouring columns stay one apart.
        assert torch.equal(crop[0, 0, 0, 1:] - crop[0, 0, 0, :-1], torch.ones(49))


def test_every_frame_gets_the_same_crop() -> None:
    still = np.repeat(frames(count=1), 4, axis=0)
    crop = t.random_resized_crop(t.to_tensor(still), (16, 16), np.random.default_rng(1))
    assert (crop == crop[:, :1]).all()


@pytest.mark.parametrize("as_float", [False, True])
def test_normalize(as_float: bool) -> None:
    array = frames()
    video = t.to_tensor(array / np.float32(255) if as_float else array)
    expected = (array / 255 - np.array(t.IMAGENET_MEAN)) / np.array(t.IMAGENET_STD)
    got = t.normalize(video)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    np.testing.assert_allclose(got.permute(1, 2, 3, 0).numpy(), expected, atol=1e-5)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_any_video_is_resized_and_cropped(height: int, width: int, to_height: int, to_width: int) -> None:
    clip = t.to_tensor(frames(height, width, 1))
    assert t.resize_and_crop(clip, (to_height, to_width)).shape == (3, 1, to_height, to_width)


def test_the_aspect_ratio_is_kept() -> None:
    # Squares stay squares: 40x60 to 20x20 is 20x30 and then the middle 20 columns.
    out = t.resize_and_crop(ramp(40, 60), (20, 20))
    np.testing.assert_allclose(out[0, 0, 10, 5:-5].diff(), 2.0, atol=1e-4)
    assert out[0].mean() == pytest.approx(29.5, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t.to_tensor(np.zeros((2, 3, 4, 4), np.uint8)), r"must be \[T, H, W, 3\]"),
        (lambda: t.to_tensor(np.zeros((2, 4, 4, 3), np.int64)), "uint8 or floating"),
        (lambda: t.resize(ramp(4, 4), (0, 4)), "cannot resize"),
        (lambda: t.resize(torch.zeros(2, 3, 4, 4), (2, 2)), "a clip must be"),
        (lambda: t.center_crop(ramp(4, 4), (5, 4)), "cannot cut 5x4 out of a 4x4"),
        (lambda: t.crop_views(ramp(4, 8), (5, 5)), "cannot cut 5x5"),
        (lambda: t.crop_views(ramp(4, 8), (4, 4), views=0), "views must be"),
        (lambda: t.random_resized_crop(ramp(4, 4), (2, 2), RNG, scale=(0.9, 0.1)), "low <= high"),
        (lambda: t.normalize(ramp(4, 4), std=(0, 1, 1)), "std above 0"),
        (lambda: t.resize_and_crop(ramp(4, 4), (0, 4)), "cannot"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(1, 65_535), (65_535, 1)])
def test_a_strip_is_cut_before_it_is_resized(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.zeros(3, 1, *shape, dtype=torch.uint8)
    sizes = []
    monkeypatch.setattr(t, "resize", lambda video, size: sizes.append(size) or video.new_zeros(3, 1, *size))
    assert t.resize_and_crop(video, (224, 224)).shape == (3, 1, 224, 224)
    assert max(sizes[0]) <= 8 * 224 + 1


def test_frames_of_usual_aspects_are_only_resized() -> None:
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 20, 150), dtype=np.uint8))
    wanted = t.center_crop(t.resize_to_fit(video, (16, 16)), (16, 16))
    assert torch.equal(t.resize_and_crop(video, (16, 16)), wanted)
