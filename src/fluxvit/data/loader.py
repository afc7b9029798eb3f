"""Batches of clips. Their clips and their grid depend on the seed and the step alone."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fluxvit.data.dataset import Clip, ClipRequest, collate
from fluxvit.flux.grid import SamplingGrid, draw_grid
from fluxvit.utils.files import append_json, read_json_lines
from fluxvit.utils.schema import Workers, convert
from fluxvit.utils.system import HELD_BACK, let_signals_in, signals_held_back

_log = logging.getLogger(__name__)


class TrainingBatches:
    """Requests of batches ``start_step`` to ``steps``: one grid a batch, a video at most once an epoch.

    Args:
        videos: Size of the data set.
        grids: Grids to draw from.
        batch_size: Clips in a batch, of all processes together.
        steps: Batches of the whole run.
        seed: Seed of grids, order and augmentation.
        start_step: First batch, for a run that is resumed.
        samples: Clips of one video in a batch, decoded once and augmented differently ("repeated
            augmentation"; the release takes 2).
        rank, processes: Each of so many processes gets its part of every batch.

    Raises:
        ValueError: There are too few videos for a batch, ``samples`` does not divide ``batch_size``, or the
            processes cannot share a batch evenly.
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
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if samples < 1 or batch_size % samples:
            raise ValueError(f"a batch of {batch_size} clips cannot hold {samples} of each of its videos")
        if videos < batch_size // samples:
            raise ValueError(
                f"{videos} videos do not fill a batch of {batch_size} clips; use a smaller batch"
            )
        if batch_size // samples % processes:
            raise ValueError(
                f"a batch of {batch_size // samples} videos cannot be shared evenly by {processes} "
                f"processes; choose a multiple of {processes}"
            )
        self.videos, self.grids, self.steps, self.seed = videos, grids, steps, seed
        self.start_step, self.samples, self.rank, self.processes = start_step, samples, rank, processes
        self._per_batch = batch_size // samples
        self.steps_per_epoch = videos // self._per_batch

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start_step, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.videos)
            grid = draw_grid(self.grids, self.seed, step)
            first = step % self.steps_per_epoch * self._per_batch
            requests = [
                ClipRequest(int(item), grid, (self.seed, step, number), self.samples)
                for number, item in enumerate(order[first : first + self._per_batch])
            ]
            yield requests[self.rank :: self.processes]

    def steps_in(self, epochs: float) -> int:
        """Batches that ``epochs`` passes over the videos make, at least 1, whatever ``steps`` is."""
        return max(1, round(epochs * self.steps_per_epoch))


class _Fault(msgspec.Struct):
    """A line of the report."""

    error: str


class ClipLoader(DataLoader[Clip]):
    """Batches of clips; names every file that could not be read, once, in this process.

    Messages of worker processes can get lost, so clips carry the errors of the videos they replace.
    """

    report: Path | None = None
    names_faults = True

    def __iter__(self) -> Iterator[Clip]:  # type: ignore[override]
        clips = self._clips()
        _running.add(clips)
        return clips

    def _clips(self) -> Generator[Clip, None, None]:
        known = (
            set() if self.report is None else {row["error"] for row in read_json_lines(self.report, _Fault)}
        )
        trouble: Exception | None = None
        with signals_held_back():
            batches = super().__iter__()
        try:
            for batch in batches:
                for fault in batch.faults if self.names_faults else ():
                    if fault not in known:
                        known.add(fault)
                        self._name(fault)
                yield batch
        except Exception as error:
            if not self.num_workers:
                raise
            # The frames of its traceback hold the workers, and it holds the frames: they would outlive it,
            # and Python would wait for them at its exit. The worker's own traceback is in the message.
            trouble = error.with_traceback(None)
            trouble.__cause__ = trouble.__context__ = None
        finally:
            workers = getattr(batches, "_workers", ())
            del batches
            for worker in workers:
                if worker.is_alive():
                    # It waits for a lock that a killed worker has kept, and ignores PyTorch's SIGTERM.
                    worker.kill()
                    worker.join()
            del workers
        if isinstance(trouble, ValueError) and str(trouble).startswith("Caught "):
            raise type(trouble)(str(trouble).splitlines()[-1].partition(": ")[2])  # For users: one line.
        if trouble is not None:
            raise trouble

    def _name(self, fault: str) -> None:
        _log.warning("%s; other videos are taken in its place", fault)
        if self.report is not None:
            try:
                self.report.parent.mkdir(parents=True, exist_ok=True)
                append_json(self.report, {"error": fault})
            except OSError as error:
                # A full disk must not end the run for this.
                _log.warning("%s: not written: %s", self.report, error.strerror)


def loader(
    dataset: Dataset[Clip],
    batches: Any,
    workers: int = 0,
    report: str | Path | None = None,
    *,
    name_faults: bool = True,
) -> ClipLoader:
    """A loader of the given batches of requests.

    Args:
        batches: An iterable of lists of :class:`ClipRequest`.
        workers: Processes that prepare batches; 0 prepares them in this one.
        report: A ``.jsonl`` file to which the error of each training file that cannot be read is added, once
            even if a run is interrupted and goes on. They are logged as warnings, too.
        name_faults: Log and report these errors; a caller that handles ``faults`` itself turns it off.

    Raises:
        ValueError: The number of workers is negative, or more than any machine can start.
    """
    workers = convert(workers, Workers, key="workers")
    clips = ClipLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_settle_worker if workers else None,
        multiprocessing_context=_start_method() if workers else None,
        prefetch_factor=4 if workers else None,
    )
    clips.report = None if report is None else Path(report)
    clips.names_faults = name_faults
    return clips


_running: weakref.WeakSet[Generator[Clip, None, None]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    # At its exit Python ends worker processes by a signal, which ours ignore, and waits for them.
    for clips in list(_running):
        clips.close()


def _start_method() -> str:
    """How workers are started: the usual way, but not by a fork server, from which they would inherit another
    mask of signals than this process's.
    """
    method = multiprocessing.get_start_method()
    return "spawn" if method == "forkserver" else method  # Python 3.14 has the fork server on Linux.


def _settle_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group is the parent's to answer: it stops the workers when it is ready.
    for number in HELD_BACK:
        signal.signal(number, signal.SIG_IGN)
    let_signals_in()


def epoch_batches(
    videos: int,
    grid: SamplingGrid,
    batch_size: int,
    indices: Sequence[int] | None = None,
    views: tuple[int, int] = (1, 1),
) -> list[list[ClipRequest]]:
    """Requests that visit every video (or those of ``indices``) once, in order; ``views`` of each."""
    chosen = range(videos) if indices is None else indices
    requests = [ClipRequest(i, grid, views=views) for i in chosen]
    return [requests[first : first + batch_size] for first in range(0, len(requests), batch_size)]
