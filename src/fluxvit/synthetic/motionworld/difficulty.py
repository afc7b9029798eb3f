"""Presets of how hard a MotionWorld is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class Difficulty:
    """Ranges that scenes are drawn from. Pairs are inclusive ``(low, high)``.

    Lengths on screen are fractions of the short side of the frame, brightness is in 0..1.

    Attributes:
        contrast: Difference in mean brightness between the main object and the background.
        dark_objects: Probability that the object is the darker of the two.
        background_detail: Standard deviation of the background's brightness.
        object_size: Largest side of the main object.
        clutter: Number of distractor objects.
        distractor_contrast: The same as ``contrast``, for distractors.
        shake: Largest excursion of the hand-held camera.
        sway: Largest excursion of the background behind the objects.
        noise: Standard deviation of the sensor noise.
        flicker: Largest relative change of the exposure.
        extra_acts: Number of acts besides those of the label.
        act_seconds: Duration of one act.
        rest_seconds: Duration of one rest, before, between and after the acts (at least one frame).
        short_sides: Short sides of the frame in pixels, even.
        frame_rates: Frames per second.
        crf: Constant rate factor of x264.
    """

    contrast: tuple[float, float]
    dark_objects: float
    background_detail: tuple[float, float]
    object_size: tuple[float, float]
    clutter: tuple[int, int]
    distractor_contrast: tuple[float, float]
    shake: float
    sway: float
    noise: tuple[float, float]
    flicker: float
    extra_acts: tuple[int, int]
    act_seconds: tuple[float, float]
    rest_seconds: tuple[float, float]
    short_sides: tuple[int, ...]
    frame_rates: tuple[int, ...]
    crf: tuple[int, int]


DifficultyName = Literal["demo", "easy", "medium", "hard"]

# One column for each of these names.
_PRESETS: dict[str, tuple[Any, ...]] = {
    "contrast": ((0.42, 0.5), (0.34, 0.48), (0.24, 0.4), (0.14, 0.3)),
    "dark_objects": (0.0, 0.2, 0.5, 0.5),
    "background_detail": ((0.03, 0.06), (0.05, 0.1), (0.08, 0.14), (0.1, 0.18)),
    "object_size": ((0.35, 0.45), (0.28, 0.42), (0.22, 0.36), (0.17, 0.3)),
    "clutter": ((0, 1), (0, 2), (1, 4), (3, 7)),
    "distractor_contrast": ((0.08, 0.12), (0.1, 0.2), (0.15, 0.3), (0.15, 0.35)),
    "shake": (0.008, 0.015, 0.03, 0.05),
    "sway": (0.01, 0.03, 0.06, 0.1),
    "noise": ((0.004, 0.012), (0.005, 0.02), (0.01, 0.035), (0.02, 0.05)),
    "flicker": (0.01, 0.02, 0.04, 0.07),
    "extra_acts": ((0, 0), (0, 1), (0, 2), (1, 2)),
    "act_seconds": ((0.8, 1.1), (0.6, 1.2), (0.4, 1.2), (0.25, 1.2)),
    "rest_seconds": ((0.05, 0.15), (0.05, 0.35), (0.05, 0.4), (0.05, 0.3)),
    "short_sides": ((96, 112), (96, 112, 128), (96, 112, 128, 144), (96, 112, 128, 144)),
    "frame_rates": ((12, 15), (12, 15, 24, 25), (12, 15, 24, 25, 30), (12, 15, 24, 25, 30)),
    "crf": ((20, 26), (21, 28), (22, 31), (23, 34)),
}

DIFFICULTIES: dict[DifficultyName, Difficulty] = {
    name: Difficulty(**{field: values[number] for field, values in _PRESETS.items()})
    for number, name in enumerate(get_args(DifficultyName))
}
"""Presets by name, from a world learnt in minutes to one with small, brief, cluttered, noisy acts."""
