"""MotionWorld on disk: its videos and annotations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta

from fluxvit.synthetic.builder import SPLITS, DatasetConfig, balanced, make_dataset
from fluxvit.synthetic.motionworld.acts import ACTS, DEFAULT_FACTORS, Factor, check_factors, motion_classes
from fluxvit.synthetic.motionworld.difficulty import DifficultyName
from fluxvit.synthetic.motionworld.language import describe
from fluxvit.synthetic.motionworld.render import render
from fluxvit.synthetic.motionworld.scene import SampleSpec, draw_scene
from fluxvit.synthetic.motionworld.shapes import OBJECTS
from fluxvit.utils.options import POSITIONAL
from fluxvit.video.writer import write_video

LICENCE = (
    "Videos and annotations: CC0 1.0. The textures they show are procedural, or crops of public domain and "
    "CC0 photographs listed in fluxvit/synthetic/assets/README.md."
)


@dataclass(frozen=True)
class MotionWorldConfig(DatasetConfig[SampleSpec]):
    """A MotionWorld to make; arguments that are not listed here are those of `DatasetConfig`.

    Args:
        difficulty: Preset of object sizes, contrasts, noise and durations.
        factors: Binary factors of the motion, such as slide (left or right), out of slide, lift, depth, spin,
            pass, hop, blink and order. Each combination of their values is a motion class, so that n factors
            make 2 ** n classes.

    Raises:
        ValueError: A number is out of range, or a name is unknown.
    """

    name: ClassVar[str] = "MotionWorld"

    difficulty: DifficultyName = "easy"
    factors: tuple[Factor, ...] = DEFAULT_FACTORS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors(self.factors)

    @property
    def num_classes(self) -> int:
        return 2 ** len(self.factors)

    @property
    def facts(self) -> dict[str, Any]:
        classes = {"motion_classes": motion_classes(self.factors), "object_classes": list(OBJECTS)}
        return {**classes, "licence": LICENCE}

    def specs(self, split: str) -> list[SampleSpec]:
        """The videos of a split, in order.

        Motion and object classes are equally frequent up to one video. All pairs of them occur as often as
        the number of videos allows; for the remainder, motions and objects are balanced separately.
        """
        motions, objects, count = self.num_classes, len(OBJECTS), self.counts[split]
        # The keys of the scenes have three or four numbers, so this stream is independent of them.
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        grids, rest = divmod(count, motions * objects)
        pairs = np.tile(np.stack(np.divmod(np.arange(motions * objects), objects)), grids)
        remainder = np.stack([balanced(rng, rest, motions), balanced(rng, rest, objects)])
        labels = rng.permutation(np.concatenate([pairs, remainder], 1), axis=1)
        return [
            SampleSpec(split, index, int(motion), int(thing), self.seed, self.difficulty, self.factors)
            for index, (motion, thing) in enumerate(labels.T)
        ]

    def write(self, path: Path, spec: SampleSpec) -> None:
        scene = draw_scene(spec)
        write_video(path, render(scene), scene.fps, crf=scene.crf)

    def annotate(self, spec: SampleSpec) -> dict[str, Any]:
        scene = draw_scene(spec)
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


@dataclass(frozen=True, kw_only=True)
class MakeMotionWorldConfig(MotionWorldConfig):
    """Make MotionWorld, a data set of videos that only motion can tell apart.

    Args:
        out: Folder to write. An interrupted run continues where it stopped.
        workers: Number of processes that make videos. By default there is one per CPU core.
    """

    out: str = field(metadata=POSITIONAL)
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None


def make_motionworld(config: MakeMotionWorldConfig) -> Path:
    """Make the MotionWorld of a command line and return its folder."""
    world = MotionWorldConfig(**{item.name: getattr(config, item.name) for item in fields(MotionWorldConfig)})
    return make_dataset(config.out, world, workers=config.workers)
