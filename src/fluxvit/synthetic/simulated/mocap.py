"""The data set ``mocap``: fifteen human actions from motion capture, filmed from many sides.

The clips are those of DeepMimic (Peng et al. 2018) as pybullet ships them (zlib licence). See
``docs/simulated.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from fluxvit.synthetic.builder import MakingOptions
from fluxvit.synthetic.simulated.human_actions import ACTION_NAMES, ACTIONS, captions
from fluxvit.synthetic.simulated.human_scene import Theatre, load_simulator, plan_performance
from fluxvit.synthetic.simulated.specs import ClipSpec, SimulatedConfig, write_notes
from fluxvit.video.writer import write_video

LICENCE = (
    "Rendered with pybullet and its data (zlib licence). The motions are clips that DeepMimic (MIT licence) "
    "prepared from motion capture. Textures are procedural, or crops of public domain and CC0 photographs."
)


@dataclass(frozen=True)
class MocapConfig(SimulatedConfig):
    """The data set ``mocap`` to make; the arguments are those of `SimulatedConfig`."""

    name: ClassVar[str] = "mocap"
    classes: ClassVar[tuple[str, ...]] = ACTION_NAMES
    licence: ClassVar[str] = LICENCE

    def load_simulator(self) -> object:
        return load_simulator()

    def write(self, path: Path, spec: ClipSpec) -> None:
        theatre, rng, action = _theatre(), spec.rng(), ACTIONS[spec.label]
        performance = plan_performance(rng, spec, action, theatre.take(action))
        outfit = performance.outfit
        write_notes(
            path,
            spec,
            action.name,
            (performance.width, performance.height),
            performance.frames,
            performance.fps,
            captions=captions(action, outfit.top, outfit.legs, spec.rng(stream=1)),
            viewpoint=round(performance.viewpoint, 1),
            mirrored=performance.mirrored,
            speed=round(performance.speed, 3),
        )
        write_video(
            path, theatre.film(rng, spec.split, performance), performance.fps, crf=int(rng.integers(20, 28))
        )


@dataclass(frozen=True)
class MakeMocapConfig(MocapConfig, MakingOptions):
    """Make 15 human actions, split by viewpoint; this needs pip install 'fluxvit[mocap]'."""


@cache
def _theatre() -> Theatre:
    """The theatre of this process."""
    return Theatre()
