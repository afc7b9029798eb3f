"""The data set ``metaworld``: fifty manipulations by a robot arm, filmed in simulation.

Simulator and scripted experts are those of Meta-World (Yu et al. 2019, MIT licence), drawn by MuJoCo
(Apache-2.0). See ``docs/simulated.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from fluxvit.data.making import SPLITS, Recipe, make_dataset
from fluxvit.data.simulated.arm_scene import Studio, load_simulator, plan_take
from fluxvit.data.simulated.arm_tasks import TASK_NAMES, TASKS, captions
from fluxvit.data.simulated.specs import (
    ClipSpec,
    SimulatedConfig,
    label_of,
    read_notes,
    sample_specs,
    write_notes,
)
from fluxvit.video.writer import write_video

VERSION = 1
"""Goes up whenever the same configuration would give other videos."""

LICENCE = (
    "Rendered from Meta-World (MIT licence, https://github.com/Farama-Foundation/Metaworld). Textures of "
    "table and floor are procedural, or crops of public domain and CC0 photographs."
)


class MetaworldConfig(SimulatedConfig):
    """What to make of ``metaworld``; the arguments are those of :class:`SimulatedConfig`."""

    classes: ClassVar[tuple[str, ...]] = TASK_NAMES


def make_metaworld(
    out: str | Path, config: MetaworldConfig, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Make the data set, or what is missing of it.

    See :func:`fluxvit.data.making.make_dataset` for interruptions and worker processes.

    Args:
        out: Folder to make it in.
        config: What to make.
        workers: Number of processes, by default one per core. With 1, the calling process does the work.
        progress: Report progress on standard error.

    Returns:
        ``out``.

    Raises:
        ValueError: Meta-World is not installed, ``workers`` is not positive, or ``out`` holds something else.
    """
    load_simulator()
    recipe = Recipe(
        name="metaworld",
        version=VERSION,
        config=config.record,
        specs={split: sample_specs(config, split) for split in SPLITS},
        write=_write,
        annotate=read_notes,
        facts={"classes": list(TASK_NAMES), "licence": LICENCE},
        group=label_of,
    )
    return make_dataset(out, recipe, workers=workers, progress=progress)


def _write(path: Path, spec: ClipSpec) -> None:
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
    write_video(path, studio.film(rng, spec.split, episode, take), take.fps, crf=int(rng.integers(20, 28)))


_open: dict[int, Studio] = {}
"""The studio of this process: one at a time, because each holds tens of megabytes."""


def _studio(label: int) -> Studio:
    if label not in _open:
        for studio in _open.values():
            studio.close()
        _open.clear()
        _open[label] = Studio(label)
    return _open[label]
