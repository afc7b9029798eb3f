"""Features of a teacher from disk are those that it would compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import small_model
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.teachers import FluxViTTeacher, Teacher
from fluxvit.training import targets
from fluxvit.training.targets import CachedTargets
from fluxvit.utils.distributed import ALONE
from fluxvit.video.base import VideoError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SHAPE = (4, 3, 3)


class Drift:
    """Videos of a bright square that drifts over noise, each in its own way."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.reads = broken, 0

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        self.reads += 1
        if index == self.broken:
            raise VideoError.of(f"{index}.mp4", "broken")
        frames = np.random.default_rng(index).integers(0, 60, (len(positions), 24, 24, 3), dtype=np.uint8)
        for frame, position in zip(frames, positions, strict=True):
            start = int(position * 12) + index % 3
            frame[start : start + 8, 2 * (index % 5) : 2 * (index % 5) + 8] = 200
        return frames


def videos(source: Drift | None = None, count: int = 7) -> ClipDataset:
    entries = tuple(Entry(Path(f"{i}.mp4"), 0) for i in range(count))
    return ClipDataset(Manifest(entries, ("a",), f"digest {count}"), source or Drift())


@pytest.fixture
def teacher() -> Teacher:
    return FluxViTTeacher(small_model(0), MEAN, STD, torch.float32)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_PER_SHARD", 3)
    monkeypatch.setattr(targets, "_CLIPS_AT_ONCE", 2)


def live(teacher: Teacher, items: list[int], shape=SHAPE, kept=None):
    clips = [videos()[ClipRequest(i, SamplingGrid(*teacher.grid(shape)))].video for i in items]
    return teacher.features(torch.stack(clips).float() / 255, shape, kept, [0, 1])


@pytest.mark.parametrize(("dtype", "similar"), [("bf16", 0.9998), ("fp8", 0.998)])
def test_they_are_the_teachers(tmp_path: Path, teacher: Teacher, dtype: str, similar: float) -> None:
    cache = CachedTargets(tmp_path, teacher, [0, 1], SHAPE, dtype).build(videos(), ALONE, progress=False)
    items, video = torch.tensor([6, 0, 3, 2]), torch.zeros(4, 3, 8, 24, 24)
    found, wanted = cache(video, items, SHAPE, None), live(teacher, items.tolist())
    for ours, theirs in zip([*found.layers, found.pooled], [*wanted.layers, wanted.pooled], strict=True):
        assert ours.shape == theirs.shape
        assert F.cosine_similarity(ours.float(), theirs, dim=-1).min() > similar
    torch.testing.assert_close(found.attention, wanted.attention, rtol=0.02, atol=1e-4)
    # Videos differ by more than rounding does.
    assert F.cosine_similarity(found.layers[1].float(), wanted.layers[1].flip(0), dim=-1).mean() < 0.99
    kept = torch.tensor([[0, 7, 35]] * 4)
    some = cache(video, items, SHAPE, kept)
    assert torch.equal(some.layers[1], found.layers[1][:, [0, 1, 8, 36]])
    share = found.attention[:, [0, 7, 35]]
    torch.testing.assert_close(some.attention, share / share.sum(1, keepdim=True))


def test_students_may_sample_other_grids(tmp_path: Path, teacher: Teacher) -> None:
    """Between the lattice's features are interpolated; class tokens and pooled vectors stay."""
    cache = CachedTargets(tmp_path, teacher, [1], SHAPE, "bf16").build(videos(), ALONE, progress=False)
    items, video = torch.tensor([1, 5]), torch.zeros(2, 3, 8, 24, 24)
    here, there = (cache(video, items, shape, None) for shape in (SHAPE, (8, 3, 6)))
    assert there.layers[0].shape == (2, 1 + 8 * 3 * 6, 32)
    assert torch.equal(here.layers[0][:, 0], there.layers[0][:, 0])
    assert torch.equal(here.pooled, there.pooled)
    torch.testing.assert_close(there.attention.sum(1), torch.ones(2))
    ours, theirs = (found.layers[0][:, 1:].float().mean(1) for found in (here, there))
    assert F.cosine_similarity(ours, theirs).min() > 0.999


def test_nothing_is_computed_twice(tmp_path: Path, teacher: Teacher) -> None:
    source = Drift()
    CachedTargets(tmp_path, teacher, [1], SHAPE).build(videos(source), ALONE, progress=False)
    assert source.reads == 7
    CachedTargets(tmp_path, teacher, [1], SHAPE).build(videos(source), ALONE, progress=False)
    assert source.reads == 7
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "about.json",
        *(f"targets-{i:05d}.safetensors" for i in range(3)),
    ]


def test_an_interrupted_build_goes_on(tmp_path: Path, teacher: Teacher) -> None:
    with pytest.raises(ValueError, match=r"5\.mp4: broken; probe the data set again"):
        CachedTargets(tmp_path, teacher, [1], SHAPE).build(videos(Drift(5)), ALONE, progress=False)
    source = Drift()
    cache = CachedTargets(tmp_path, teacher, [1], SHAPE).build(videos(source), ALONE, progress=False)
    assert source.reads == 4  # The first shard of three was complete.
    whole = CachedTargets(tmp_path / "b", teacher, [1], SHAPE).build(videos(), ALONE, progress=False)
    items = torch.arange(7)
    video = torch.zeros(7, 3, 8, 24, 24)
    assert torch.equal(*(c(video, items, SHAPE, None).layers[0] for c in (cache, whole)))


def test_what_features_depend_on_tells_caches_apart(tmp_path: Path, teacher: Teacher) -> None:
    other = FluxViTTeacher(small_model(0), MEAN, STD, torch.float32)
    with torch.no_grad():
        other.network.blocks[0].mlp.fc1.bias[0] += 1
    tinted = FluxViTTeacher(small_model(0), (0.4, 0.5, 0.5), STD, torch.float32)
    for maker, data in [
        (CachedTargets(tmp_path, teacher, [1], SHAPE), videos()),
        (CachedTargets(tmp_path, teacher, [0], SHAPE), videos()),
        (CachedTargets(tmp_path, teacher, [1], (2, 3, 3)), videos()),
        (CachedTargets(tmp_path, teacher, [1], SHAPE, "bf16"), videos()),
        (CachedTargets(tmp_path, other, [1], SHAPE), videos()),
        (CachedTargets(tmp_path, tinted, [1], SHAPE), videos()),
        (CachedTargets(tmp_path, teacher, [1], SHAPE), videos(count=6)),
    ]:
        maker.build(data, ALONE, progress=False)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_damaged_shard_is_named(tmp_path: Path, teacher: Teacher) -> None:
    cache = CachedTargets(tmp_path, teacher, [1], SHAPE).build(videos(), ALONE, progress=False)
    (cache.path / "targets-00001.safetensors").write_bytes(b"half a shard")
    cache(torch.zeros(1, 3, 8, 24, 24), torch.tensor([0]), SHAPE, None)
    with pytest.raises(ValueError, match=r"targets-00001\.safetensors: .*; remove it and run again"):
        cache(torch.zeros(1, 3, 8, 24, 24), torch.tensor([4]), SHAPE, None)


def test_a_disk_that_is_too_small_is_said_before(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(ValueError, match=r"teacher.cache: features of 9 videos need 0\.0 GB"):
        CachedTargets(tmp_path, teacher, [1], SHAPE).build(videos(), ALONE, progress=False)
