"""The data set ``mocap``: fifteen human actions from motion capture, filmed from many sides.

The clips are those of DeepMimic (Peng et al. 2018) as pybullet ships them (zlib licence). See
``docs/simulated.md``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import ClassVar

from fluxvit.data.making import SPLITS, Recipe, make_dataset
from fluxvit.data.simulated.human_actions import ACTION_NAMES, ACTIONS, captions
from fluxvit.data.simulated.human_scene import Theatre, load_simulator, plan_performance
from fluxvit.data.simulated.specs import (
    ClipSpec,
    SimulatedConfig,
    read_notes,
    sample_specs,
    write_notes,
)
from fluxvit.video.writer import write_video

VERSION = 1
"""Goes up whenever the same configuration would give other videos."""

LICENCE = (
    "Rendered with pybullet and its data (zlib licence). The motions are clips that DeepMimic (MIT licence) "
    "prepared from motion capture. Textures are procedural, or crops of public domain and CC0 photographs."
)


class MocapConfig(SimulatedConfig):
    """What to make of ``mocap``; the arguments are those of :class:`SimulatedConfig`."""

    classes: ClassVar[tuple[str, ...]] = ACTION_NAMES


def make_mocap(
    out: str | Path, config: MocapConfig, *, workers: int | None = None, progress: bool = True
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
        ValueError: pybullet is not installed, ``workers`` is not positive, or ``out`` holds something else.
    """
    load_simulator()
    recipe = Recipe(
        name="mocap",
        version=VERSION,
        config=config.record,
        specs={split: sample_specs(config, split) for split in SPLITS},
        write=_write,
        annotate=read_notes,
        facts={"classes": list(ACTION_NAMES), "licence": LICENCE},
    )
    return make_dataset(out, recipe, workers=workers, progress=progress)


def _write(path: Path, spec: ClipSpec) -> None:
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


@cache
def _theatre() -> Theatre:
    """The theatre of this process."""
    return Theatre()
