"""Decoded frames kept on disk: each video is decoded once, small, and read many times.

For data sets of short videos on machines where decoding would eat the cores that train.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from fluxvit.data.manifest import Entry, Manifest
from fluxvit.utils.files import atomic_path, clear_leftovers
from fluxvit.utils.system import follow_parent, processes, signals_held_back
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times


class FrameCache:
    """Frames of every video of a manifest, evenly spread over its length, uint8.

    Args:
        folder: Folder of the cache; it need not exist yet.
        manifest: The videos.
        frames: Frames kept of each video.
        short_side: Their shorter side in pixels; smaller videos are kept as they are.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, frames: int, short_side: int) -> None:
        name = f"{manifest.digest}-{frames}x{short_side}"
        self._pixels_path = Path(folder) / f"{name}.u8"
        self._index_path = Path(folder) / f"{name}.json"
        self._manifest, self._frames, self._short_side = manifest, frames, short_side
        self._pixels: np.memmap | None = None
        self._sizes: list[tuple[int, int]] = []
        self._starts: np.ndarray = np.zeros(0, np.int64)

    def build(self, *, workers: int | None = None, progress: bool = True) -> FrameCache:
        """Decode the videos, unless the cache exists already. It appears complete or not at all.

        Raises:
            VideoError: A video cannot be read.
        """
        if self._index_path.exists():
            return self
        clear_leftovers(self._pixels_path.parent)  # Half a cache is large.
        jobs = [(entry, self._frames, self._short_side) for entry in self._manifest.entries]
        workers = min(processes(workers or None), 1 + len(jobs) // 64)
        sizes = []
        with atomic_path(self._pixels_path) as partial, partial.open("wb") as out:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, follow_parent) as pool:
                with signals_held_back():
                    decoded = pool.map(_decode, jobs, chunksize=16)
                for clip in track(
                    decoded, "Decoding frames", len(jobs), transient=True, disable=not progress
                ):
                    sizes.append(clip.shape[1:3])
                    out.write(clip.tobytes())
        with atomic_path(self._index_path) as partial:
            partial.write_text(json.dumps(sizes))
        return self

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        """Frames of a video at ``positions`` in [0, 1) of its length, uint8 ``[T, H, W, 3]``.

        Raises:
            ValueError: More frames are asked for than are kept.
        """
        if len(positions) > self._frames:
            raise ValueError(f"{len(positions)} frames of a cache of {self._frames}; cache more frames")
        if self._pixels is None:
            # Mapped where it is used: a worker process must not inherit the parent's mapping.
            self._sizes = [(h, w) for h, w in json.loads(self._index_path.read_text())]
            lengths = [3 * self._frames * h * w for h, w in self._sizes]
            self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            self._pixels = np.memmap(self._pixels_path, np.uint8, "r")
        pixels = self._pixels[self._starts[index] : self._starts[index + 1]]
        clip = pixels.reshape(self._frames, *self._sizes[index], 3)
        return clip[np.minimum((positions * self._frames).astype(int), self._frames - 1)]


def _decode(job: tuple[Entry, int, int]) -> np.ndarray:
    entry, frames, short_side = job
    with open_video(entry.path, short_side=short_side) as reader:
        return reader.read(segment_times(*entry.span(reader.end), frames).tolist())
