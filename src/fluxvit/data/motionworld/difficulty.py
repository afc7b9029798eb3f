"""How hard a MotionWorld is: one dial made of many small ones."""

from __future__ import annotations

from dataclasses import dataclass


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
        distractor_contrast: As ``contrast``, for distractors.
        shake: Largest excursion of the hand-held camera.
        sway: Largest excursion of the background behind the objects.
        noise: Standard deviation of the sensor noise.
        flicker: Largest relative change of the exposure.
        extra_acts: Number of acts that the label does not speak of.
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


DIFFICULTIES: dict[str, Difficulty] = {
    "demo": Difficulty(
        contrast=(0.42, 0.5),
        dark_objects=0.0,
        background_detail=(0.03, 0.06),
        object_size=(0.35, 0.45),
        clutter=(0, 1),
        distractor_contrast=(0.08, 0.12),
        shake=0.008,
        sway=0.01,
        noise=(0.004, 0.012),
        flicker=0.01,
        extra_acts=(0, 0),
        act_seconds=(0.8, 1.1),
        rest_seconds=(0.05, 0.15),
        short_sides=(96, 112),
        frame_rates=(12, 15),
        crf=(20, 26),
    ),
    "easy": Difficulty(
        contrast=(0.34, 0.48),
        dark_objects=0.2,
        background_detail=(0.05, 0.1),
        object_size=(0.28, 0.42),
        clutter=(0, 2),
        distractor_contrast=(0.1, 0.2),
        shake=0.015,
        sway=0.03,
        noise=(0.005, 0.02),
        flicker=0.02,
        extra_acts=(0, 1),
        act_seconds=(0.6, 1.2),
        rest_seconds=(0.05, 0.35),
        short_sides=(96, 112, 128),
        frame_rates=(12, 15, 24, 25),
        crf=(21, 28),
    ),
    "medium": Difficulty(
        contrast=(0.24, 0.4),
        dark_objects=0.5,
        background_detail=(0.08, 0.14),
        object_size=(0.22, 0.36),
        clutter=(1, 4),
        distractor_contrast=(0.15, 0.3),
        shake=0.03,
        sway=0.06,
        noise=(0.01, 0.035),
        flicker=0.04,
        extra_acts=(0, 2),
        act_seconds=(0.4, 1.2),
        rest_seconds=(0.05, 0.4),
        short_sides=(96, 112, 128, 144),
        frame_rates=(12, 15, 24, 25, 30),
        crf=(22, 31),
    ),
    "hard": Difficulty(
        contrast=(0.14, 0.3),
        dark_objects=0.5,
        background_detail=(0.1, 0.18),
        object_size=(0.17, 0.3),
        clutter=(3, 7),
        distractor_contrast=(0.15, 0.35),
        shake=0.05,
        sway=0.1,
        noise=(0.02, 0.05),
        flicker=0.07,
        extra_acts=(1, 2),
        act_seconds=(0.25, 1.2),
        rest_seconds=(0.05, 0.3),
        short_sides=(96, 112, 128, 144),
        frame_rates=(12, 15, 24, 25, 30),
        crf=(23, 34),
    ),
}
"""Presets by name, from a world learnt in minutes to one with small, brief, cluttered, noisy acts."""


def get_difficulty(name: str) -> Difficulty:
    """The preset of this name; ValueError names the choices."""
    try:
        return DIFFICULTIES[name]
    except KeyError:
        raise ValueError(f"unknown difficulty {name!r}; choose from {', '.join(DIFFICULTIES)}") from None
