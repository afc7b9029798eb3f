"""Labelled videos from simulators: ``metaworld`` (robot arm) and ``mocap`` (human actions).

Each needs its extra: ``pip install 'fluxvit[metaworld]'``, ``pip install 'fluxvit[mocap]'``. What is in them
and under which licence: ``docs/simulated.md``.
"""

from fluxvit.synthetic.simulated.arm_tasks import TASK_NAMES, TASKS
from fluxvit.synthetic.simulated.human_actions import ACTION_NAMES, ACTIONS
from fluxvit.synthetic.simulated.metaworld import MakeMetaworldConfig, MetaworldConfig
from fluxvit.synthetic.simulated.mocap import MakeMocapConfig, MocapConfig
from fluxvit.synthetic.simulated.specs import ClipSpec, SimulatedConfig

__all__ = [
    "ACTIONS",
    "ACTION_NAMES",
    "TASKS",
    "TASK_NAMES",
    "ClipSpec",
    "MakeMetaworldConfig",
    "MakeMocapConfig",
    "MetaworldConfig",
    "MocapConfig",
    "SimulatedConfig",
]
