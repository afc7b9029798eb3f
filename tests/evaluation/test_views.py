"""Which times and places of a video the views show, and how their answers are averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from colours import GRID, Colours, dataset

from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.evaluation.classification import _ReadableOrBlack, merge_views
from fluxvit.evaluation.config import Views
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.writer import write_video

FRAMES, FPS = 24, 12


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two seconds; frame n has the brightness 10 * n, and its right half is darker by 5."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = [np.full((32, 64, 3), 10 * n + 5, np.uint8) for n in range(FRAMES)]
    for frame in frames:
        frame[:, 32:] -= 5
    write_video(path, frames, FPS, crf=0)
    return Manifest((Entry(path, 3),), (), "digest")


def numbers(video: torch.Tensor) -> list[list[int]]:
    """Frame numbers of clips ``[V, 3, T, H, W]``."""
    return (video.float().mean((1, 3, 4)) / 10).floor().int().tolist()


def test_parse() -> None:
    assert Views.parse(" 4X3") == Views(4, 3)
    assert str(Views(2, 3)) == "2x3"
    assert Views(4, 3).total == 12
    for text in ("3", "0x3", "3x0", "4x", "x", "-1x3", "4x3x2"):
        with pytest.raises(ValueError, match=r"^views"):
            Views.parse(text)


def test_sparse_views_lie_at_thirds_of_each_segment(film: Manifest) -> None:
    data = ClipDataset(film)
    clips = data[ClipRequest(0, SamplingGrid(4, 16, 16), views=Views(2, 1))]
    # Segments of six frames: two views lie two and four frames into each, one view three.
    assert numbers(clips.video) == [[2, 8, 14, 20], [4, 10, 16, 22]]
    assert clips.label.tolist() == [3, 3]
    assert clips.item.tolist() == [0, 0]
    (alone,) = numbers(data[ClipRequest(0, SamplingGrid(4, 16, 16))].video[None])
    assert alone == [3, 9, 15, 21]


def test_dense_views_are_windows_from_first_to_last(film: Manifest) -> None:
    data = ClipDataset(film, sampling=ClipSampling("dense", 2))
    clips = data[ClipRequest(0, SamplingGrid(4, 16, 16), views=Views(3, 1))]
    assert numbers(clips.video) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20, 22]]


def test_views_of_cached_frames_are_those_of_the_file(film: Manifest, tmp_path: Path) -> None:
    """Two clips of 16 frames are more than the cache holds of 24, but each of them is not."""
    cache = FrameCache(tmp_path, film, FRAMES, 32).build(progress=False)
    request = ClipRequest(0, SamplingGrid(16, 16, 16), views=Views(2, 2))
    kept, read = ClipDataset(film, cache)[request], ClipDataset(film)[request]
    assert numbers(kept.video) == numbers(read.video)
    assert kept.video.shape == (4, 3, 16, 16, 16)


@pytest.mark.parametrize(
    ("width", "bright"),
    [(16, [16, 8, 0]), (24, [16, 12, 8]), (32, [16, 16, 16])],  # At 32 there is no room to move.
)
def test_crops_are_spread_along_the_side_with_room(film: Manifest, width: int, bright: list[int]) -> None:
    """The film's left half is brighter; at 16 pixels of height it is 16 wide."""
    clips = ClipDataset(film)[ClipRequest(0, SamplingGrid(1, 16, width), views=Views(1, 3))]
    assert clips.video.shape == (3, 3, 1, 16, width)
    middle_row = clips.video[:, 0, 0, 8].float()
    assert (middle_row > 10 * 12 + 2.5).sum(1).tolist() == bright  # Frame 12 lies in the middle.


def test_tall_crops_of_a_wide_grid_go_down() -> None:
    data = dataset(1)  # 20 x 28 pixels.
    clips = data[ClipRequest(0, SamplingGrid(1, 8, 24), views=Views(1, 3))]
    one = data[ClipRequest(0, SamplingGrid(1, 8, 24))].video
    assert torch.equal(clips.video[1], one)
    assert not torch.equal(clips.video[0], one)


def test_bad_views() -> None:
    with pytest.raises(ValueError, match="only test clips have several"):
        dataset(1)[ClipRequest(0, GRID, (0,), views=Views(2, 1))]
    with pytest.raises(ValueError, match=r"cannot take \(0, 1\) views"):
        dataset(1)[ClipRequest(0, GRID, views=(0, 1))]


def test_merged_views_are_mean_probabilities() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    merged = merge_views(logits, 3)
    expected = logits.double().softmax(-1).view(2, 3, 5).mean(1)
    assert torch.allclose(merged.double().exp(), expected, atol=1e-7)
    assert torch.equal(merge_views(logits, 1), logits)
    # Not the mean of logits: the surer view counts for more there.
    sure = torch.tensor([[9.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    assert merge_views(sure, 3).argmax() == 1 != sure.mean(0).argmax()


def test_black_clips_stand_in_for_unreadable_ones() -> None:
    clips = _ReadableOrBlack(dataset(3, Colours(fails_at=1)))
    good, bad = (clips[ClipRequest(i, GRID, views=Views(2, 1))] for i in (0, 1))
    assert good.video.shape == bad.video.shape
    assert not bad.video.any()
    assert bad.replaced.tolist() == [1, 1]
    assert good.replaced.tolist() == [0, 0]
    assert bad.label.tolist() == [1, 1]
    assert bad.faults == ("1.mp4: broken",)
    assert clips[ClipRequest(1, GRID)].video.shape == (3, 8, 16, 16)


def test_views_of_several_classes_average_the_probability_of_each() -> None:
    logits = torch.tensor([[2.0, -1.0, 50.0], [-3.0, 1.0, 50.0]])
    (merged,) = merge_views(logits, 2, multi_label=True)
    torch.testing.assert_close(merged.sigmoid(), logits.sigmoid().mean(0))
    assert merged.isfinite().all()
    assert torch.equal(merge_views(logits, 1, multi_label=True), logits)


def test_black_clips_have_the_labels_of_the_video() -> None:
    entries = (Entry(Path("gone.mp4"), labels=(1,)),)
    data = _ReadableOrBlack(ClipDataset(Manifest(entries, (), ""), classes=3))
    assert data[ClipRequest(0, GRID)].label.tolist() == [0, 1, 0]
    assert data[ClipRequest(0, GRID, views=(2, 1))].label.tolist() == [[0, 1, 0]] * 2
