"""Batches: which clips and which grid, a function of (seed, step) alone."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import random
import signal
import weakref
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fluxvit.data.classes import class_weights
from fluxvit.data.dataset import Clip, ClipRequest, collate
from fluxvit.flux.grid import SamplingGrid, draw_grid
from fluxvit.utils.files import append_json, read_json_lines
from fluxvit.utils.schema import Workers, convert
from fluxvit.utils.system import HELD_BACK, let_signals_in, signals_held_back

# Steps whose grids one generator draws: seeding takes as long as a hundred draws.
_BLOCK = 1024

_log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """The videos of a step: numbers ``first`` to ``first + videos`` in the order of the epoch."""

    epoch: int
    first: int
    videos: int
    grid: SamplingGrid


class TrainingBatches:
    """Requests of batches ``start_step`` to ``steps``: one grid a batch, a video at most once an epoch.

    With ``balance`` classes are sampled more evenly than they occur: an epoch is still as many draws as there
    are videos, but a video of a rare class comes several times, and one of a frequent class in some epochs
    only. In each epoch the draws of a class and those of a video are the expected number, rounded up or down.

    Args:
        videos: Size of the data set.
        grids: Grids to draw from.
        batch_size: Clips in a batch.
        steps: Batches of the whole run.
        seed: Seed of grids, order and augmentation.
        start_step: First batch, for a run that is resumed.
        samples: Clips of one video in a batch, decoded once and augmented differently ("repeated
            augmentation"; the release takes 2).
        tokens_per_batch: Instead of ``batch_size`` clips, as many as the pool tokens of the drawn grid allow:
            steps then cost about the same. Rounded down to a multiple of ``samples * processes``, and at
            least one such multiple, even where that has more tokens.
        patch_size, tubelet_size: Size of the tokens that are counted.
        processes: Number of processes that share each of those batches evenly.
        labels: The class index of each video ``[videos]``; needed for ``balance``.
        balance: ``none``, ``sqrt`` or ``balanced``; see :func:`~fluxvit.data.classes.class_weights`.

    Raises:
        ValueError: There are too few videos for a batch, ``samples`` does not divide ``batch_size``, or
            ``balance`` lacks the labels.
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
        tokens_per_batch: int | None = None,
        patch_size: int = 14,
        tubelet_size: int = 1,
        processes: int = 1,
        labels: Sequence[int] = (),
        balance: str = "none",
    ) -> None:
        if balance != "none" and len(labels) != videos:
            raise ValueError(f"balance {balance!r} needs the labels of {videos} videos, got {len(labels)}")
        if samples < 1 or batch_size % samples:
            raise ValueError(f"a batch of {batch_size} clips cannot hold {samples} of each of its videos")
        if tokens_per_batch is not None and (tokens_per_batch < 1 or processes < 1):
            raise ValueError(
                f"tokens_per_batch and processes must be at least 1, got {tokens_per_batch} and {processes}"
            )
        self.videos, self.grids, self.batch_size, self.samples = videos, grids, batch_size, samples
        self.steps, self.seed, self.start_step = steps, seed, start_step
        self.tokens_per_batch = tokens_per_batch
        self._labels = None if balance == "none" else np.asarray(labels)
        if self._labels is not None:
            self._weights = class_weights(labels, int(self._labels.max()) + 1, balance)[self._labels]
        self._counts = [batch_size // samples] * len(grids)
        if tokens_per_batch is not None:
            pools = [grid.tokens(patch_size, tubelet_size) for grid in grids]
            shares = [tokens_per_batch // (pool * samples * processes) for pool in pools]
            self._counts = [processes * max(1, share) for share in shares]
        if videos < max(self._counts):
            clips = max(self._counts) * samples
            cure = "use a smaller batch" if tokens_per_batch is None else "lower tokens_per_batch"
            raise ValueError(f"{videos} videos do not fill a batch of {clips} clips; {cure}")

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for step, place in enumerate(self._places(self.start_step, self.steps), start=self.start_step):
            if place.epoch != epoch:
                epoch = place.epoch
                order = self._order(epoch)
            chosen = order[place.first : place.first + place.videos]
            yield [
                ClipRequest(int(item), place.grid, (self.seed, step, number), self.samples)
                for number, item in enumerate(chosen)
            ]

    def _order(self, epoch: int) -> np.ndarray:
        """The videos of an epoch, in its order."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.videos)
        if self._labels is None:
            return order
        # Systematic sampling: videos lie side by side, class by class, each as long as it is to be drawn on
        # average, and are picked at a distance of 1.
        order = order[self._labels[order].argsort(kind="stable")]
        ends = self._weights[order].cumsum()
        picks = ends.searchsorted((np.arange(self.videos) + generator.random()) * ends[-1] / self.videos)
        return generator.permutation(order[picks.clip(max=self.videos - 1)])

    def steps_in(self, epochs: float) -> int:
        """Batches that ``epochs`` passes over the videos make, at least 1, whatever ``steps`` is.

        With constant batches this counts their clips, as recipes always did; with constant tokens it counts
        the batches that end within so many passes.
        """
        if self.tokens_per_batch is None:
            per_epoch = self.videos * self.samples // self.batch_size
            return max(1, round(epochs * per_epoch))
        steps = 0
        for _, epoch, first, choice in self._token_places():
            if epoch + (first + self._counts[choice]) / self.videos > epochs:
                break
            steps += 1
        return max(1, steps)

    def _places(self, start: int, end: int) -> Iterator[_Place]:
        if self.tokens_per_batch is None:
            per_batch = self.batch_size // self.samples
            per_epoch = self.videos // per_batch
            for step in range(start, end):
                grid = draw_grid(self.grids, self.seed, step)
                yield _Place(step // per_epoch, step % per_epoch * per_batch, per_batch, grid)
            return
        # Where a batch lies depends on the sizes of all before it, so that these are gone through again.
        for step, epoch, first, choice in self._token_places():
            if step >= end:
                return
            if step >= start:
                yield _Place(epoch, first, self._counts[choice], self.grids[choice])

    def _token_places(self) -> Iterator[tuple[int, int, int, int]]:
        """Step, epoch, first video and number of the grid, without end; a million in a fraction of a second.

        An epoch ends where the videos that are left do not fill the next batch.
        """
        counts, videos, grids = self._counts, self.videos, len(self.grids)
        epoch = first = 0
        for step in count():
            if step % _BLOCK == 0:
                draw = random.Random(f"grids {self.seed} {step // _BLOCK}").random
            choice = int(draw() * grids)
            if first + counts[choice] > videos:
                epoch, first = epoch + 1, 0
            yield step, epoch, first, choice
            first += counts[choice]


class _Fault(msgspec.Struct):
    """What a line of the report must have."""

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
            del batches
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
        name_faults: Do so; a caller that looks at ``faults`` itself turns it off.

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
