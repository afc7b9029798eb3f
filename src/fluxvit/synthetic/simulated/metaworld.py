"""The data set ``metaworld``: fifty manipulations by a robot arm, filmed in simulation.

Simulator and scripted experts are those of Meta-World (Yu et al. 2019, MIT licence), drawn by MuJoCo
(Apache-2.0). See ``docs/simulated.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fluxvit.synthetic.builder import MakingOptions
from fluxvit.synthetic.simulated.arm_scene import Studio, load_simulator, plan_take
from fluxvit.synthetic.simulated.arm_tasks import TASK_NAMES, TASKS, captions
from fluxvit.synthetic.simulated.specs import ClipSpec, SimulatedConfig, write_notes
from fluxvit.video.writer import write_video

LICENCE = (
    "Rendered from Meta-World (MIT licence, https://github.com/Farama-Foundation/Metaworld). Textures of "
    "table and floor are procedural, or crops of public domain and CC0 photographs."
)


@dataclass(frozen=True)
class MetaworldConfig(SimulatedConfig):
    """The data set ``metaworld`` to make; the arguments are those of `SimulatedConfig`."""

    name: ClassVar[str] = "metaworld"
    classes: ClassVar[tuple[str, ...]] = TASK_NAMES
    licence: ClassVar[str] = LICENCE

    def load_simulator(self) -> object:
        return load_simulator()

    def group(self, spec: ClipSpec) -> int:
        return spec.label

    def write(self, path: Path, spec: ClipSpec) -> None:
        studio, rng = _studio(spec.label), spec.rng()
        episode = studio.run(rng)
        take = plan_take(rng, spec, episode)
        task = TASKS[spec.label]
        write_notes(
            path,
            spec,
            task.name,
            (take.width, take.height),
            len(take.steps),
            take.fps,
            captions=captions(task, spec.rng(stream=1)),
            success=round((episode.success - int(take.steps[0])) / take.speed / take.fps, 4),
            tries=episode.tries,
            speed=take.speed,
        )
        frames = studio.film(rng, spec.split, episode, take)
        write_video(path, frames, take.fps, crf=int(rng.integers(20, 28)))


@dataclass(frozen=True)
class MakeMetaworldConfig(MetaworldConfig, MakingOptions):
    """Make 50 manipulations by a robot arm; this needs pip install 'fluxvit[metaworld]'."""


_open: dict[int, Studio] = {}
"""The studio of this process: one at a time, because each holds tens of megabytes."""


def _studio(label: int) -> Studio:
    if label not in _open:
        for studio in _open.values():
            studio.close()
        _open.clear()
        _open[label] = Studio(label)
    return _open[label]
