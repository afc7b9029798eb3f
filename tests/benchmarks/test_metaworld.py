"""The Metaworld of ``benchmarks/make_metaworld.py``; its videos are made where the simulator is installed."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fluxvit.data.manifest import read_manifest
from fluxvit.synthetic.builder import make_dataset
from fluxvit.video.reader import open_video
from make_metaworld import TASKS, ClipSpec, MetaworldConfig
from metaworld_scene import FRAMES, Episode, draw_size, load_simulator, plan_take


@pytest.mark.parametrize("videos", [7, 50, 333])
def test_classes_are_balanced(videos: int) -> None:
    config = MetaworldConfig(videos)
    for split, count in config.counts.items():
        specs = config.specs(split)
        assert sorted(spec.index for spec in specs) == list(range(count))
        numbers = Counter(spec.label for spec in specs)
        shares = [numbers[label] for label in range(50)]
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("sides", "message"),
    [((), "empty list"), ((128, 129), r"even numbers from 64 to 360, not \[129\]"), ((32,), r"not \[32\]")],
)
def test_bad_sides_are_named(sides: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaworldConfig(5, short_sides=sides)


def test_sizes_are_even_and_have_the_short_side() -> None:
    rng = np.random.default_rng(0)
    sizes = {draw_size(rng, (128, 160)) for _ in range(100)}
    assert len(sizes) == 6
    assert all(width % 2 == height % 2 == 0 and height in (128, 160) for width, height in sizes)


@pytest.mark.parametrize("success", [16, 60, 200, 470])
def test_takes_show_the_success_at_a_speed_that_gives_enough_frames(success: int) -> None:
    episode = Episode(np.zeros((success + 25, 9)), np.zeros((success + 25, 3, 3)), success)
    speeds = set()
    for index in range(40):
        take = plan_take(ClipSpec("train", index, 0, 0).rng(), (128,), episode)
        assert 0 <= take.steps[0] <= 0.3 * success
        assert success - take.speed < take.steps[-1] < len(episode.states)
        assert len(take.steps) >= 12
        assert len(take.steps) <= FRAMES[1] or take.speed == 4
        speeds.add(take.speed)
    assert len(speeds) > 1 or success in (16, 470)


@pytest.mark.skipif(bool(importlib.util.find_spec("metaworld")), reason="metaworld is installed")
def test_a_missing_simulator_is_named_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install metaworld==3"):
        make_dataset(tmp_path / "out", MetaworldConfig(1))
    assert not (tmp_path / "out").exists()


# Not importorskip: the first import has to be load_simulator's, which tells MuJoCo how to draw.
@pytest.mark.skipif(not importlib.util.find_spec("metaworld"), reason="needs metaworld")
class TestVideos:
    def test_classes_are_the_tasks_of_the_simulator(self) -> None:
        _, environments, _ = load_simulator()
        assert {f"{name}-v3" for name in TASKS} == set(environments.ALL_V3_ENVIRONMENTS)

    def test_files_of_two_workers_and_what_is_missing(self, tmp_path: Path) -> None:
        config = MetaworldConfig(4, seed=5, short_sides=(64,), val=1, test=1)
        make_dataset(tmp_path, config, workers=2, progress=False)
        for split, count in config.counts.items():
            manifest = read_manifest(tmp_path / f"{split}.jsonl")
            assert manifest.labels == TASKS
            assert [entry.path.stem for entry in manifest.entries] == [f"{i:06d}" for i in range(count)]
            for entry in manifest.entries:
                with open_video(entry.path) as video:
                    frames = video.read(video.times)
                assert min(frames.shape[1:3]) == 64
                assert np.abs(np.diff(frames.astype(float), axis=0)).mean() > 0.1
        first = tmp_path / "train/000000.mp4"
        before = first.read_bytes()
        first.unlink()
        make_dataset(tmp_path, config, workers=1, progress=False)
        assert first.read_bytes() == before
        with pytest.raises(ValueError, match="seed is 5 there and 6 here"):
            make_dataset(tmp_path, replace(config, seed=6), workers=1)

    @pytest.mark.parametrize("task", ["drawer-open", "assembly", "plate-slide", "stick-push"])
    def test_a_video_does_not_depend_on_those_before(self, task: str, tmp_path: Path) -> None:
        config, spec = MetaworldConfig(1, short_sides=(64,)), ClipSpec("train", 3, TASKS.index(task), 0)
        for name in ("fresh", "again"):
            config.write(tmp_path / f"{name}.mp4", spec)
            config.write(tmp_path / "other.mp4", replace(spec, index=4))
        assert (tmp_path / "fresh.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
        assert (tmp_path / "fresh.mp4").read_bytes() != (tmp_path / "other.mp4").read_bytes()
