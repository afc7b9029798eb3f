"""Acts: short closed loops of an object's state, each with two orientations made of the same frames.

The motion label changes nothing but *the order in which the same frames are played*:

* ``slide``, ``lift``, ``depth``, ``spin`` and ``pass`` have exact time reversals as their orientations;
* ``hop`` and ``blink`` happen once slowly or twice fast, and both visit the same heights (or opacities).

So an act is a fixed table of states (:func:`act_states`) and a permutation of it (:func:`playback`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

STATE = np.dtype(
    [
        ("slide", "f4"),  # turns around the horizontal wrap, positive to the right
        ("lift", "f4"),  # turns around the vertical wrap, positive downwards, as image rows are
        ("zoom", "f4"),  # natural logarithm of the magnification
        ("spin", "f4"),  # turns, positive clockwise as seen on screen
        ("fade", "f4"),  # 0 opaque, 1 invisible
        ("hop", "f4"),  # height over the resting place, 1 at the top of a hop
        ("visit", "f4"),  # the visitor's way across the frame, 0 at the left edge and 1 at the right
    ]
)
"""State of the main object. All zeros is the neutral state: every act starts and ends there."""

NEAR, FAR = np.log(2.2), np.log(0.2)
"""``zoom`` at which an approaching object has faded out, and at which it fades in again."""

FADE_SPAN = 0.1
"""Share of the ``depth`` loop, on either side of its jump from near to far, spent fading."""


@dataclass(frozen=True)
class Act:
    """One kind of act.

    Attributes:
        orientations: Names of the two orientations.
        path: Phase in (0, 1), float ``[n]``, to states of orientation 0, :data:`STATE` ``[n]``.
        second: How orientation 1 plays the frames of orientation 0: backwards, or folded in two.
    """

    orientations: tuple[str, str]
    path: Callable[[np.ndarray], np.ndarray]
    second: Literal["reverse", "fold"]


def _states(phase: np.ndarray, **fields: np.ndarray) -> np.ndarray:
    states = np.zeros(len(phase), STATE)
    for name, values in fields.items():
        states[name] = values
    return states


def _bump(phase: np.ndarray) -> np.ndarray:
    """A parabola from 0 over 1 to 0: the height of a thrown ball."""
    return 4 * phase * (1 - phase)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _depth(phase: np.ndarray) -> np.ndarray:
    zoom = np.where(phase < 0.5, 2 * phase * NEAR, 2 * (1 - phase) * FAR)
    # The jump from near to far happens while the object is invisible.
    fade = _smoothstep(1.15 - np.abs(phase - 0.5) / FADE_SPAN)
    return _states(phase, zoom=zoom, fade=fade)


ACTS: dict[str, Act] = {
    "slide": Act(("left", "right"), lambda p: _states(p, slide=-p), "reverse"),
    "lift": Act(("up", "down"), lambda p: _states(p, lift=-p), "reverse"),
    "depth": Act(("approach", "recede"), _depth, "reverse"),
    "spin": Act(("clockwise", "counter-clockwise"), lambda p: _states(p, spin=p), "reverse"),
    "pass": Act(("left to right", "right to left"), lambda p: _states(p, visit=p), "reverse"),
    "hop": Act(("one hop", "two hops"), lambda p: _states(p, hop=_bump(p)), "fold"),
    "blink": Act(
        ("one blink", "two blinks"), lambda p: _states(p, fade=_smoothstep(2.2 * _bump(p) - 0.6)), "fold"
    ),
}
"""The acts by name."""

ORDER = ("slide first", "lift first")
"""Orientations of the factor ``order``, which is not an act."""

Factor = Literal["slide", "lift", "depth", "spin", "pass", "hop", "blink", "order"]
"""Name of a binary factor of the motion label: an act, or ``order``."""

FACTORS: tuple[Factor, ...] = get_args(Factor)

DEFAULT_FACTORS: tuple[Factor, ...] = ("slide", "lift", "depth", "order")


def act_states(act: str, frames: int, ease: float = 0.0) -> np.ndarray:
    """States of orientation 0 of an act.

    Args:
        act: Name of the act.
        frames: Number of states. The neutral states before and after are not among them.
        ease: 0 gives constant speed; values towards 1 give a slow start and a slow end. The easing is
            symmetric in time, so it is independent of the orientation.

    Returns:
        :data:`STATE` ``[frames]``.
    """
    phase = np.arange(1, frames + 1) / (frames + 1)
    return ACTS[act].path(phase - ease * np.sin(2 * np.pi * phase) / (2 * np.pi))


def playback(act: str, orientation: int, frames: int) -> np.ndarray:
    """Order in which an orientation shows the states of :func:`act_states`: a permutation, int ``[frames]``.

    A fold plays every second frame forwards and the others backwards, so that a loop that goes up and down
    once goes up and down twice in the same time.
    """
    forward = np.arange(frames)
    if orientation == 0:
        return forward
    if ACTS[act].second == "reverse":
        return forward[::-1]
    return np.concatenate([forward[0::2], forward[1::2][::-1]])


def check_factors(factors: tuple[Factor, ...]) -> None:
    """Raise ValueError unless ``factors`` can make a motion label."""
    if not factors:
        raise ValueError(f"factors is empty; choose at least one of {', '.join(FACTORS)}")
    if len(set(factors)) < len(factors):
        raise ValueError(f"factors {', '.join(factors)}: each may appear once")
    if "order" in factors and not {"slide", "lift"} <= set(factors):
        raise ValueError(
            "the factor 'order' is whether slide or lift comes first: it needs both among the factors"
        )


def factor_values(factors: tuple[Factor, ...], motion: int) -> dict[str, int]:
    """Orientation, 0 or 1, of each factor in a motion class; the first factor is the most significant bit."""
    return {name: motion >> bit & 1 for bit, name in enumerate(reversed(factors))}


def motion_classes(factors: tuple[Factor, ...] = DEFAULT_FACTORS) -> list[str]:
    """Names of the motion classes by index, such as ``"left, up, approach, slide first"``."""
    names = [ORDER if name == "order" else ACTS[name].orientations for name in factors]
    return [", ".join(combination) for combination in product(*names)]
