"""MotionWorld: the label is a permutation of frames, and datasets are complete, balanced and repeatable."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from fluxvit.synthetic.builder import SPLITS, make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.synthetic.motionworld.acts import (
    ACTS,
    FACTORS,
    STATE,
    Factor,
    act_states,
    factor_values,
    motion_classes,
    playback,
)
from fluxvit.synthetic.motionworld.difficulty import DIFFICULTIES, DifficultyName
from fluxvit.synthetic.motionworld.render import _Sprite, render
from fluxvit.synthetic.motionworld.scene import SampleSpec, Scene, draw_scene
from fluxvit.synthetic.motionworld.shapes import OBJECTS, silhouette
from fluxvit.synthetic.motionworld.textures import ASSETS, PHOTOS

SPEC = SampleSpec("train", 3, motion=5, object=9, seed=7, difficulty="demo")
WORLD = MotionWorldConfig()
EVERYTHING = replace(SPEC, factors=FACTORS, motion=0)


def frame_set(spec: SampleSpec) -> Counter[bytes]:
    return Counter(frame.tobytes() for frame in render(draw_scene(spec)))


def bare(scene: Scene) -> Scene:
    """The scene with nothing in it that moves but the main object."""
    return replace(
        scene,
        distractors=(),
        wander=scene.wander[:0],
        camera=np.zeros_like(scene.camera),
        sway=np.zeros_like(scene.sway),
        exposure=np.ones_like(scene.exposure),
        noise=0.0,
    )


class TestActs:
    @pytest.mark.parametrize("frames", [6, 11, 30])
    @pytest.mark.parametrize("act", [name for name in ACTS if ACTS[name].second == "reverse"])
    def test_second_orientation_is_the_time_reversal(self, act: str, frames: int) -> None:
        states = act_states(act, frames, ease=0.3)
        np.testing.assert_array_equal(states[playback(act, 1, frames)], states[::-1])

    @pytest.mark.parametrize("frames", [6, 11, 30])
    @pytest.mark.parametrize("act", list(ACTS))
    def test_orientations_show_the_same_states(self, act: str, frames: int) -> None:
        for orientation in (0, 1):
            assert sorted(playback(act, orientation, frames)) == list(range(frames))

    @pytest.mark.parametrize(("act", "field"), [("hop", "hop"), ("blink", "fade")])
    def test_a_fold_does_it_twice(self, act: str, field: str) -> None:
        once = act_states(act, 24)[field]
        twice = once[playback(act, 1, 24)]
        for values, times in ((once, 1), (twice, 2)):
            starts = np.diff((np.concatenate([[0], values]) > 0.5).astype(int)) == 1
            assert starts.sum() == times

    @pytest.mark.parametrize("act", list(ACTS))
    def test_loops_begin_and_end_in_the_neutral_state(self, act: str) -> None:
        states = act_states(act, 2000)
        for name in STATE.names or ():
            ends = states[name][[0, -1]]
            # Positions and angles are cyclic: a whole turn is where it started. A visitor is out of sight
            # at either end of its way.
            assert np.abs(ends - np.round(ends)).max() < 0.01, name
            if name not in ("slide", "lift", "spin", "visit"):
                assert np.abs(ends).max() < 0.01, name

    def test_directions(self) -> None:
        assert act_states("slide", 9)["slide"][0] < 0  # "left": towards smaller x
        assert act_states("lift", 9)["lift"][0] < 0  # "up": towards smaller y
        assert act_states("depth", 9)["zoom"][0] > 0  # "approach": larger
        assert act_states("spin", 9)["spin"][0] > 0  # "clockwise": from x towards y, which points down
        assert act_states("pass", 9)["visit"][0] < 0.5  # "left to right"


class TestScene:
    @pytest.mark.parametrize("spec", [SPEC, replace(EVERYTHING, difficulty="hard")])
    def test_all_motion_classes_of_a_video_have_identical_frames(self, spec: SampleSpec) -> None:
        classes = range(len(motion_classes(spec.factors)))
        scenes = {motion: draw_scene(replace(spec, motion=motion)) for motion in classes}
        first = scenes[0]
        for scene in scenes.values():
            assert sorted(scene.order) == list(range(first.frames))
            for field in ("states", "camera", "sway", "wander", "exposure", "noise_origin"):
                np.testing.assert_array_equal(getattr(scene, field), getattr(first, field))
        orders = {tuple(scene.order) for scene in scenes.values()}
        assert len(orders) == len(scenes), "every class plays the frames in an order of its own"

    def test_rendered_frames_differ_only_in_their_order(self) -> None:
        reference = frame_set(SPEC)
        for motion in (0, 10, 15):
            assert frame_set(replace(SPEC, motion=motion)) == reference

    def test_neutral_frames_surround_every_act(self) -> None:
        for index in range(20):
            scene = draw_scene(replace(EVERYTHING, index=index, motion=index * 11))
            played = scene.states[scene.order]
            neutral = np.zeros((), STATE)
            for event in scene.events:
                assert played[event.start - 1] == neutral
                assert played[event.start + event.frames] == neutral
                assert (played[event.start : event.start + event.frames] != neutral).any()

    def test_order_factor_decides_what_comes_first_and_nothing_else_does(self) -> None:
        for index in range(20):
            for motion in range(16):
                scene = draw_scene(replace(SPEC, index=index, motion=motion))
                acts = [event.act for event in scene.events]
                wanted = factor_values(SPEC.factors, motion)["order"]
                assert (acts.index("slide") > acts.index("lift")) == bool(wanted)
                assert sorted(acts) == ["depth", "lift", "slide"]

    def test_nuisances_are_symmetric_in_time(self) -> None:
        # Net displacement between the first and the second half of a slide says nothing of its direction.
        shifts = []
        for index in range(400):
            scene = draw_scene(replace(SPEC, index=index, difficulty="hard"))
            event = next(event for event in scene.events if event.act == "slide")
            path = scene.sway[scene.order][event.start : event.start + event.frames, 0]
            half = len(path) // 2
            shifts.append(path[:half].mean() - path[-half:].mean())
        assert abs(np.mean(shifts)) < 4 * np.std(shifts) / np.sqrt(len(shifts))

    def test_frames_are_a_function_of_the_spec(self) -> None:
        first, again = list(render(draw_scene(SPEC))), list(render(draw_scene(SPEC)))
        np.testing.assert_array_equal(first, again)
        assert first[0].dtype == np.uint8
        other = list(render(draw_scene(replace(SPEC, index=4))))
        assert not np.array_equal(first[0], other[0])

    @pytest.mark.parametrize("difficulty", list(DIFFICULTIES))
    def test_directions_on_screen(self, difficulty: DifficultyName) -> None:
        spec = SampleSpec("val", 1, motion=0, object=9, difficulty=difficulty)  # left, up, approach
        scene = bare(draw_scene(spec))
        frames = np.stack(list(render(scene))).astype(float)
        hidden = replace(scene, states=scene.states.copy(), order=scene.order[:1])
        hidden.states["fade"] = 1
        (background,) = render(hidden)
        changed = np.abs(frames - background).sum(-1) > 30
        for event in scene.events:
            before, after = changed[event.start - 1], changed[event.start + event.frames // 6]
            x, y = (np.nonzero(after)[axis].mean() - np.nonzero(before)[axis].mean() for axis in (1, 0))
            if event.act == "slide":
                assert x < -1
            elif event.act == "lift":
                assert y < -1
            elif event.act == "depth":
                assert after.sum() > before.sum()

    def test_positive_angles_turn_clockwise_on_screen(self) -> None:
        sprite = _Sprite(draw_scene(SPEC).main)
        upright, turned = np.zeros((2, 64, 64, 3), np.float32)
        sprite.paste(upright, 32, 32, 20, 0.0, 1.0)
        sprite.paste(turned, 32, 32, 20, np.pi / 2, 1.0)
        np.testing.assert_allclose(turned, np.rot90(upright, -1), atol=1e-3)

    @pytest.mark.parametrize("difficulty", list(DIFFICULTIES))
    def test_sizes_are_even_and_objects_inside(self, difficulty: DifficultyName) -> None:
        for index in range(40):
            scene = draw_scene(SampleSpec("test", index, 0, index % 12, difficulty=difficulty))
            short = min(scene.width, scene.height)
            assert scene.width % 2 == scene.height % 2 == 0
            assert 96 <= short <= 144
            assert 1.5 < scene.frames / scene.fps <= 9
            radius = scene.main.size / 2
            assert radius < scene.main.home[0] < scene.width / short - radius
            assert radius < scene.main.home[1] < scene.height / short - radius

    @pytest.mark.parametrize("name", OBJECTS)
    def test_silhouettes_have_no_mirror_axis(self, name: str) -> None:
        inside = silhouette(name) < 0
        for mirrored in (inside[::-1], inside[:, ::-1], inside.T, inside[::-1, ::-1].T):
            overlap = (inside & mirrored).sum() / (inside | mirrored).sum()
            assert overlap < 0.93


class TestSplits:
    def test_splits_share_no_texture(self) -> None:
        used: dict[str, set[tuple[str, int]]] = {}
        for split in SPLITS:
            scenes = [draw_scene(SampleSpec(split, index, 0, 0, difficulty="hard")) for index in range(150)]
            refs = [scene.background[0] for scene in scenes]
            refs += [thing.texture for s in scenes for thing in (s.main, s.visitor, *s.distractors)]
            assert {ref.source for ref in refs if ref.source in PHOTOS[split]} == {*PHOTOS[split]}
            assert {ref.seed % 3 for ref in refs} == {SPLITS.index(split)}
            used[split] = {(ref.source, ref.seed) for ref in refs}
        assert not used["train"] & used["val"]
        assert not used["train"] & used["test"]
        assert not used["val"] & used["test"]
        photos = [name for split in SPLITS for name in PHOTOS[split]]
        assert len(photos) == len(set(photos))

    def test_every_photograph_is_listed_with_its_licence(self) -> None:
        listed = (ASSETS / "README.md").read_text(encoding="utf-8")
        files = {path.stem for path in ASSETS.glob("*.jpg")}
        assert files == {name for split in SPLITS for name in PHOTOS[split]}
        for name in files:
            (line,) = [line for line in listed.splitlines() if f"| `{name}.jpg`" in line]
            assert "CC0" in line or "public domain" in line

    @pytest.mark.parametrize("videos", [1, 50, 192, 500])
    def test_labels_are_balanced(self, videos: int) -> None:
        specs = MotionWorldConfig(videos).specs("train")
        assert [spec.index for spec in specs] == list(range(videos))
        for classes, labels in ((16, [s.motion for s in specs]), (12, [s.object for s in specs])):
            counts = Counter(labels)
            numbers = [counts[label] for label in range(classes)]
            assert max(numbers) - min(numbers) <= 1
        if videos == 192:
            assert len({(spec.motion, spec.object) for spec in specs}) == 192

    def test_motion_says_nothing_about_the_scene(self) -> None:
        # Specs that differ in the motion class only get the same scene; see TestScene for the frames.
        for motion in range(16):
            assert draw_scene(replace(SPEC, motion=motion)).main == draw_scene(SPEC).main


class TestConfig:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"factors": ()}, "factors is empty"),
            ({"factors": ("slide", "jump")}, r"factors\[1\] is 'jump', expected"),
            ({"factors": ("slide", "slide")}, "each may appear once"),
            ({"factors": ("slide", "order")}, "needs both"),
            ({"difficulty": "tricky"}, "expected one of 'demo', 'easy', 'hard', 'medium'"),
            ({"videos": 0}, "videos is 0, expected"),
            ({"seed": -1}, "seed is -1, expected"),
            ({"val": -1}, "val is -1, expected"),
        ],
    )
    def test_bad_values_are_named(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MotionWorldConfig(**{"videos": 5, **arguments})  # type: ignore[arg-type]

    def test_default_split_sizes(self) -> None:
        assert MotionWorldConfig(1000).counts == {"train": 1000, "val": 100, "test": 100}
        assert MotionWorldConfig(20).counts == {"train": 20, "val": 16, "test": 16}
        assert MotionWorldConfig(20, val=0, test=3).counts == {"train": 20, "val": 0, "test": 3}

    def test_class_names(self) -> None:
        names = motion_classes()
        assert len(names) == len(set(names)) == 16
        assert names[0] == "left, up, approach, slide first"
        assert names[0b1001] == "right, up, approach, lift first"
        assert factor_values(("slide", "lift", "depth", "order"), 0b1001) == {
            "slide": 1,
            "lift": 0,
            "depth": 0,
            "order": 1,
        }


def answers_of(questions: list[dict], what: str) -> set[str]:
    return {
        choice for question in questions if question["question"] == what for choice in question["choices"]
    }


class TestLanguage:
    WORDS = {  # noqa: RUF012
        ("slide", "left"): ("slides to the left", "leaves on the left"),
        ("slide", "right"): ("slides to the right", "leaves on the right"),
        ("lift", "up"): ("moves up", "rises"),
        ("lift", "down"): ("moves down", "sinks"),
        ("depth", "approach"): ("comes closer", "approaches", "grows"),
        ("depth", "recede"): ("moves away", "recedes", "gets smaller"),
        ("spin", "clockwise"): ("spins clockwise", "turn clockwise"),
        ("spin", "counter-clockwise"): ("spins counter-clockwise", "turn counter-clockwise"),
        ("pass", "left to right"): ("from left to right", "going right"),
        ("pass", "right to left"): ("from right to left", "going left"),
        ("hop", "one hop"): ("hops once", "one slow hop"),
        ("hop", "two hops"): ("hops twice", "two quick hops"),
        ("blink", "one blink"): ("vanishes once", "one time"),
        ("blink", "two blinks"): ("vanishes twice", "two times"),
    }

    def test_captions_name_the_object_and_the_acts_in_their_order(self) -> None:
        for index in range(60):
            record = WORLD.annotate(replace(EVERYTHING, index=index, motion=index * 4, object=index % 12))
            assert 1 <= len(record["captions"]) <= 3
            assert len(set(record["captions"])) == len(record["captions"])
            for caption in record["captions"]:
                assert record["object_name"] in caption
                places = []
                for act in record["acts"]:
                    found = [caption.find(word) for word in self.WORDS[act["act"], act["orientation"]]]
                    places.append(max(found))
                assert min(places) >= 0, caption
                assert places == sorted(places), caption

    @pytest.mark.parametrize("factors", [("slide",), ("hop", "blink"), SPEC.factors, FACTORS])
    def test_questions(self, factors: tuple[Factor, ...]) -> None:
        for index in range(40):
            spec = replace(SPEC, index=index, factors=factors, motion=index % 2 ** len(factors))
            questions = WORLD.annotate(spec)["qa"]
            assert 3 <= len(questions) <= 6
            for question in questions:
                assert question["answer"] in question["choices"]
                assert len(question["choices"]) == len(set(question["choices"])) >= 2
            asked = [question["question"] for question in questions]
            assert len(set(asked)) == len(asked)
            kinds = {question["question"]: question["task"] for question in questions}
            assert kinds.pop("What object is moving?") == "object"
            for what, kind in kinds.items():
                starts = {"How often": "times", "Which way": "direction", "What happens": "order"}
                told = [starts[start] for start in starts if what.startswith(start)]
                assert kind in (told or ["direction", "order", "presence"])
                assert (kind == "presence") == (answers_of(questions, what) == {"yes", "no"})

    def test_answers_follow_the_label(self) -> None:
        for motion in range(16):
            answers = {
                qa["question"]: qa["answer"] for qa in WORLD.annotate(replace(SPEC, motion=motion))["qa"]
            }
            values = factor_values(SPEC.factors, motion)
            assert (
                answers["Which way does the mug slide?"] == ("to the left", "to the right")[values["slide"]]
            )
            assert answers["Does the mug move up or down?"] == ("up", "down")[values["lift"]]
            assert answers["What object is moving?"] == "mug"


class TestFiles:
    CONFIG = MotionWorldConfig(9, seed=3, difficulty="demo", factors=("slide",), val=2, test=2)

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_dataset(tmp_path_factory.mktemp("mw") / "world", cls.CONFIG, workers=1, progress=False)

    def test_every_line_describes_a_file_that_decodes(self, world: Path) -> None:
        summary = json.loads((world / "dataset.json").read_text(encoding="utf-8"))
        assert summary["motion_classes"] == ["left", "right"]
        assert summary["counts"] == {"train": 9, "val": 2, "test": 2}
        for split, count in summary["counts"].items():
            lines = (world / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            assert len(lines) == count
            for number, record in enumerate(map(json.loads, lines)):
                assert record["path"] == f"{split}/{number:06d}.mp4"
                assert record["motion"] == summary["motion_classes"][record["label"]]
                assert record["object_name"] == summary["object_classes"][record["object"]]
                (act,) = record["acts"]
                assert 0 < act["start"] < act["end"] < record["duration"]
                with av.open(str(world / record["path"])) as container:
                    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                    assert container.streams.video[0].average_rate == record["fps"]
                assert len(frames) == record["frames"]
                assert frames[0].shape == (record["height"], record["width"], 3)

    def test_files_show_what_render_draws(self, world: Path) -> None:
        spec = self.CONFIG.specs("train")[0]
        with av.open(str(world / "train/000000.mp4")) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        drawn = list(render(draw_scene(spec)))
        assert np.abs(np.stack(decoded).astype(float) - np.stack(drawn)).mean() < 12

    def test_two_workers_make_the_same_files(self, world: Path, tmp_path: Path) -> None:
        other = make_dataset(tmp_path / "other", self.CONFIG, workers=2, progress=False)
        files = sorted(path.relative_to(world) for path in world.rglob("*.*"))
        assert files == sorted(path.relative_to(other) for path in other.rglob("*.*"))
        for path in files:
            assert (world / path).read_bytes() == (other / path).read_bytes(), path

    def test_a_second_call_writes_only_what_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = replace(self.CONFIG, videos=3)
        make_dataset(tmp_path, config, workers=1, progress=False)
        (tmp_path / "train/000001.mp4").unlink()
        written = []
        write = MotionWorldConfig.write

        def record(self: MotionWorldConfig, path: Path, spec: SampleSpec) -> None:
            written.append(spec.index)
            write(self, path, spec)

        monkeypatch.setattr(MotionWorldConfig, "write", record)
        make_dataset(tmp_path, config, workers=1, progress=False)
        assert written == [1]
        assert (tmp_path / "train/000001.mp4").exists()

    def test_another_config_is_refused_with_the_difference(self, world: Path) -> None:
        with pytest.raises(ValueError, match=r"seed is 3 there and 4 here"):
            make_dataset(world, replace(self.CONFIG, seed=4), workers=1)

    def test_foreign_folders_and_bad_worker_counts_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        with pytest.raises(ValueError, match="not a MotionWorld"):
            make_dataset(tmp_path, self.CONFIG, workers=1)
        with pytest.raises(ValueError, match="workers"):
            make_dataset(tmp_path / "new", self.CONFIG, workers=0)
