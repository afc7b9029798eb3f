"""Simulated data sets: classes, captions, splits; and the videos, where a simulator is installed."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fluxvit.data.manifest import read_manifest
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.simulated import (
    ACTION_NAMES,
    ACTIONS,
    TASK_NAMES,
    TASKS,
    ClipSpec,
    MetaworldConfig,
    MocapConfig,
    SimulatedConfig,
    human_scene,
)
from fluxvit.synthetic.simulated import mocap as mocap_module
from fluxvit.synthetic.simulated.arm_scene import FRAMES, Episode, load_simulator, plan_take
from fluxvit.synthetic.simulated.arm_tasks import captions as task_captions
from fluxvit.synthetic.simulated.human_actions import captions as action_captions
from fluxvit.synthetic.simulated.human_body import COLOURS, LINKS, draw_outfit
from fluxvit.synthetic.simulated.human_motion import ANGLES, ROTATIONS, Motion
from fluxvit.synthetic.simulated.specs import draw_size
from fluxvit.video.reader import open_video

CONFIGS = (MetaworldConfig, MocapConfig)


def test_there_are_fifty_tasks_and_fifteen_actions() -> None:
    assert len(TASK_NAMES) == len(set(TASK_NAMES)) == 50
    assert len(ACTION_NAMES) == len(set(ACTION_NAMES)) == 15


class TestLanguage:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("drawer-open", ("opens a drawer", "pulls a drawer out")),
            ("window-close", ("closes a window", "slides a window shut")),
            ("faucet-open", ("opens a faucet", "turns a faucet on")),
            ("hammer", ("hammers", "drives a nail")),
        ],
    )
    def test_captions_of_a_task_say_its_verb(self, name: str, words: tuple[str, ...]) -> None:
        task = TASKS[TASK_NAMES.index(name)]
        for seed in range(20):
            lines = task_captions(task, np.random.default_rng(seed))
            assert 1 <= len(lines) == len(set(lines)) <= 3
            for line in lines:
                assert any(word in line for word in words), line
                assert line[0].isupper()
                assert line.endswith(".")

    def test_no_two_classes_share_a_caption(self) -> None:
        for classes in (TASKS, ACTIONS):
            clauses = [clause for entry in classes for clause in entry.clauses]
            assert len(clauses) == len(set(clauses))

    def test_captions_of_an_action_say_its_verb_and_the_clothes(self) -> None:
        jump = ACTIONS[ACTION_NAMES.index("jump")]
        seen = set()
        for seed in range(30):
            lines = action_captions(jump, "an orange shirt", "blue shorts", np.random.default_rng(seed))
            assert len(lines) == len(set(lines))
            assert all("jump" in line for line in lines)
            seen.update(lines)
        assert "Someone in an orange shirt takes a jump." in seen
        assert "A figure in blue shorts jumps forward." in seen

    def test_outfits_are_described_as_they_are_coloured(self) -> None:
        for seed in range(50):
            outfit = draw_outfit(np.random.default_rng(seed))
            assert outfit.shirt != outfit.trousers
            assert outfit.shirt in outfit.top
            assert outfit.colour("chest") == COLOURS[outfit.shirt]
            assert outfit.colour("left_hip") == COLOURS[outfit.trousers]
            bare = outfit.colour("left_knee") == outfit.skin
            assert bare == outfit.legs.endswith("shorts")


class TestSpecs:
    @pytest.mark.parametrize("config", CONFIGS)
    @pytest.mark.parametrize("videos", [7, 50, 333])
    def test_classes_are_balanced(self, config: type[SimulatedConfig], videos: int) -> None:
        made = config(videos)
        for split, count in made.counts.items():
            specs = made.specs(split)
            assert [spec.index for spec in specs] == list(range(count))
            numbers = Counter(spec.label for spec in specs)
            shares = [numbers[label] for label in range(len(config.classes))]
            assert max(shares) - min(shares) <= 1

    def test_held_out_splits_have_every_class_by_default(self) -> None:
        assert MetaworldConfig(1000).counts == {"train": 1000, "val": 100, "test": 100}
        assert MetaworldConfig(20).counts == {"train": 20, "val": 50, "test": 50}
        assert MocapConfig(20, val=0, test=3).counts == {"train": 20, "val": 0, "test": 3}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"videos": 0}, "videos is 0, expected"),
            ({"seed": -1}, "seed is -1, expected"),
            ({"test": -1}, "test is -1, expected"),
            ({"short_sides": ()}, "empty list"),
            ({"short_sides": (128, 129)}, r"even numbers from 64 to 360, not \[129\]"),
            ({"short_sides": (32,)}, r"not \[32\]"),
        ],
    )
    def test_bad_values_are_named(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MocapConfig(**{"videos": 5, **arguments})  # type: ignore[arg-type]

    def test_every_video_has_a_stream_of_its_own(self) -> None:
        specs = [
            ClipSpec(split, index, 0, seed, (128,))
            for split in ("train", "val", "test")
            for index in range(30)
            for seed in (0, 1)
        ]
        draws = [spec.rng(stream).random() for spec in specs for stream in (0, 1)]
        assert len(set(draws)) == len(draws)
        assert specs[0].rng().random() == draws[0]

    def test_sizes_are_even_and_have_the_short_side(self) -> None:
        rng = np.random.default_rng(0)
        sizes = {draw_size(rng, (128, 160)) for _ in range(100)}
        assert len(sizes) == 6
        assert all(width % 2 == height % 2 == 0 and height in (128, 160) for width, height in sizes)


class TestViewpoints:
    def test_bands_are_shared_out_among_the_splits(self) -> None:
        bands = [band for split in human_scene.BANDS.values() for band in split]
        assert sorted(bands) == list(range(round(180 / human_scene.BAND)))

    def test_splits_share_no_viewpoint_mirrored_or_not(self) -> None:
        rng = np.random.default_rng(0)
        angles = {
            split: np.abs([human_scene.draw_viewpoint(rng, split) for _ in range(400)])
            for split in human_scene.BANDS
        }
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            apart = np.abs(angles[one][:, None] - angles[other])
            assert apart.min() >= 2 * human_scene.GUARD

    def test_both_sides_are_filmed(self) -> None:
        rng = np.random.default_rng(0)
        angles = [human_scene.draw_viewpoint(rng, "train") for _ in range(200)]
        assert 60 < sum(angle > 0 for angle in angles) < 140

    def test_splits_share_no_thing(self) -> None:
        things = {
            split: {human_scene._draw_object(np.random.default_rng(seed), split)[0] for seed in range(300)}
            for split in human_scene.BANDS
        }
        assert not things["train"] & things["val"]
        assert not things["train"] & things["test"]
        assert not things["val"] & things["test"]


class TestMotion:
    @pytest.fixture
    def motion(self) -> Motion:
        """Ten frames of a step forwards and to the right, all joints at angles of their own."""
        rng = np.random.default_rng(0)
        rotations = rng.normal(size=(1, len(ROTATIONS), 4)) + 0.01 * rng.normal(size=(10, len(ROTATIONS), 4))
        rotations /= np.linalg.norm(rotations, axis=-1, keepdims=True)
        position = np.linspace(0, 1, 10)[:, None] * (2, 0, 0.5) + (0, 0.9, 0)
        return Motion(0.1, position, rotations, rng.normal(size=(10, len(ANGLES))))

    def test_a_mirror_image_of_a_mirror_image_is_the_original(self, motion: Motion) -> None:
        again = motion.mirrored().mirrored()
        np.testing.assert_allclose(again.position, motion.position)
        np.testing.assert_allclose(again.rotations, motion.rotations)
        np.testing.assert_allclose(again.angles, motion.angles)

    def test_a_mirror_exchanges_sides_and_heading(self, motion: Motion) -> None:
        mirrored = motion.mirrored()
        assert mirrored.heading == pytest.approx(-motion.heading)
        np.testing.assert_array_equal(
            mirrored.angles[:, ANGLES.index("left_knee")], motion.angles[:, ANGLES.index("right_knee")]
        )
        assert mirrored.position[-1, 2] == -motion.position[-1, 2]

    def test_repetitions_go_on_where_the_one_before_ended(self, motion: Motion) -> None:
        thrice = motion.repeated(3)
        assert thrice.duration == pytest.approx(3 * motion.duration)
        np.testing.assert_allclose(thrice.position[-1], (6, 0.9, 1.5))
        np.testing.assert_allclose(np.diff(thrice.position[:, 0]), 2 / 9)

    def test_poses_between_frames_are_blended(self, motion: Motion) -> None:
        poses = motion.at(np.array([-1.0, 0.0, 0.25, 99.0]))
        np.testing.assert_allclose(poses.position[2], (motion.position[2] + motion.position[3]) / 2)
        np.testing.assert_array_equal(poses.position[0], poses.position[1])
        np.testing.assert_allclose(poses.angles[3], motion.angles[-1])
        np.testing.assert_allclose(np.linalg.norm(poses.rotations, axis=-1), 1)

    def test_heading_is_measured_from_forwards_to_the_left(self) -> None:
        rotations = np.zeros((2, len(ROTATIONS), 4))
        rotations[:, 0] = np.cos(0.35), 0, np.sin(0.35), 0  # 0.7 radians about the vertical.
        motion = Motion(0.1, np.zeros((2, 3)), rotations, np.zeros((2, len(ANGLES))))
        assert motion.heading == pytest.approx(0.7)


@pytest.mark.parametrize("success", [16, 60, 200, 470])
def test_takes_show_the_success_at_a_speed_that_gives_enough_frames(success: int) -> None:
    episode = Episode(np.zeros((success + 25, 9)), np.zeros((success + 25, 3, 3)), success, 1)
    speeds = set()
    for index in range(40):
        spec = ClipSpec("train", index, 0, 0, (128,))
        take = plan_take(spec.rng(), spec, episode)
        assert 0 <= take.steps[0] <= 0.3 * success
        assert success - take.speed < take.steps[-1] < len(episode.states)
        assert len(take.steps) >= 12
        assert len(take.steps) <= FRAMES[1] or take.speed == 4
        speeds.add(take.speed)
    assert len(speeds) > 1 or success in (16, 470)


@pytest.mark.skipif(bool(importlib.util.find_spec("metaworld")), reason="metaworld is installed")
def test_missing_metaworld_is_named_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pip install 'fluxvit\[metaworld\]'"):
        make_dataset(tmp_path / "out", MetaworldConfig(1))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(bool(importlib.util.find_spec("pybullet")), reason="pybullet is installed")
def test_missing_pybullet_is_named_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pip install 'fluxvit\[mocap\]'"):
        make_dataset(tmp_path / "out", MocapConfig(1))
    assert not (tmp_path / "out").exists()


def check_files(world: Path, name: str, classes: tuple[str, ...]) -> None:
    """Every line describes a file that decodes, and the loaders' manifest reads it."""
    facts = json.loads((world / "dataset.json").read_text(encoding="utf-8"))
    assert facts["name"] == name
    assert facts["classes"] == list(classes)
    for split, count in facts["counts"].items():
        manifest = read_manifest(world / f"{split}.jsonl", labels=classes)
        assert len(manifest) == count
        for line in (world / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["motion"] == classes[record["label"]]
            assert record["captions"]
            with open_video(world / record["path"]) as video:
                frames = video.read(video.times)
            assert frames.shape == (record["frames"], record["height"], record["width"], 3)
            assert record["duration"] == pytest.approx(record["frames"] / record["fps"], abs=1e-4)
            moving = np.abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
            assert moving.mean() > 0.1


# Not importorskip: the first import has to be load_simulator's, which tells MuJoCo how to draw.
@pytest.mark.skipif(not importlib.util.find_spec("metaworld"), reason="needs the extra metaworld")
class TestMetaworld:
    def test_classes_are_the_tasks_of_the_package(self) -> None:
        _, environments, _ = load_simulator()
        assert {f"{name}-v3" for name in TASK_NAMES} == set(environments.ALL_V3_ENVIRONMENTS)

    def test_files_of_two_workers_and_what_is_missing(self, tmp_path: Path) -> None:
        config = MetaworldConfig(4, seed=5, short_sides=(64,), val=1, test=1)
        world = make_dataset(tmp_path, config, workers=2, progress=False)
        check_files(world, "metaworld", TASK_NAMES)
        first, kept = ((world / f"train/00000{index}.mp4") for index in (0, 1))
        before, untouched = first.read_bytes(), kept.stat().st_mtime_ns
        first.unlink()
        make_dataset(tmp_path, config, workers=1, progress=False)
        assert first.read_bytes() == before
        assert kept.stat().st_mtime_ns == untouched
        with pytest.raises(ValueError, match="seed is 5 there and 6 here"):
            make_dataset(tmp_path, replace(config, seed=6), workers=1)

    @pytest.mark.parametrize("task", ["drawer-open", "assembly", "plate-slide", "stick-push"])
    def test_a_video_does_not_depend_on_those_before(self, task: str, tmp_path: Path) -> None:
        spec = ClipSpec("train", 3, TASK_NAMES.index(task), 0, (64,))
        for name in ("fresh", "again"):
            MetaworldConfig(1).write(tmp_path / f"{name}.mp4", spec)
            MetaworldConfig(1).write(tmp_path / "other.mp4", replace(spec, index=4))
        assert (tmp_path / "fresh.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
        assert (tmp_path / "fresh.mp4").read_bytes() != (tmp_path / "other.mp4").read_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("pybullet"), reason="needs the extra mocap")
class TestMocap:
    def test_every_action_has_a_clip(self) -> None:
        for action in ACTIONS:
            take = mocap_module._theatre().take(action)
            assert take.duration > 0.7
            assert take.rotations.shape[1:] == (len(ROTATIONS), 4)

    def test_files_of_two_workers_and_what_is_missing(self, tmp_path: Path) -> None:
        config = MocapConfig(5, seed=5, short_sides=(64,), val=1, test=1)
        world = make_dataset(tmp_path, config, workers=2, progress=False)
        check_files(world, "mocap", ACTION_NAMES)
        first = world / "train/000000.mp4"
        before = first.read_bytes()
        first.unlink()
        make_dataset(tmp_path, config, workers=1, progress=False)
        assert first.read_bytes() == before

    def test_links_are_numbered_as_in_the_file(self) -> None:
        theatre = mocap_module._theatre()
        bullet = theatre._bullet
        person = theatre._enter(draw_outfit(np.random.default_rng(0)))
        assert {bullet.getJointInfo(person, link)[12].decode(): link for link in LINKS.values()} == LINKS

    def test_viewpoint_zero_is_in_front_of_the_person(self) -> None:
        theatre = mocap_module._theatre()
        walk = ACTIONS[ACTION_NAMES.index("walk")]
        spec = ClipSpec("train", 0, ACTION_NAMES.index("walk"), 0, (64,))
        performance = human_scene.plan_performance(spec.rng(), spec, walk, theatre.take(walk))
        path = human_scene._to_stage(performance.poses.position)
        shot = human_scene._aim(spec.rng(), replace(performance, viewpoint=0.0), path)
        # Who walks towards the camera comes nearer.
        assert (path[-1] - path[0])[:2] @ shot.offset[:2] > 0
