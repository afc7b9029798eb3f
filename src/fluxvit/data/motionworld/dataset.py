"""MotionWorld on disk: videos, annotations, and how to make them in parallel and in several sittings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.data.making import SPLITS, HeldOut, Recipe, Videos, balanced, make_dataset, split_counts
from fluxvit.data.motionworld.acts import ACTS, DEFAULT_FACTORS, check_factors, motion_classes
from fluxvit.data.motionworld.difficulty import get_difficulty
from fluxvit.data.motionworld.language import describe
from fluxvit.data.motionworld.render import render_scene
from fluxvit.data.motionworld.scene import SampleSpec, plan
from fluxvit.data.motionworld.shapes import OBJECTS
from fluxvit.schema import Seed, check
from fluxvit.video.writer import write_video

VERSION = 1
"""Goes up whenever the same configuration would give other frames or other labels."""

LICENCE = (
    "Videos and annotations: CC0 1.0. The textures they show are procedural, or crops of public domain and "
    "CC0 photographs listed in fluxvit/data/assets/README.md."
)


@dataclass(frozen=True)
class MotionWorldConfig:
    """What to make.

    Args:
        videos: Number of training videos.
        seed: Seed of everything random.
        difficulty: Name of a preset: ``demo``, ``easy``, ``medium`` or ``hard``.
        factors: Binary factors whose orientations make up the motion label, ``2 ** len(factors)`` classes.
        val: Number of validation videos. By default a tenth of ``videos``, but at least one per motion class.
        test: Number of test videos, with the same default.

    Raises:
        ValueError: A number is out of range, or a name is unknown.
    """

    videos: Videos
    seed: Seed = 0
    difficulty: str = "easy"
    factors: tuple[str, ...] = DEFAULT_FACTORS
    val: HeldOut | None = None
    test: HeldOut | None = None

    def __post_init__(self) -> None:
        check(self)
        check_factors(self.factors)
        get_difficulty(self.difficulty)
        counts = split_counts(self.videos, self.val, self.test, least=2 ** len(self.factors))
        for name in ("val", "test"):
            object.__setattr__(self, name, counts[name])

    @property
    def counts(self) -> dict[str, int]:
        """Number of videos in each split."""
        return {"train": self.videos, "val": self.val or 0, "test": self.test or 0}


def sample_specs(config: MotionWorldConfig, split: str) -> list[SampleSpec]:
    """The videos of a split, in order.

    Motion and object classes are equally frequent up to rounding, and so are their pairs as far as the number
    of videos allows: whole grids of all pairs first, then for the remainder two lists balanced by themselves.
    """
    motions, objects, count = 2 ** len(config.factors), len(OBJECTS), config.counts[split]
    # A stream apart from those of the scenes, whose keys are three or four numbers.
    rng = np.random.default_rng([config.seed, SPLITS.index(split)])
    grids, rest = divmod(count, motions * objects)
    pairs = np.tile(np.stack(np.divmod(np.arange(motions * objects), objects)), grids)
    remainder = np.stack([balanced(rng, rest, motions), balanced(rng, rest, objects)])
    labels = rng.permutation(np.concatenate([pairs, remainder], 1), axis=1)
    return [
        SampleSpec(split, index, int(motion), int(thing), config.seed, config.difficulty, config.factors)
        for index, (motion, thing) in enumerate(labels.T)
    ]


def annotate(spec: SampleSpec) -> dict[str, Any]:
    """The line of a video in its split's ``.jsonl`` file, but for its path. Nothing is rendered."""
    scene = plan(spec)
    captions, questions = describe(spec, scene)
    acts = [
        {
            "act": event.act,
            "orientation": ACTS[event.act].orientations[event.orientation],
            "start": round(event.start / scene.fps, 4),
            "end": round((event.start + event.frames) / scene.fps, 4),
        }
        for event in scene.events
    ]
    return {
        "label": spec.motion,
        "motion": motion_classes(spec.factors)[spec.motion],
        "object": spec.object,
        "object_name": OBJECTS[spec.object],
        "captions": captions,
        "qa": [asdict(question) for question in questions],
        "acts": acts,
        "frames": scene.frames,
        "fps": scene.fps,
        "width": scene.width,
        "height": scene.height,
        "duration": round(scene.frames / scene.fps, 4),
    }


def make_motionworld(
    out: str | Path, config: MotionWorldConfig, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Make a dataset, or what is missing of one.

    See :func:`fluxvit.data.making.make_dataset` for interruptions and worker processes.

    Args:
        out: Folder to make it in.
        config: What to make.
        workers: Number of processes, by default one per core. With 1, the calling process does the work.
        progress: Report progress on standard error.

    Returns:
        ``out``.

    Raises:
        ValueError: ``workers`` is not positive, or ``out`` holds a dataset of another configuration.
    """
    recipe = Recipe(
        name="MotionWorld",
        version=VERSION,
        config=asdict(config),
        specs={split: sample_specs(config, split) for split in SPLITS},
        write=_write_one,
        annotate=_annotate_one,
        facts={
            "motion_classes": motion_classes(config.factors),
            "object_classes": list(OBJECTS),
            "licence": LICENCE,
        },
    )
    return make_dataset(out, recipe, workers=workers, progress=progress)


def _write_one(path: Path, spec: SampleSpec) -> None:
    scene = plan(spec)
    write_video(path, render_scene(scene), scene.fps, crf=scene.crf)


def _annotate_one(path: Path, spec: SampleSpec) -> dict[str, Any]:
    return annotate(spec)
