"""MotionWorld on disk: videos, annotations, and how to make them in parallel and in several sittings."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.data.motionworld.acts import ACTS, DEFAULT_FACTORS, check_factors, motion_classes
from fluxvit.data.motionworld.difficulty import get_difficulty
from fluxvit.data.motionworld.language import describe
from fluxvit.data.motionworld.progress import report
from fluxvit.data.motionworld.render import render_scene
from fluxvit.data.motionworld.scene import SampleSpec, plan
from fluxvit.data.motionworld.shapes import OBJECTS
from fluxvit.data.motionworld.textures import SPLITS
from fluxvit.files import atomic_path, write_json
from fluxvit.machine import usable_cores
from fluxvit.video.writer import write_video

VERSION = 1
"""Goes up whenever the same configuration would give other frames or other labels."""

LICENCE = (
    "Videos and annotations: CC0 1.0. The textures they show are procedural, or crops of public domain and "
    "CC0 photographs listed in fluxvit/data/assets/README.md."
)

CHUNK = 4
"""Videos a worker makes between two reports: enough to make messages cheap, few enough for a smooth bar."""


@dataclass(frozen=True)
class MotionWorldConfig:
    """What to make.

    Args:
        videos: Number of training videos.
        seed: Seed of everything random.
        difficulty: Name of a preset: ``demo``, ``easy``, ``medium`` or ``hard``.
        factors: Binary factors whose orientations make up the motion label, ``2 ** len(factors)`` classes.
        val: Number of validation videos. By default a tenth of ``videos``, but at least one per motion class.
        test: Number of test videos, with the same default.

    Raises:
        ValueError: A number is out of range, or a name is unknown.
    """

    videos: int
    seed: int = 0
    difficulty: str = "easy"
    factors: tuple[str, ...] = DEFAULT_FACTORS
    val: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        check_factors(self.factors)
        get_difficulty(self.difficulty)
        if self.videos < 1:
            raise ValueError(f"videos must be at least 1, not {self.videos}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
        for name in ("val", "test"):
            count = getattr(self, name)
            if count is None:
                object.__setattr__(self, name, max(2 ** len(self.factors), self.videos // 10))
            elif count < 0:
                raise ValueError(f"{name} must not be negative, but is {count}")

    @property
    def counts(self) -> dict[str, int]:
        """Number of videos in each split."""
        return {"train": self.videos, "val": self.val or 0, "test": self.test or 0}


def sample_specs(config: MotionWorldConfig, split: str) -> list[SampleSpec]:
    """The videos of a split, in order.

    Motion and object classes are equally frequent up to rounding, and so are their pairs as far as the number
    of videos allows: whole grids of all pairs first, then for the remainder two lists balanced by themselves.
    """
    motions, objects, count = 2 ** len(config.factors), len(OBJECTS), config.counts[split]
    # A stream apart from those of the scenes, whose keys are three or four numbers.
    rng = np.random.default_rng([config.seed, SPLITS.index(split)])
    grids, rest = divmod(count, motions * objects)
    pairs = np.tile(np.stack(np.divmod(np.arange(motions * objects), objects)), grids)
    remainder = np.stack([_balanced(rng, rest, motions), _balanced(rng, rest, objects)])
    labels = rng.permutation(np.concatenate([pairs, remainder], 1), axis=1)
    return [
        SampleSpec(split, index, int(motion), int(thing), config.seed, config.difficulty, config.factors)
        for index, (motion, thing) in enumerate(labels.T)
    ]


def _balanced(rng: np.random.Generator, count: int, classes: int) -> np.ndarray:
    """``count`` classes in random order, each as often as any other or once more."""
    return rng.permutation(rng.permutation(classes)[np.arange(count) % classes])


def video_path(spec: SampleSpec) -> str:
    """Path of a video relative to the dataset."""
    return f"{spec.split}/{spec.index:06d}.mp4"


def annotate(spec: SampleSpec) -> dict[str, Any]:
    """The line of a video in its split's ``.jsonl`` file. Nothing is rendered."""
    scene = plan(spec)
    captions, questions = describe(spec, scene)
    acts = [
        {
            "act": event.act,
            "orientation": ACTS[event.act].orientations[event.orientation],
            "start": round(event.start / scene.fps, 4),
            "end": round((event.start + event.frames) / scene.fps, 4),
        }
        for event in scene.events
    ]
    return {
        "path": video_path(spec),
        "label": spec.motion,
        "motion": motion_classes(spec.factors)[spec.motion],
        "object": spec.object,
        "object_name": OBJECTS[spec.object],
        "captions": captions,
        "qa": [asdict(question) for question in questions],
        "acts": acts,
        "frames": scene.frames,
        "fps": scene.fps,
        "width": scene.width,
        "height": scene.height,
        "duration": round(scene.frames / scene.fps, 4),
    }


