from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset, ClipRequest, VideoSource
from fluxvit.data.manifest import read_manifest, read_motionworld
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.base import VideoError
from fluxvit.video.writer import write_video


def write_manifest(folder: Path, lines: list[object]) -> Path:
    path = folder / "videos.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A manifest of three videos of different sizes, whose brightness rises with time."""
    for i, (height, width) in enumerate([(48, 64), (64, 48), (50, 50)]):
        frames = [np.full((height, width, 3), 12 * t, np.uint8) for t in range(20)]
        write_video(tmp_path / f"{i}.mp4", frames, 20, crf=0)
    return write_manifest(tmp_path, [{"path": f"{i}.mp4", "label": i, "other": 7 - i} for i in range(3)])


def test_manifest(videos: Path) -> None:
    manifest = read_manifest(videos)
    assert [entry.label for entry in manifest.entries] == [0, 1, 2]
    assert manifest.entries[1].path == videos.parent / "1.mp4"
    other = read_manifest(videos, "other")
    assert [entry.label for entry in other.entries] == [7, 6, 5]
    assert other.digest != manifest.digest == read_manifest(videos).digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no videos are listed"),
        ([{"path": "a", "label": 0}, "{"], "line 2"),
        ([{"path": "a"}], "line 1: no key 'label'"),
        ([{"label": 1}], "line 1: no key 'path'"),
        ([{"path": "a", "label": "dog"}], "label is 'dog', not a class index"),
        ([{"path": "a", "label": True}], "not a class index"),
        ([[1, 2]], "line 1"),
        ([{"path": "a", "label": 5}], "class 5 is used, but there are 2 class names"),
    ],
)
def test_bad_manifests_name_the_line(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(write_manifest(tmp_path, lines), labels=("x", "y"))


def test_missing_manifests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="not a complete MotionWorld"):
        read_motionworld(tmp_path, "train")


def test_cache_holds_what_the_files_show(videos: Path) -> None:
    manifest = read_manifest(videos)
    cache = FrameCache(videos.parent / "cache", manifest, 12, 32).build(workers=1, progress=False)
    source = VideoSource(manifest)
    positions = (np.arange(12) + 0.5) / 12
    for item in range(3):
        cached, decoded = cache.read(item, positions), source.read(item, positions)
        assert min(cached.shape[1:3]) == 32
        # Brightness tells the frame: the same ones were taken.
        np.testing.assert_allclose(cached.mean((1, 2, 3)), decoded.mean((1, 2, 3)), atol=3)
    with pytest.raises(ValueError, match="cache more frames"):
        cache.read(0, np.linspace(0, 0.9, 13))


def test_cache_is_built_once_and_only_whole(videos: Path) -> None:
    manifest = read_manifest(videos)
    folder = videos.parent / "cache"
    (videos.parent / "2.mp4").write_text("broken")
    with pytest.raises(VideoError, match=r"2\.mp4"):
        FrameCache(folder, manifest, 4, 16).build(workers=1, progress=False)
    assert list(folder.iterdir()) == []
    write_video(videos.parent / "2.mp4", [np.zeros((20, 20, 3), np.uint8)], 20)
    FrameCache(folder, manifest, 4, 16).build(workers=1, progress=False)
    for i in range(3):
        (videos.parent / f"{i}.mp4").unlink()
    FrameCache(folder, manifest, 4, 16).build(workers=1, progress=False)


def test_clips_fit_their_grid(videos: Path) -> None:
    data = ClipDataset(read_manifest(videos))
    for item in range(3):
        clip = data[ClipRequest(item, SamplingGrid(6, 24, 40))]
        assert clip.video.shape == (3, 6, 24, 40)
        assert clip.label == clip.item == item
        brightness = clip.video.float().mean((0, 2, 3))
        assert (brightness.diff() > 0).all()
