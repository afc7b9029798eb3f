"""MotionWorld: small real video files whose motion label no single frame and no shuffled clip can tell.

See ``docs/motionworld.md`` for the labels, the reasons for the claim, and the format on disk.
"""

from fluxvit.synthetic.motionworld.acts import (
    ACTS,
    DEFAULT_FACTORS,
    FACTORS,
    act_states,
    factor_values,
    motion_classes,
    playback,
)
from fluxvit.synthetic.motionworld.dataset import MakeMotionWorldConfig, MotionWorldConfig, make_motionworld
from fluxvit.synthetic.motionworld.difficulty import DIFFICULTIES, Difficulty, get_difficulty
from fluxvit.synthetic.motionworld.render import render
from fluxvit.synthetic.motionworld.scene import SampleSpec, Scene, plan
from fluxvit.synthetic.motionworld.shapes import OBJECTS

__all__ = [
    "ACTS",
    "DEFAULT_FACTORS",
    "DIFFICULTIES",
    "FACTORS",
    "OBJECTS",
    "Difficulty",
    "MakeMotionWorldConfig",
    "MotionWorldConfig",
    "SampleSpec",
    "Scene",
    "act_states",
    "factor_values",
    "get_difficulty",
    "make_motionworld",
    "motion_classes",
    "plan",
    "playback",
    "render",
]
