"""The classes of ``mocap``: what the person does, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Action:
    """One motion capture clip, which is one class.

    Attributes:
        name: Class name.
        clip: Its file in ``pybullet_data`` is ``data/motions/humanoid3d_<clip>.txt``.
        clauses: What is done, as said after "a person".
        cycles: Least and largest number of repetitions; more than one only where the clip is a step cycle.
        core: Part of the clip that is needed to recognise the action, as shares of its duration.
    """

    name: str
    clip: str
    clauses: tuple[str, ...]
    cycles: tuple[int, int] = (1, 1)
    core: tuple[float, float] = (0.2, 0.8)


ACTIONS: tuple[Action, ...] = (
    Action("backflip", "backflip", ("does a backflip", "flips over backwards"), core=(0.1, 0.9)),
    Action("cartwheel", "cartwheel", ("turns a cartwheel", "does a cartwheel")),
    Action("crawl", "crawl", ("crawls on all fours", "crawls along the ground")),
    Action("dance a", "dance_a", ("dances and swings both arms", "does a swinging dance")),
    Action("dance b", "dance_b", ("dances with small steps", "does a stepping dance")),
    Action(
        "get up from the belly", "getup_facedown", ("gets up from lying face down", "rises from the belly")
    ),
    Action("get up from the back", "getup_faceup", ("gets up from lying face up", "rises from the back")),
    Action("jump", "jump", ("jumps forward", "takes a jump")),
    Action("kick", "kick", ("kicks with one leg", "does a forward kick")),
    Action("punch", "punch", ("throws a punch", "punches forward")),
    Action("roll", "roll", ("does a forward roll", "rolls over on the ground")),
    Action("run", "run", ("runs", "is running"), cycles=(2, 4), core=(0.3, 0.7)),
    Action("spin", "spin", ("leaps and spins through the air", "does a spinning leap")),
    Action("spin kick", "spinkick", ("does a spinning kick", "turns around and kicks")),
    Action("walk", "walk", ("walks", "is walking"), cycles=(2, 3), core=(0.3, 0.7)),
)

ACTION_NAMES: tuple[str, ...] = tuple(action.name for action in ACTIONS)
"""Class names; the class index is the place in this list."""

_TEMPLATES = ("A person {clause}.", "Someone in {shirt} {clause}.", "A figure in {legs} {clause}.")


def captions(action: Action, shirt: str, legs: str, rng: np.random.Generator) -> list[str]:
    """One to three captions of a video of the action, no two alike.

    Args:
        shirt: What the body wears, such as "a red shirt".
        legs: What the legs wear, such as "blue trousers".
    """
    count = int(rng.integers(1, len(_TEMPLATES) + 1))
    return [
        _TEMPLATES[place].format(clause=str(rng.choice(action.clauses)), shirt=shirt, legs=legs)
        for place in rng.permutation(len(_TEMPLATES))[:count]
    ]
