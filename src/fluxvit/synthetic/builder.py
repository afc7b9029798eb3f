"""Makes a data set of video files: in parallel, resumably, and with no file half-written.

A `DatasetConfig` such as ``MotionWorldConfig`` lists the videos, writes one and annotates one. This module
handles the folder, the worker processes and the order in which files appear. ``docs/motionworld.md`` shows
the layout.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
from msgspec import Meta

from fluxvit.utils.files import atomic_path, clear_leftovers, lock_folder, write_json
from fluxvit.utils.progress import report
from fluxvit.utils.schema import Seed, check, convert, load
from fluxvit.utils.system import follow_parent, processes, signals_held_back

SPLITS = ("train", "val", "test")

MOST_VIDEOS = 10_000_000
Videos = Annotated[int, Meta(ge=1, le=MOST_VIDEOS)]
"""A number of videos to make."""
HeldOut = Annotated[int, Meta(ge=0, le=MOST_VIDEOS)]
"""A number of videos of a split that may stay empty."""

CHUNK = 4
"""Videos that are sent to a worker at once."""


@dataclass(frozen=True)
class VideoSpec:
    """One video to make. Everything random about it depends on its specification alone.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        index: Number of the video in its split.
    """

    split: str
    index: int

    @property
    def path(self) -> str:
        """Path relative to the data set."""
        return f"{self.split}/{self.index:06d}.mp4"


Spec = TypeVar("Spec", bound=VideoSpec)


@dataclass(frozen=True)
class DatasetConfig(ABC, Generic[Spec]):
    """A data set to make. Subclasses define which videos it has and how one is written.

    Args:
        videos: Number of training videos.
        seed: Seed of all random choices; another seed gives other videos.
        val: Number of validation videos. By default it is a tenth of ``videos``, and at least one per class.
        test: Number of test videos. By default it is a tenth of ``videos``, and at least one per class.

    Attributes:
        name: Name of the data set in ``dataset.json`` and in messages.
        version: Increases whenever the same configuration would give other frames or other labels.

    Raises:
        ValueError: A number is out of range.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    videos: Videos = 1000
    seed: Seed = 0
    val: HeldOut | None = field(default=None, kw_only=True)
    test: HeldOut | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check(self)
        for split in ("val", "test"):
            if getattr(self, split) is None:
                object.__setattr__(self, split, max(self.num_classes, self.videos // 10))

    @property
    def counts(self) -> dict[str, int]:
        """Number of videos in each split."""
        return {"train": self.videos, "val": self.val or 0, "test": self.test or 0}

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Further entries of ``dataset.json``: class names and licence."""

    @abstractmethod
    def specs(self, split: str) -> list[Spec]:
        """The videos of a split, in the order in which they are made. Classes are equally frequent up to one
        video.
        """

    @abstractmethod
    def write(self, path: Path, spec: Spec) -> None:
        """Write a video. Worker processes call this method, so the configuration must be picklable."""

    @abstractmethod
    def annotate(self, spec: Spec) -> dict[str, Any]:
        """The line of a video in ``<split>.jsonl``, without its path. Nothing is rendered."""


def balanced(rng: np.random.Generator, count: int, classes: int) -> np.ndarray:
    """``count`` class indices in random order. All classes are equally frequent up to one."""
    return rng.permutation(rng.permutation(classes)[np.arange(count) % classes])


def make_dataset(
    out: str | Path, config: DatasetConfig[Spec], *, workers: int | None = None, progress: bool = True
) -> Path:
    """Make a data set, or what is missing of one.

    Videos appear one by one, each complete. ``<split>.jsonl`` appears when its videos are there, and
    ``dataset.json`` appears last. After an interruption the same call goes on where it stopped. Worker
    processes are spawned, so a script that calls this function needs ``if __name__ == "__main__":``.

    Args:
        out: Folder to write.
        config: The data set, such as a ``MotionWorldConfig``.
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
    facts = config.facts  # Where something is missing, this fails before anything is written.
    with lock_folder(out):
        _claim(out, config)
        for split in SPLITS:
            specs = config.specs(split)
            (out / split).mkdir(exist_ok=True)
            clear_leftovers(out / split, locked=True)
            missing = [spec for spec in specs if not (out / spec.path).exists()]
            with report(f"{split} videos", len(missing), enabled=progress) as advance:
                for _ in _write_all(out, missing, config.write, workers):
                    advance(1)
            with atomic_path(out / f"{split}.jsonl") as partial:
                records = (
                    {"path": spec.path, **config.annotate(spec)}
                    for spec in sorted(specs, key=lambda spec: spec.index)
                )
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                partial.write_text("".join(lines), encoding="utf-8")
        about = {"name": config.name, "version": config.version, "config": asdict(config)}
        write_json(out / "dataset.json", {**about, **facts, "counts": config.counts})
    return out


def _claim(out: Path, config: DatasetConfig[Spec]) -> None:
    """Record the configuration in the folder, or check that it is the one recorded there."""
    record = out / "config.json"
    # Through JSON and back, so that tuples compare equal to the lists they are stored as.
    expected = json.loads(json.dumps({"name": config.name, "version": config.version, **asdict(config)}))
    if not record.exists():
        if any((out / split).exists() for split in SPLITS):
            raise ValueError(
                f"{out} holds videos but no config.json: it is not a {config.name}; choose another folder"
            )
        write_json(record, expected)
        return
    found = convert(load(record), dict[str, Any], str(record))
    differences = [
        f"{name} is {found.get(name)!r} there and {expected.get(name)!r} here"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if differences:
        raise ValueError(
            f"{out} holds another {found.get('name')}: {'; '.join(differences)}; choose another folder"
        )


def _write_all(
    out: Path, specs: list[Spec], write: Callable[[Path, Spec], None], workers: int
) -> Iterator[None]:
    """Write videos, yielding after each. An error or Ctrl-C lets only videos that are begun finish."""
    paths = [out / spec.path for spec in specs]
    workers = min(workers, math.ceil(len(specs) / CHUNK))
    if workers <= 1:
        yield from map(write, paths, specs)
        return
    # Spawned, not forked: the caller may have threads (PyTorch, BLAS) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent)
    try:
        with signals_held_back():
            done = pool.map(write, paths, specs, chunksize=CHUNK)
        yield from done
    finally:
        pool.shutdown(cancel_futures=True)