def make_motionworld(
    out: str | Path, config: MotionWorldConfig, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Make a dataset, or what is missing of one.

    Videos appear one by one, each complete; ``<split>.jsonl`` appears when its videos are there, and
    ``dataset.json`` last of all. After an interruption the same call goes on where it stopped. Worker
    processes are spawned: a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        out: Folder to make it in.
        config: What to make.
        workers: Number of processes, by default one per core. With 1, the calling process does the work.
        progress: Report progress on standard error.

    Returns:
        ``out``.

    Raises:
        ValueError: ``workers`` is not positive, or ``out`` holds a dataset of another configuration.
    """
    out = Path(out)
    workers = workers if workers is not None else usable_cores()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    _claim(out, config)
    for split in SPLITS:
        specs = sample_specs(config, split)
        (out / split).mkdir(exist_ok=True)
        missing = [spec for spec in specs if not (out / video_path(spec)).exists()]
        with report(f"{split} videos", len(missing), enabled=progress) as advance:
            for count in _write_all(out, missing, workers):
                advance(count)
        with atomic_path(out / f"{split}.jsonl") as partial:
            lines = (json.dumps(annotate(spec), ensure_ascii=False) + "\n" for spec in specs)
            partial.write_text("".join(lines), encoding="utf-8")
    write_json(
        out / "dataset.json",
        {
            "name": "MotionWorld",
            "version": VERSION,
            "config": asdict(config),
            "motion_classes": motion_classes(config.factors),
            "object_classes": list(OBJECTS),
            "counts": config.counts,
            "licence": LICENCE,
        },
    )
    return out


def _claim(out: Path, config: MotionWorldConfig) -> None:
    """Record the configuration in the folder, or check that it is the one recorded there."""
    record = out / "config.json"
    # Through JSON and back, so that tuples compare equal to the lists they are stored as.
    wanted = json.loads(json.dumps({"version": VERSION, **asdict(config)}))
    if not record.exists():
        if any((out / split).exists() for split in SPLITS):
            raise ValueError(
                f"{out} holds videos but no config.json: it is not a MotionWorld; choose another folder"
            )
        write_json(record, wanted)
        return
    found = json.loads(record.read_text(encoding="utf-8"))
    differences = [
        f"{name} is {found.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(wanted.keys() | found.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(f"{out} holds another MotionWorld: {'; '.join(differences)}; choose another folder")


def _write_all(out: Path, specs: list[SampleSpec], workers: int) -> Iterator[int]:
    """Write videos, yielding how many more are done. On an error or Ctrl-C only videos begun are finished."""
    chunks = [specs[start : start + CHUNK] for start in range(0, len(specs), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        for spec in specs:
            _write_one(out, spec)
            yield 1
        return
    # Spawned, not forked: the caller may have threads (PyTorch, BLAS) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for done in as_completed([pool.submit(_write_chunk, out, chunk) for chunk in chunks]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_chunk(out: Path, specs: list[SampleSpec]) -> int:
    for spec in specs:
        _write_one(out, spec)
    return len(specs)


def _write_one(out: Path, spec: SampleSpec) -> None:
    scene = plan(spec)
    write_video(out / video_path(spec), render_scene(scene), scene.fps, crf=scene.crf)
