"""Makes the Metaworld data set: videos of fifty manipulations by a robot arm, filmed in simulation.

Simulator and scripted experts are those of Meta-World (Yu et al. 2019, MIT licence), drawn by MuJoCo
(Apache-2.0). ``docs/metaworld.md`` shows what varies, the splits and the format on disk.

    pip install metaworld==3.1.1 mujoco==3.3.0 packaging
    python benchmarks/make_metaworld.py data/metaworld --videos 2400 --val 200 --test 800 --short_sides 112

An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fluxvit.synthetic.builder import SPLITS, DatasetConfig, VideoSpec, balanced, make_dataset
from fluxvit.utils.schema import shown
from fluxvit.video.writer import write_video
from metaworld_scene import Studio, load_simulator, plan_take

_TASKS = """
assembly basketball bin-picking box-close button-press button-press-topdown
button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide
plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall
shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open
"""

TASKS = tuple(_TASKS.split())
"""Class names, which are the names of the tasks; the class index is the position in this tuple."""

LICENCE = (
    "Rendered from Meta-World (MIT licence, https://github.com/Farama-Foundation/Metaworld). Textures of "
    "table and floor are procedural, or crops of public domain and CC0 photographs."
)

SIDE_LIMITS = (64, 360)
"""Least and largest short side in pixels: the simulator draws into a buffer of limited size."""


@dataclass(frozen=True)
class ClipSpec(VideoSpec):
    """A video of Metaworld.

    Args:
        label: Class index.
        seed: Seed of the data set.
    """

    label: int
    seed: int

    def rng(self) -> np.random.Generator:
        """A generator of the video's own."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.index, 0])


@dataclass(frozen=True)
class MetaworldConfig(DatasetConfig[ClipSpec]):
    """A Metaworld to make; arguments that are not listed here are those of `DatasetConfig`.

    Args:
        short_sides: Short sides of the videos in pixels, even; each video has one of them.

    Raises:
        ValueError: A number is out of range.
    """

    name: ClassVar[str] = "metaworld"

    short_sides: tuple[int, ...] = (128, 160, 192)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = SIDE_LIMITS
        wrong = [side for side in self.short_sides if not low <= side <= high or side % 2]
        if wrong or not self.short_sides:
            given = shown(wrong) if wrong else "an empty list"
            raise ValueError(f"short_sides must be even numbers from {low} to {high}, not {given}")

    @property
    def num_classes(self) -> int:
        return len(TASKS)

    @property
    def facts(self) -> dict[str, Any]:
        load_simulator()
        return {"classes": list(TASKS), "licence": LICENCE}

    def specs(self, split: str) -> list[ClipSpec]:
        # The keys of the videos have four numbers, so this stream is independent of them.
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        labels = balanced(rng, self.counts[split], len(TASKS))
        specs = [ClipSpec(split, index, int(label), self.seed) for index, label in enumerate(labels)]
        # Videos of one task share a studio, so they are made in a row.
        return sorted(specs, key=lambda spec: spec.label)

    def write(self, path: Path, spec: ClipSpec) -> None:
        studio, rng = _studio(TASKS[spec.label]), spec.rng()
        episode = studio.run(rng)
        take = plan_take(rng, self.short_sides, episode)
        frames = studio.film(rng, spec.split, episode, take)
        write_video(path, frames, take.fps, crf=int(rng.integers(20, 28)))

    def annotate(self, spec: ClipSpec) -> dict[str, Any]:
        return {"label": spec.label, "motion": TASKS[spec.label]}


_open: dict[str, Studio] = {}
"""The studio of this process: one at a time, because each holds tens of megabytes."""


def _studio(task: str) -> Studio:
    if task not in _open:
        for studio in _open.values():
            studio.close()
        _open.clear()
        _open[task] = Studio(task)
    return _open[task]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, help="folder to write")
    add("--videos", type=int, default=1000, help="number of training videos")
    add("--val", type=int, help="number of validation videos; default: a tenth, at least one per class")
    add("--test", type=int, help="number of test videos, with the same default")
    add("--seed", type=int, default=0)
    add("--short_sides", type=int, nargs="+", default=[128, 160, 192], help="in pixels")
    add("--workers", type=int, help="processes; default: one per core")
    args = parser.parse_args()
    config = MetaworldConfig(args.videos, args.seed, tuple(args.short_sides), val=args.val, test=args.test)
    make_dataset(args.out, config, workers=args.workers)


if __name__ == "__main__":
    main()
