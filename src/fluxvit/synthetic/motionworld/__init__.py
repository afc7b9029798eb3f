"""MotionWorld: small video files whose motion label no single frame and no shuffled clip reveals.

``docs/motionworld.md`` explains the labels, the reasons for this claim, and the format on disk.
"""

from fluxvit.synthetic.motionworld.dataset import MakeMotionWorldConfig, MotionWorldConfig, make_motionworld

__all__ = ["MakeMotionWorldConfig", "MotionWorldConfig", "make_motionworld"]
