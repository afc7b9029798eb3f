"""Noisy videos whose colour is their class, and a random backbone to see them with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.evaluation.probing.features import Backbone
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.video.base import VideoError

GRID = SamplingGrid(8, 16, 16)
HUES = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
INFO = Checkpoint(small_model(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Colours:
    """A source without files; counts what is read."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.reads = fails_at, 0

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        if index == self.fails_at:
            raise VideoError.of(f"{index}.mp4", "broken")
        self.reads += 1
        frames = np.random.default_rng(index).integers(0, 60, (len(positions), 20, 28, 3), dtype=np.uint8)
        return frames + np.multiply(HUES[index % 3], 190).astype(np.uint8)


def dataset(count: int, source: Colours | None = None, digest: str = "digest") -> ClipDataset:
    entries = tuple(Entry(Path(f"{i}.mp4"), i % 3) for i in range(count))
    return ClipDataset(Manifest(entries, ("r", "g", "b"), digest), source or Colours())


def backbone(keep: int = 6, digest: str = "weights") -> Backbone:
    checkpoint = replace(INFO, model=small_model())
    return Backbone(checkpoint, digest, Plan(GRID, keep, INFO.model.config.nearest_head(keep)))
