"""Batches: which clips and which grid, a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from fluxvit.data.dataset import ClipDataset, ClipRequest, collate
from fluxvit.flux.grid import SamplingGrid, draw_grid


class TrainingBatches:
    """Requests of batches ``start_step`` to ``steps``: one grid a batch, a video at most once an epoch."""

    def __init__(
        self,
        videos: int,
        grids: Sequence[SamplingGrid],
        batch_size: int,
        steps: int,
        seed: int,
        start_step: int = 0,
    ) -> None:
        if videos < batch_size:
            raise ValueError(f"{videos} videos do not fill a batch of {batch_size}; use a smaller batch")
        self.videos, self.grids, self.batch_size = videos, grids, batch_size
        self.steps, self.seed, self.start_step = steps, seed, start_step

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        per_epoch = self.videos // self.batch_size
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.videos)
            grid = draw_grid(self.grids, self.seed, step)
            first = step % per_epoch * self.batch_size
            chosen = order[first : first + self.batch_size]
            yield [ClipRequest(int(i), grid, (self.seed, step, place)) for place, i in enumerate(chosen)]


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
        worker_init_fn=_one_thread if workers else None,
        prefetch_factor=4 if workers else None,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def epoch_batches(
    videos: int, grid: SamplingGrid, batch_size: int, indices: Sequence[int] | None = None
) -> list[list[ClipRequest]]:
    """Requests that visit every video (or those of ``indices``) once, in order."""
    chosen = range(videos) if indices is None else indices
    requests = [ClipRequest(i, grid) for i in chosen]
    return [requests[first : first + batch_size] for first in range(0, len(requests), batch_size)]
