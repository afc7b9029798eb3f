"""What each operation does to pixels, how often, and that all frames get the same."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxvit.data.dataset import Augmentation, ClipDataset, ClipRequest, collate
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.augment import OPS, RandAugment, multi_scale_crop, random_erase
from fluxvit.video.transforms import normalize, random_resized_crop

RELEASE = "rand-m7-n4-mstd0.5-inc1"
FULL = Augmentation(
    crop_scale=(0.08, 1.0),
    flip=0.5,
    rand_augment=RELEASE,
    erase=0.25,
)


def noise(height: int = 24, width: int = 32, frames: int = 3, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, frames, height, width), dtype=np.uint8))


def still(height: int = 24, width: int = 32, frames: int = 3, seed: int = 0) -> torch.Tensor:
    return noise(height, width, 1, seed).expand(-1, frames, -1, -1)


def dot(row: int, column: int, height: int = 41, width: int = 41) -> torch.Tensor:
    """A grey clip with one white 3x3 spot."""
    clip = torch.full((3, 2, height, width), 128, dtype=torch.uint8)
    clip[..., row - 1 : row + 2, column - 1 : column + 2] = 255
    return clip


def spot(clip: torch.Tensor) -> tuple[float, float]:
    """Where the spot of a `dot` is: its centre of mass, row and column."""
    weight = (clip[0, 0].double() - 128).clamp(min=0)
    rows, columns = (torch.arange(n, dtype=torch.double) for n in weight.shape)
    total = weight.sum()
    return float((weight.sum(1) * rows).sum() / total), float((weight.sum(0) * columns).sum() / total)


# Operations of RandAugment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("strength", [-1.0, -0.31, 0.0, 0.7, 1.0])
def test_every_operation_keeps_shape_type_and_input(name: str, strength: float) -> None:
    clip = noise()
    before = clip.clone()
    result = OPS[name](clip, strength)
    assert result.shape == clip.shape
    assert result.dtype == torch.uint8
    assert torch.equal(clip, before)


@pytest.mark.parametrize("name", OPS)
def test_every_operation_treats_frames_alike(name: str) -> None:
    result = OPS[name](still().contiguous(), 0.8)
    assert (result == result[:, :1]).all()


@pytest.mark.parametrize(
    "name", sorted({*OPS} - {"AutoContrast", "Equalize", "Invert", "PosterizeIncreasing"})
)
def test_strength_zero_is_the_identity(name: str) -> None:
    clip = noise(23, 37)
    assert torch.equal(OPS[name](clip, 0.0), clip)


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-1, 1))
def test_every_size(name: str, height: int, width: int, strength: float) -> None:
    assert OPS[name](noise(height, width, 1), strength).shape == (3, 1, height, width)


def test_pointwise_operations() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 2, 1, 256).contiguous()
    level = np.arange(256)
    expected = {
        ("Invert", 0.5): 255 - level,
        ("SolarizeIncreasing", 0.5): np.where(level < 128, level, 255 - level),
        ("SolarizeIncreasing", 1.0): 255 - level,
        ("SolarizeAdd", -1.0): np.where(level < 128, level + 110, level),
        ("PosterizeIncreasing", 0.0): level // 16 * 16,
        ("PosterizeIncreasing", 0.7): level // 64 * 64,
        ("PosterizeIncreasing", 1.0): level * 0,
        ("BrightnessIncreasing", 1.0): np.minimum(np.round(level * 1.9), 255),
        ("BrightnessIncreasing", -0.5): np.round(level * 0.55),
        ("AutoContrast", 0.5): level,
    }
    for (name, strength), values in expected.items():
        got = OPS[name](ramp, strength)[1, 1, 0].numpy()
        np.testing.assert_array_equal(got, values.astype(np.uint8), err_msg=f"{name} {strength}")


def test_auto_contrast_stretches_each_channel() -> None:
    clip = noise() // 3 + torch.tensor([10, 60, 120], dtype=torch.uint8).view(3, 1, 1, 1)
    clip[2] = 77
    got = OPS["AutoContrast"](clip, 0.0)
    for channel in (0, 1):
        x = clip[channel].numpy().astype(int)
        np.testing.assert_array_equal(got[channel].numpy(), (x - x.min()) * 255 // (x.max() - x.min()))
    assert (got[2] == 77).all()


def equalize_by_hand(x: np.ndarray) -> np.ndarray:
    counts = [int((x == level).sum()) for level in range(256)]
    step = (x.size - counts[int(x.max())]) // 255
    if step == 0:
        return x
    table, total = [], step // 2
    for count in counts:
        table.append(min(total // step, 255))
        total += count
    return np.array(table)[x]


@pytest.mark.parametrize(("height", "low", "span"), [(40, 0, 256), (40, 100, 30), (5, 0, 256), (40, 9, 1)])
def test_equalize(height: int, low: int, span: int) -> None:
    rng = np.random.default_rng(3)
    # Skewed: the dark levels are frequent.
    values = low + (rng.random((3, 2, height, 40)) ** 2 * span).astype(int)
    got = OPS["Equalize"](torch.from_numpy(values.astype(np.uint8)), 0.0)
    for channel in range(3):
        np.testing.assert_array_equal(got[channel].numpy(), equalize_by_hand(values[channel]))


def test_contrast_and_color_move_about_grey() -> None:
    clip = noise()
    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    luma = (clip * grey).sum(0)
    flat, dull = OPS["ContrastIncreasing"](clip, -1.0), OPS["ColorIncreasing"](clip, -1.0)
    torch.testing.assert_close(flat.float(), 0.1 * clip + 0.9 * luma.mean(), atol=0.51, rtol=0)
    torch.testing.assert_close(dull.float(), 0.1 * clip + 0.9 * luma, atol=0.51, rtol=0)


def test_sharpness_moves_about_the_smoothed_picture() -> None:
    clip = noise(7, 9)
    x = clip.double().numpy()
    for strength in (-1.0, 0.5):
        got = OPS["SharpnessIncreasing"](clip, strength).numpy()
        expected = x.copy()
        for i in range(1, 6):
            for j in range(1, 8):
                around = x[..., i - 1 : i + 2, j - 1 : j + 2].sum((-2, -1))
                smooth = (around + 4 * x[..., i, j]) / 13
                expected[..., i, j] = smooth + (1 + 0.9 * strength) * (x[..., i, j] - smooth)
        np.testing.assert_allclose(got, expected.clip(0, 255), atol=0.51)


def test_rotation_is_counter_clockwise_about_the_middle() -> None:
    row, column = spot(OPS["Rotate"](dot(20, 35), 1.0))
    # From 15 right of the middle, 30 degrees up.
    assert row == pytest.approx(20 - 15 * math.sin(math.pi / 6), abs=0.2)
    assert column == pytest.approx(20 + 15 * math.cos(math.pi / 6), abs=0.2)
    assert spot(OPS["Rotate"](dot(20, 20), 0.77)) == pytest.approx((20, 20), abs=0.05)


def test_rotation_keeps_circles_round_in_wide_frames() -> None:
    row, column = spot(OPS["Rotate"](dot(10, 30, 21, 41), 1.0))
    assert math.hypot(row - 10, column - 20) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        # Row 30 is 30.5 pixels below the top: 0.3 * 30.5 to the left.
        ("ShearX", 1.0, (30, 30 - 9.15)),
        ("ShearX", -1.0, (30, 30 + 9.15)),
        ("ShearY", 1.0, (30 - 9.15, 30)),
        ("ShearY", -1.0, (30 + 9.15, 30)),
        ("TranslateXRel", 1.0, (30, 30 - 0.45 * 41)),
        ("TranslateYRel", 0.5, (30 - 0.225 * 61, 30)),
    ],
)
def test_shears_and_translations(name: str, strength: float, expected: tuple[float, float]) -> None:
    assert spot(OPS[name](dot(30, 30, 61, 41), strength)) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("name", ["TranslateXRel", "TranslateYRel"])
def test_what_comes_from_outside_is_grey(name: str) -> None:
    clip = torch.zeros(3, 2, 20, 20, dtype=torch.uint8)
    moved = OPS[name](clip, 1.0)
    # 0.45 * 20 = 9 rows or columns of grey, next to 11 of the clip.
    assert int((moved == 128).sum()) == 3 * 2 * 20 * 9
    assert int((moved == 0).sum()) == 3 * 2 * 20 * 11


# RandAugment -----------------------------------------------------------------------------------------------


def test_parse() -> None:
    assert RandAugment.parse(RELEASE) == RandAugment(7, ops=4, std=0.5)
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment(9, ops=2, std=0.5)
    assert RandAugment.parse("rand-inc1-p0.25-m10") == RandAugment(10, probability=0.25)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("x m7 inc1", "cannot read"),
        ("rand", "cannot read"),
        ("rand m7", "ending in inc1"),
        ("rand m7 inc0", "ending in inc1"),
        ("rand n2 inc1", "cannot read"),
        ("rand m7 x3 inc1", "cannot read"),
        ("rand m7 n inc1", "cannot read"),
        ("rand m7 n1.5 inc1", "cannot read"),
        ("rand m7 m8 inc1", "cannot read"),
        ("rand m11 inc1", "RandAugment needs"),
        ("rand m7 n0 inc1", "at least one op"),
        ("rand m7 p2 inc1", "probability"),
    ],
)
def test_parse_refuses(parts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandAugment.parse(parts.replace(" ", "-"))


def test_operations_are_drawn_evenly_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    for name in OPS:
        monkeypatch.setitem(
            OPS, name, lambda clip, strength, name=name: seen.append((name, strength)) or clip
        )
    rng, count = np.random.default_rng(0), 3000
    for _ in range(count):
        RandAugment.parse(RELEASE)(noise(1, 1, 1), rng)
    applied = 4 * count * 0.5
    assert len(seen) == pytest.approx(applied, abs=4 * math.sqrt(applied * 0.5))
    names, strengths = [name for name, _ in seen], np.array([strength for _, strength in seen])
    for name in OPS:
        assert names.count(name) == pytest.approx(applied / 15, abs=4 * math.sqrt(applied / 15))
    assert np.abs(strengths).mean() == pytest.approx(0.7, abs=0.005)
    assert np.abs(strengths).std() == pytest.approx(0.05, abs=0.003)
    assert (strengths > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_magnitudes_stay_within_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    for name in OPS:
        monkeypatch.setitem(OPS, name, lambda clip, strength: seen.append(strength) or clip)
    RandAugment(9, ops=500, std=5, probability=1)(noise(1, 1, 1), np.random.default_rng(0))
    assert len(seen) == 500
    assert max(map(abs, seen)) == 1.0
    assert min(map(abs, seen)) == 0.0


# Boxes -----------------------------------------------------------------------------------------------------


def position_clip(height: int, width: int) -> torch.Tensor:
    """A float clip whose red is the column and whose green is the row."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([columns, rows, rows])[:, None]


