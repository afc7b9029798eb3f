"""What a bulk job does with one part of its videos: decode it, run the network, and make its tables.

A part is a fixed run of the list of videos. Its clips are put into batches of one size that hold clips of no
other part, and a network computes in one thread, because sums of several threads round differently. So the
results of a part are the same bits whoever computes it, in whatever order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.checkpoints.loading import load
from fluxvit.deploy.bulk.config import BulkOptions, LabelConfig
from fluxvit.deploy.bulk.inputs import Item, open_item
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.inference import form
from fluxvit.utils.system import usable_device
from fluxvit.utils.terminal import printable
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.transforms import read_clips, to_tensor

if TYPE_CHECKING:
    import pyarrow as pa


class Part(NamedTuple):
    """Part ``number`` of the videos of a job."""

    number: int
    items: Sequence[Item]


class Clip(NamedTuple):
    """A decoded video: where it starts, its seconds, and its frames uint8 ``[T, height, width, 3]``."""

    path: str
    start: float
    seconds: float
    frames: np.ndarray


class Decoded(NamedTuple):
    """A part after decoding: its clips, (path, reason) of those that cannot be read, and the seconds that it
    took.
    """

    number: int
    clips: list[Clip]
    damaged: list[tuple[str, str]]
    busy_s: float


class Result(NamedTuple):
    """The tables of a part, and the seconds that decoding and the network took."""

    number: int
    rows: pa.Table
    damaged: pa.Table
    decode_s: float
    network_s: float


def decode(part: Part, grid: SamplingGrid, sampling: ClipSampling) -> Decoded:
    """Read the clips of a part."""
    started = time.perf_counter()
    clips, damaged = [], []
    for item in part.items:
        try:
            with open_item(item.path) as reader:
                start, end = item.span(reader.end)
                times = sampling.times(start, end, grid.frames, reader.fps)
                [frames] = read_clips(reader, [(times, (grid.height, grid.width))])
        except VideoError as error:
            reason = str(error).removeprefix(f"{printable(item.path)}: ").removeprefix("<file>: ")
            damaged.append((item.path, reason))
        else:
            clips.append(Clip(item.path, start, end - start, frames))
    return Decoded(part.number, clips, damaged, time.perf_counter() - started)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch, and networks that are made meanwhile, compute in one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Network:
    """The network of a job. It must be made in :func:`one_thread`, or a process that has one.

    Args:
        config: The options of the job.
        plan: How the budget is spent. By default it follows from the options.

    Raises:
        ValueError: The checkpoint, the budget or the grid cannot be used.
    """

    def __init__(self, config: BulkOptions, plan: Plan | None = None) -> None:
        self._batch, self._top = config.batch, config.top if isinstance(config, LabelConfig) else None
        loaded = load(config.checkpoint, usable_device(config.device))
        if self._top is not None and not (isinstance(loaded, Checkpoint) and loaded.model.config.num_classes):
            raise ValueError(f"{config.checkpoint} has no classifier; use fluxvit embed, or a classifier")
        if not isinstance(loaded, (Checkpoint, DualEncoderCheckpoint)):
            loaded = loaded.video
        digest, prepared = loaded.digest(), loaded.prepared(config.precision)
        self._dual = prepared.model if isinstance(prepared, DualEncoderCheckpoint) else None
        self._video = prepared if isinstance(prepared, Checkpoint) else prepared.video
        self.device, self.sampling = self._video.device, self._video.sampling
        self.plan = plan = plan or self._video.plan(config.budget, config.grid)
        self.settings: dict[str, Any] = {
            "checkpoint": digest,
            "form": form(self._video.model),
            "sampled": str(plan.grid),
            "tokens": plan.keep,
            "head": plan.head,
            "selector": plan.selector,
        }
        size = self._video.model.config.size
        self._gflops = grid_cost(size, plan.grid, plan.keep, plan.selector).total / 1e9

    def __call__(self, decoded: Decoded) -> Result:
        """The tables of a part.

        Raises:
            NotFiniteError: The network gives NaN or infinity.
        """
        started = time.perf_counter()
        clips = decoded.clips
        remaining = iter(clips)
        outputs = [self._run(batch) for batch in iter(lambda: list(islice(remaining, self._batch)), [])]
        rows = self._table(clips, np.concatenate(outputs) if outputs else None)
        spent = time.perf_counter() - started
        return Result(decoded.number, rows, _damaged_table(decoded.damaged), decoded.busy_s, spent)

    @torch.inference_mode()
    def _run(self, clips: list[Clip]) -> np.ndarray:
        """Probabilities float64 ``[N, classes]`` or vectors fp32 ``[N, P]``."""
        # Batches have one size, because other sizes may run other kernels, which round differently.
        padded = clips + clips[-1:] * (self._batch - len(clips))
        video = self._video.normalize(torch.stack([to_tensor(clip.frames) for clip in padded]))
        values = self._values(video)[: len(clips)].cpu()
        for clip, row in zip(clips, values, strict=True):
            check_finite(row, printable(clip.path))
        return values.numpy()

    def _values(self, video: Tensor) -> Tensor:
        plan = self.plan
        if self._dual is not None:
            return self._dual.embed_video(video, plan.keep, plan.head, plan.selector).float()
        out = self._video.model(video, plan.keep, plan.head, plan.selector)
        if self._top is None:
            return out.embedding.float()
        return self._video.probabilities(out.logits.cpu())

    def _table(self, clips: list[Clip], values: np.ndarray | None) -> pa.Table:
        import pyarrow as pa

        count, plan = len(clips), self.plan
        columns: dict[str, Any] = {
            "path": pa.array([_unicode(clip.path) for clip in clips], pa.string()),
            "start": pa.array([clip.start for clip in clips], pa.float64()),
            "seconds": pa.array([clip.seconds for clip in clips], pa.float64()),
        }
        if self._top is not None:
            columns |= self._label_columns(values)
        else:
            flat = pa.array(np.empty(0, np.float32) if values is None else values.ravel())
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, self._width)
        columns |= {
            "frames": pa.array([plan.grid.frames] * count, pa.int32()),
            "tokens": pa.array([plan.keep] * count, pa.int32()),
            "gflops": pa.array([self._gflops] * count, pa.float64()),
        }
        return pa.table(columns)

    def _label_columns(self, probabilities: np.ndarray | None) -> dict[str, pa.Array]:
        import pyarrow as pa

        values = np.empty((0, 1)) if probabilities is None else probabilities
        order = np.argsort(-values, axis=1, kind="stable")[:, : self._top]
        names = [[self._video.class_names[i] for i in row] for row in order]
        scores = np.take_along_axis(values, order, axis=1).astype(np.float32).tolist()
        return {
            "label": pa.array([row[0] for row in names], pa.string()),
            "score": pa.array([row[0] for row in scores], pa.float32()),
            "labels": pa.array(names, pa.list_(pa.string())),
            "scores": pa.array(scores, pa.list_(pa.float32())),
        }

    @property
    def _width(self) -> int:
        """The length of a vector."""
        return self._dual.language.dim if self._dual is not None else self._video.model.config.pool_dim


def _damaged_table(damaged: Sequence[tuple[str, str]]) -> pa.Table:
    import pyarrow as pa

    paths, reasons = ([_unicode(row[i]) for row in damaged] for i in (0, 1))
    return pa.table({"path": pa.array(paths, pa.string()), "reason": pa.array(reasons, pa.string())})


def _unicode(text: str) -> str:
    """Text without the halves of surrogate pairs that stand for the bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
