"""MotionWorld: small real video files whose motion label no single frame and no shuffled clip can tell.

See ``docs/motionworld.md`` for the labels, the reasons for the claim, and the format on disk.
"""

from fluxvit.data.motionworld.acts import (
    ACTS,
    DEFAULT_FACTORS,
    FACTORS,
    act_states,
    factor_values,
    motion_classes,
    playback,
)
from fluxvit.data.motionworld.dataset import MakeMotionWorldConfig, MotionWorldConfig, annotate
from fluxvit.data.motionworld.difficulty import DIFFICULTIES, Difficulty, get_difficulty
from fluxvit.data.motionworld.render import render
from fluxvit.data.motionworld.scene import SampleSpec, Scene, plan
from fluxvit.data.motionworld.shapes import OBJECTS

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
    "annotate",
    "factor_values",
    "get_difficulty",
    "motion_classes",
    "plan",
    "playback",
    "render",
]
