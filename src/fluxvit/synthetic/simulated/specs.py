"""What both simulated data sets share: their configuration, the list of their videos, sizes on screen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fluxvit.synthetic.builder import SPLITS, DatasetConfig, VideoSpec, balanced
from fluxvit.synthetic.motionworld.textures import draw_texture, texture, tone
from fluxvit.utils.files import write_json
from fluxvit.utils.schema import convert, load, shown

ASPECTS = ((4, 3), (1, 1), (16, 9))
"""Aspect ratios, width to height."""

FRAME_RATES = (12, 15, 20, 25, 30)

SIDE_LIMITS = (64, 360)
"""Least and largest short side in pixels: the simulators draw into buffers of limited size."""


@dataclass(frozen=True)
class ClipSpec(VideoSpec):
    """A video of a simulated data set.

    Args:
        label: Class index.
        seed: Seed of the data set.
        short_sides: Short sides in pixels to choose from.
    """

    label: int
    seed: int
    short_sides: tuple[int, ...]

    def rng(self, stream: int = 0) -> np.random.Generator:
        """A generator of the video's own; streams of other numbers are independent of it."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.index, stream])


@dataclass(frozen=True)
class SimulatedConfig(DatasetConfig[ClipSpec]):
    """A simulated data set to make; arguments that are not listed here are those of `DatasetConfig`.

    Args:
        short_sides: Short sides of the videos in pixels, even; each video has one of them.

    Raises:
        ValueError: A number is out of range.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = ""

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
        return len(self.classes)

    @property
    def facts(self) -> dict[str, Any]:
        self.load_simulator()
        return {"classes": list(self.classes), "licence": self.licence}

    @abstractmethod
    def load_simulator(self) -> object:
        """Import the simulator.

        Raises:
            ValueError: It is not installed.
        """

    def specs(self, split: str) -> list[ClipSpec]:
        # The keys of the videos have four numbers, so this stream is independent of them.
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        labels = balanced(rng, self.counts[split], len(self.classes))
        return [
            ClipSpec(split, index, int(label), self.seed, self.short_sides)
            for index, label in enumerate(labels)
        ]

    def annotate(self, path: Path, spec: ClipSpec) -> dict[str, Any]:
        """The annotation that `write_notes` wrote.

        Raises:
            ValueError: It is missing.
        """
        notes = path.with_suffix(".json")
        if not notes.is_file():
            raise ValueError(f"{notes} is missing; delete {path.name} beside it and repeat the command")
        return convert(load(notes), dict[str, Any], str(notes))


def draw_size(rng: np.random.Generator, short_sides: Sequence[int]) -> tuple[int, int]:
    """Width and height of a video in pixels, both even."""
    across, down = ASPECTS[rng.integers(len(ASPECTS))]
    short = int(rng.choice(short_sides))
    return 2 * round(short * across / down / 2), short


def surface(rng: np.random.Generator, split: str, side: int) -> np.ndarray:
    """A texture for a table, a floor or a wall, uint8 ``[side, side, 3]``; the splits share none."""
    pixels = texture(draw_texture(rng, split))
    pixels = tone(pixels, rng.uniform(0.35, 0.75), rng.uniform(0.04, 0.15), rng.uniform(0.2, 1.0))
    ticks = np.linspace(0, len(pixels) - 1, side).round().astype(int)
    return (pixels[ticks][:, ticks] * 255).round().astype(np.uint8)


def write_notes(
    path: Path, spec: ClipSpec, motion: str, size: tuple[int, int], frames: int, fps: int, **more: Any
) -> None:
    """Write the annotation of the video at ``path`` to a ``.json`` file beside it.

    It is known when the video is made, so it comes before the video: where there is a video, there are notes.
    """
    notes = {
        "label": spec.label,
        "motion": motion,
        **more,
        "frames": frames,
        "fps": fps,
        "width": size[0],
        "height": size[1],
        "duration": round(frames / fps, 4),
    }
    write_json(path.with_suffix(".json"), notes)
