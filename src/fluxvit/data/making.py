"""Making a data set of video files: in parallel, in several sittings, with nothing half-written.

A maker (MotionWorld, ``metaworld``, ``mocap``) is a list of specs, a function that writes the video of one,
and a function that tells its annotation. What is common to all of them is here: the folder, the workers, the
order in which files appear. ``docs/motionworld.md`` shows the layout.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

import numpy as np
from msgspec import Meta

from fluxvit.data.progress import report
from fluxvit.files import atomic_path, clear_leftovers, lock_folder, write_json
from fluxvit.machine import follow_parent, processes, signals_held_back
from fluxvit.schema import convert, load

SPLITS = ("train", "val", "test")

MOST_VIDEOS = 10_000_000
Videos = Annotated[int, Meta(ge=1, le=MOST_VIDEOS)]
"""A number of videos to make."""
HeldOut = Annotated[int, Meta(ge=0, le=MOST_VIDEOS)]
"""A number of videos of a split that may stay empty."""

CHUNK = 4
"""Videos a worker makes between two reports: enough to make messages cheap, few enough for a smooth bar."""


class VideoSpec(Protocol):
    """Names one video: number ``index`` of a split."""

    @property
    def split(self) -> str: ...

    @property
    def index(self) -> int: ...


Spec = TypeVar("Spec", bound=VideoSpec)


@dataclass(frozen=True)
class Recipe(Generic[Spec]):
    """A data set to be made.

    Attributes:
        name: What it is called, in ``dataset.json`` and in messages.
        version: Goes up whenever the same configuration would give other frames or other labels.
        config: The configuration, fit for JSON. A folder holds one configuration only.
        specs: The videos of each split.
        write: Writes the video of a spec to a path. It runs in worker processes, so it has to be picklable.
        annotate: The line of a video in ``<split>.jsonl``, but for its path.
        facts: What else ``dataset.json`` tells: class names, licence.
        group: Videos of one group are made in a row, where a worker profits from that.
    """

    name: str
    version: int
    config: Mapping[str, Any]
    specs: Mapping[str, Sequence[Spec]]
    write: Callable[[Path, Spec], None]
    annotate: Callable[[Path, Spec], Mapping[str, Any]]
    facts: Mapping[str, Any]
    group: Callable[[Spec], int] | None = None


def split_counts(videos: int, val: int | None, test: int | None, *, least: int) -> dict[str, int]:
    """Number of videos of each split; held-out ones are by default a tenth, but at least ``least``."""
    counts = {"train": videos}
    for name, count in (("val", val), ("test", test)):
        counts[name] = max(least, videos // 10) if count is None else count
    return counts


def balanced(rng: np.random.Generator, count: int, classes: int) -> np.ndarray:
    """``count`` classes in random order, each as often as any other or once more."""
    return rng.permutation(rng.permutation(classes)[np.arange(count) % classes])


def video_path(spec: VideoSpec) -> str:
    """Path of a video relative to the data set."""
    return f"{spec.split}/{spec.index:06d}.mp4"


def make_dataset(
    out: str | Path, recipe: Recipe[Spec], *, workers: int | None = None, progress: bool = True
) -> Path:
    """Make a data set, or what is missing of one.

    Videos appear one by one, each complete; ``<split>.jsonl`` appears when its videos are there, and
    ``dataset.json`` last of all. After an interruption the same call goes on where it stopped. Worker
    processes are spawned: a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        out: Folder to make it in.
        recipe: What to make.
        workers: Number of processes, by default one per core. With 1, the calling process does the work.
        progress: Report progress on standard error.

    Returns:
        ``out``.

    Raises:
        ValueError: ``workers`` is out of range, ``out`` holds something else, or another run is writing into
            it.
    """
    out = Path(out)
    workers = processes(workers)
    with lock_folder(out):
        _make(out, recipe, workers, progress)
    return out


def _make(out: Path, recipe: Recipe[Spec], workers: int, progress: bool) -> None:
    _claim(out, recipe)
    for split in SPLITS:
        specs = recipe.specs[split]
        (out / split).mkdir(exist_ok=True)
        clear_leftovers(out / split, locked=True)
        missing = [spec for spec in specs if not (out / video_path(spec)).exists()]
        if recipe.group is not None:
            missing.sort(key=recipe.group)
        with report(f"{split} videos", len(missing), enabled=progress) as advance:
            for count in _write_all(out, missing, recipe.write, workers):
                advance(count)
        with atomic_path(out / f"{split}.jsonl") as partial:
            lines = (_line(out, spec, recipe) for spec in specs)
            partial.write_text("".join(lines), encoding="utf-8")
    write_json(
        out / "dataset.json",
        {
            "name": recipe.name,
            "version": recipe.version,
            "config": recipe.config,
            **recipe.facts,
            "counts": {split: len(recipe.specs[split]) for split in SPLITS},
        },
    )


def _line(out: Path, spec: Spec, recipe: Recipe[Spec]) -> str:
    path = video_path(spec)
    return json.dumps({"path": path, **recipe.annotate(out / path, spec)}, ensure_ascii=False) + "\n"


def _claim(out: Path, recipe: Recipe[Spec]) -> None:
    """Record the configuration in the folder, or check that it is the one recorded there."""
    record = out / "config.json"
    # Through JSON and back, so that tuples compare equal to the lists they are stored as.
    wanted = json.loads(json.dumps({"name": recipe.name, "version": recipe.version, **recipe.config}))
    if not record.exists():
        if any((out / split).exists() for split in SPLITS):
            raise ValueError(
                f"{out} holds videos but no config.json: it is not a {recipe.name}; choose another folder"
            )
        write_json(record, wanted)
        return
    # The first folders, all of them MotionWorlds, did not tell whose they are.
    found = {"name": "MotionWorld", **convert(load(record), dict[str, Any], str(record))}
    differences = [
        f"{name} is {found.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(wanted.keys() | found.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{out} holds another {found['name']}: {'; '.join(differences)}; choose another folder"
        )


def _write_all(
    out: Path, specs: list[Spec], write: Callable[[Path, Spec], None], workers: int
) -> Iterator[int]:
    """Write videos, yielding how many more are done. On an error or Ctrl-C only videos begun are finished."""
    chunks = [specs[start : start + CHUNK] for start in range(0, len(specs), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        for spec in specs:
            write(out / video_path(spec), spec)
            yield 1
        return
    # Spawned, not forked: the caller may have threads (PyTorch, BLAS) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent)
    try:
        with signals_held_back():
            jobs = [pool.submit(_write_chunk, out, chunk, write) for chunk in chunks]
        for done in as_completed(jobs):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_chunk(out: Path, specs: list[Spec], write: Callable[[Path, Spec], None]) -> int:
    for spec in specs:
        write(out / video_path(spec), spec)
    return len(specs)
