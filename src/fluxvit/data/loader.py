"""Batches: which clips and which grid, a function of (seed, step) alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from fluxvit.data.dataset import ClipDataset, ClipRequest, collate
from fluxvit.flux.grid import SamplingGrid, draw_grid


class TrainingBatches:
    """Requests of batches ``start_step`` to ``steps``: one grid a batch, a video at most once an epoch.

    Args:
        videos: Size of the data set.
        grids: To draw from.
        batch_size: Clips a batch.
        steps: Batches of the whole run.
        seed: Of grids, order and augmentation.
        start_step: First batch, when a run goes on.
        samples: Clips of one video in a batch, decoded once and augmented differently ("repeated
            augmentation"; the release takes 2).

    Raises:
        ValueError: There are too few videos for a batch, or ``samples`` does not divide ``batch_size``.
    """

    def __init__(
        self,
        videos: int,
        grids: Sequence[SamplingGrid],
        batch_size: int,
        steps: int,
        seed: int,
        start_step: int = 0,
        samples: int = 1,
    ) -> None:
        if samples < 1 or batch_size % samples:
            raise ValueError(f"a batch of {batch_size} clips cannot hold {samples} of each of its videos")
        if videos < batch_size // samples:
            raise ValueError(f"{videos} videos do not fill a batch of {batch_size}; use a smaller batch")
        self.videos, self.grids, self.batch_size, self.samples = videos, grids, batch_size, samples
        self.steps, self.seed, self.start_step = steps, seed, start_step

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        per_batch = self.batch_size // self.samples
        per_epoch = self.videos // per_batch
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.videos)
            grid = draw_grid(self.grids, self.seed, step)
            first = step % per_epoch * per_batch
            chosen = order[first : first + per_batch]
            yield [
                ClipRequest(int(i), grid, (self.seed, step, place), self.samples)
                for place, i in enumerate(chosen)
            ]


def loader(dataset: ClipDataset, batches: Any, workers: int = 0) -> DataLoader:
    """A loader of the given batches of requests.

    Args:
        batches: An iterable of lists of :class:`ClipRequest`.
        workers: Processes that prepare batches; 0 prepares them in this one.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_settle_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )


def _settle_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group is the parent's to answer: it stops the workers when it is ready.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def epoch_batches(
    videos: int, grid: SamplingGrid, batch_size: int, indices: Sequence[int] | None = None
) -> list[list[ClipRequest]]:
    """Requests that visit every video (or those of ``indices``) once, in order."""
    chosen = range(videos) if indices is None else indices
    requests = [ClipRequest(i, grid) for i in chosen]
    return [requests[first : first + batch_size] for first in range(0, len(requests), batch_size)]