def test_multi_scale_crop_cuts_the_boxes_of_the_paper() -> None:
    """A 64x96 clip to 64x64: every pair of neighbouring scales, at 13 places."""
    clip, rng = position_clip(64, 96), np.random.default_rng(0)
    shapes, places = set(), set()
    for _ in range(600):
        crop = multi_scale_crop(clip, (64, 64), rng)
        width = round(float(crop[0, 0, 0, 32] - crop[0, 0, 0, 31]) * 64)
        height = round(float(crop[1, 0, 32, 0] - crop[1, 0, 31, 0]) * 64)
        shapes.add((height, width))
        if (height, width) == (48, 48):
            top, left = float(crop[1].mean()) - 23.5, float(crop[0].mean()) - 23.5
            places.add((round(top / 16 * 4), round(left / 48 * 4)))
    sides = [64, 56, 48, 42]
    assert shapes == {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    assert places == {(i, j) for i in range(5) for j in range(5) if i % 2 == j % 2}
    assert len(places) == 13


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_multi_scale_crop_fits_any_size(height: int, width: int, to_h: int, to_w: int, seed: int) -> None:
    clip = noise(height, width, 2)
    one, two = (multi_scale_crop(clip, (to_h, to_w), np.random.default_rng(seed), (0.5, 1)) for _ in range(2))
    assert one.shape == (3, 2, to_h, to_w)
    assert torch.equal(one, two)


def test_multi_scale_crop_of_one_scale_keeps_the_aspect() -> None:
    crop = multi_scale_crop(position_clip(40, 100), (20, 30), np.random.default_rng(0), (1.0,))
    assert crop[0, 0, 0, 1:-1].diff() == pytest.approx(2.0, abs=1e-3)
    assert crop[1, 0, 1:-1, 0].diff() == pytest.approx(2.0, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_erasing_changes_one_box(height: int, width: int, seed: int) -> None:
    blank, full = (torch.full((3, 3, height, width), level, dtype=torch.uint8) for level in (0, 255))
    one, two = (random_erase(clip, np.random.default_rng(seed)) for clip in (blank, full))
    erased = one == two
    assert (erased == erased[:1, :1]).all()
    box = erased[0, 0]
    assert torch.equal(box, box.any(1)[:, None] & box.any(0))
    assert 1 <= box.sum() <= max(1.0, height * width / 3 + 0.5 * (height + width) + 1)


def test_erasing_noise_is_standard_after_normalisation() -> None:
    clip = torch.zeros(3, 16, 64, 64, dtype=torch.uint8)
    noise = normalize(random_erase(clip, np.random.default_rng(0), area=(1.0, 1.0), aspect=(1, 1)))
    # Clipping at black and white takes a little off the tails.
    torch.testing.assert_close(noise.mean((1, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(noise.std((1, 2, 3)), torch.ones(3), atol=0.04, rtol=0)
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_areas_of_erased_boxes() -> None:
    clip, rng = torch.zeros(3, 16, 60, 60, dtype=torch.uint8), np.random.default_rng(0)
    erased = [random_erase(clip, rng, aspect=(1, 1))[0].any(0) for _ in range(400)]
    areas = [float(box.float().mean()) for box in erased]
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert min(areas) < 0.04
    assert max(areas) > 0.31


# The whole -------------------------------------------------------------------------------------------------


def test_default_is_the_random_resized_crop() -> None:
    clip = noise(40, 50)
    for seed in range(5):
        expected = random_resized_crop(clip, (16, 24), np.random.default_rng(seed))
        assert torch.equal(Augmentation()(clip, (16, 24), np.random.default_rng(seed)), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_everything_at_once(height: int, width: int, seed: int) -> None:
    """Any size; the seed decides; frames that are alike stay so, erased boxes aside."""
    clip = still(height, width)
    how = replace(FULL, erase=0)
    one, two = (how(clip, (14, 18), np.random.default_rng(seed)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (3, 3, 14, 18)
    assert one.is_contiguous()
    assert one.dtype == torch.uint8
    assert (one == one[:, :1]).all()


def test_flip_probability_and_ban() -> None:
    clip = torch.zeros(3, 1, 2, 8, dtype=torch.uint8)
    clip[..., :4] = 255
    rng = np.random.default_rng(0)
    how = Augmentation(crop_scale=(1, 1), crop_ratio=(4, 4), flip=0.3)

    def mirrored(allowed: bool) -> float:
        return np.mean([int(how(clip, (2, 8), rng, allowed)[0, 0, 0, 0]) == 0 for _ in range(500)])

    assert mirrored(True) == pytest.approx(0.3, abs=0.08)
    assert mirrored(False) == 0


def test_erase_probability() -> None:
    clip, rng = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), np.random.default_rng(0)
    how = Augmentation(erase=0.25)
    erased = np.mean([bool(how(clip, (8, 8), rng).any()) for _ in range(500)])
    assert erased == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "middle"}, "expected one of 'center', 'multi_scale', 'resized'"),
        ({"crop": "multi_scale", "crop_ratio": (1.0, 1.0)}, "belongs to the resized crop"),
        ({"crop": "multi_scale", "crop_scale": ()}, "need scales"),
        ({"crop": "multi_scale", "crop_scale": (1.5,)}, "need scales"),
        ({"crop_scale": (0.5, 0.7, 1.0)}, "low and a high area"),
        ({"crop_scale": (1.0, 0.5)}, "low <= high"),
        ({"flip": 1.5}, "augment.flip is 1.5, expected a number from 0 to 1"),
        ({"erase": -0.1}, "augment.erase is -0.1, expected a number from 0 to 1"),
        ({"rand_augment": "auto"}, "cannot read 'auto'"),
    ],
)
def test_bad_augmentations(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: RandAugment(-1), "RandAugment needs"),
        (lambda rng: multi_scale_crop(noise(), (4, 4), rng, ()), "need scales"),
        (lambda rng: multi_scale_crop(noise(), (0, 4), rng), "positive size"),
        (lambda rng: random_erase(noise(), rng, area=(0.5, 1.5)), "area at most 1"),
        (lambda rng: random_erase(noise(), rng, aspect=(2, 1)), "low <= high"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))


# Repeated augmentation -------------------------------------------------------------------------------------

GRID = SamplingGrid(4, 12, 16)


class CountedNoise:
    """Frames of noise, and how often they were read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        self.reads += 1
        return np.random.default_rng(index).integers(0, 256, (len(positions), 20, 28, 3), dtype=np.uint8)


def dataset(**settings) -> ClipDataset:
    manifest = Manifest(tuple(Entry(Path(f"{i}.mp4"), i % 3) for i in range(12)), ("a", "b", "c"), "digest")
    return ClipDataset(manifest, CountedNoise(), FULL, **settings)


def test_samples_share_a_decode_and_differ() -> None:
    data = dataset()
    clips = data[ClipRequest(5, GRID, (0, 1), samples=3)]
    assert data.source.reads == 1
    assert clips.video.shape == (3, 3, 4, 12, 16)
    assert clips.label.tolist() == [2, 2, 2]
    assert clips.item.tolist() == [5, 5, 5]
    assert not torch.equal(clips.video[0], clips.video[1])
    assert not torch.equal(clips.video[1], clips.video[2])
    # The first is what one sample would have been.
    assert torch.equal(clips.video[0], data[ClipRequest(5, GRID, (0, 1))].video)


def test_collating_flattens_samples() -> None:
    data = dataset()
    single = data[ClipRequest(0, GRID, (9,))]
    double = data[ClipRequest(1, GRID, (8,), 2)]
    batch = collate([double, single])
    assert batch.item.tolist() == [1, 1, 0]
    assert torch.equal(batch.video[:2], double.video)
    assert torch.equal(batch.video[2], single.video)


def test_batches_of_samples() -> None:
    data, batches = dataset(), TrainingBatches(12, [GRID], batch_size=6, steps=8, seed=0, samples=2)
    clips = list(loader(data, batches))
    assert data.source.reads == 8 * 3
    assert all(batch.video.shape == (6, 3, 4, 12, 16) for batch in clips)
    # An epoch is four batches of three videos.
    for epoch in (clips[:4], clips[4:]):
        assert sorted(torch.cat([batch.item for batch in epoch]).tolist()) == sorted([*range(12)] * 2)
    resumed = TrainingBatches(12, [GRID], batch_size=6, steps=8, seed=0, start_step=5, samples=2)
    assert all(
        torch.equal(one.video, two.video) for one, two in zip(loader(data, resumed), clips[5:], strict=True)
    )
    for samples in (0, 4):
        with pytest.raises(ValueError, match=f"cannot hold {samples}"):
            TrainingBatches(12, [GRID], batch_size=6, steps=8, seed=0, samples=samples)


@pytest.mark.parametrize("request_", [ClipRequest(0, GRID, None, 2), ClipRequest(0, GRID, (0,), 0)])
def test_bad_samples(request_: ClipRequest) -> None:
    with pytest.raises(ValueError, match="samples of"):
        dataset()[request_]


def test_clips_of_direction_sensitive_sets_are_not_mirrored() -> None:
    class Halves:
        def read(self, index: int, positions: np.ndarray) -> np.ndarray:
            frames = np.zeros((len(positions), 8, 8, 3), np.uint8)
            frames[:, :, :4] = 255
            return frames

    manifest = dataset().manifest
    how = Augmentation(flip=0.5)
    for allowed in (True, False):
        data = ClipDataset(manifest, Halves(), how, flip_allowed=allowed)
        clips = [data[ClipRequest(0, GRID, (seed,))].video.float() for seed in range(30)]
        mirrored = [bool(clip[..., 0].mean() < clip[..., -1].mean()) for clip in clips]
        assert any(mirrored) == allowed
