"""The network of a bulk job, and the tables of what it says.

A part is a fixed run of the list of videos. Its clips are put into batches of one size that hold clips of no
other part, and a network computes in one thread, because sums of several threads round differently. So the
results of a part are the same bits whoever computes it, in whatever order.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.loading import load_encoder
from fluxvit.deploy.bulk.config import BulkOptions, LabelConfig
from fluxvit.deploy.bulk.decoding import Clip, Decoded, Sampler
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.inference import form
from fluxvit.models.openvino_blocks import OpenVINOBlocks
from fluxvit.utils.system import usable_device
from fluxvit.utils.terminal import printable
from fluxvit.video.transforms import to_tensor

if TYPE_CHECKING:
    import pyarrow as pa


class Result(NamedTuple):
    """The tables of a part, and the seconds that decoding and the network took."""

    number: int
    rows: pa.Table
    damaged: pa.Table
    decode_s: float
    network_s: float


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
        loaded = load_encoder(config.checkpoint, usable_device(config.device))
        if self._top is not None and not (isinstance(loaded, Checkpoint) and loaded.model.config.num_classes):
            raise ValueError(f"{config.checkpoint} has no classifier; use fluxvit embed, or a classifier")
        digest, self._encoder = loaded.digest(), loaded.prepared(config.precision)
        self._video = self._encoder.video
        self.device, video = self._video.device, self._video
        rate = config.budget if config.budget and config.budget.tokens_per_s else None
        if rate:
            most = video.plan(None, config.grid).keep
            plans = tuple(video.plan(tokens, config.grid) for tokens in range(1, most + 1))
        else:
            plans = (plan or video.plan(config.budget, config.grid),)
        if isinstance(blocks := video.model.blocks, OpenVINOBlocks):
            # Graphs follow from the batch alone, not from plans that were measured before or other batches.
            blocks.clear(0 if rate else 1)
        self.sampler = Sampler(video.sampling, plans, rate)
        self.settings: dict[str, Any] = {"checkpoint": digest, "form": form(video.model)}
        if rate:
            self.settings["plans"] = hashlib.sha256(repr(plans).encode()).hexdigest()[:16]
        else:
            self.settings["plan"] = asdict(plans[0]) | {"grid": str(plans[0].grid), "measured": None}

    def __call__(self, decoded: Decoded) -> Result:
        """The tables of a part.

        Raises:
            NotFiniteError: The network gives NaN or infinity.
        """
        started = time.perf_counter()
        clips = decoded.clips
        values: list[list[Tensor]] = [[] for _ in clips]
        for plan in dict.fromkeys(clip.plan for clip in clips):
            views = ((n, view) for n, clip in enumerate(clips) if clip.plan == plan for view in clip.frames)
            while batch := list(islice(views, self._batch)):
                outputs = self._run([view for _, view in batch], plan)
                for (number, _), row in zip(batch, outputs, strict=True):
                    values[number].append(check_finite(row, printable(clips[number].path)))
        mean = self._encoder.mean_vector if self._top is None else partial(torch.mean, dim=0)
        rows = self._table(clips, [mean(torch.stack(rows)).numpy() for rows in values])
        spent = time.perf_counter() - started
        return Result(decoded.number, rows, _damaged_table(decoded.damaged), decoded.busy_s, spent)

    @torch.inference_mode()
    def _run(self, views: list[np.ndarray], plan: Plan) -> Tensor:
        """Probabilities float64 ``[N, classes]`` or vectors fp32 ``[N, P]``, on the CPU."""
        # Batches have one size, because other sizes may run other kernels, which round differently.
        padded = views + views[-1:] * (self._batch - len(views))
        video = self._video.normalize(torch.stack([to_tensor(frames) for frames in padded]))
        if self._top is None:
            values = self._encoder.embed(video, plan).cpu()
        else:
            out = self._video.model(video, plan.keep, plan.head, plan.selector)
            values = self._video.probabilities(out.logits.cpu())  # Not all devices have fp64.
        return values[: len(views)]

    def _table(self, clips: Sequence[Clip], values: Sequence[np.ndarray]) -> pa.Table:
        import pyarrow as pa

        columns: dict[str, Any] = {
            "path": pa.array([_unicode(clip.path) for clip in clips], pa.string()),
            "start": pa.array([clip.start for clip in clips], pa.float64()),
            "seconds": pa.array([clip.seconds for clip in clips], pa.float64()),
        }
        if self._top is not None:
            columns |= self._label_columns(values)
        else:
            flat = np.concatenate([np.empty(0, np.float32), *values])
            width = self._encoder.embedding_dim
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
        spent = [self._spent(clip) for clip in clips]
        columns["frames"] = pa.array([cost[0] for cost in spent], pa.int64())
        columns["tokens"] = pa.array([cost[1] for cost in spent], pa.int64())
        columns["gflops"] = pa.array([cost[2] for cost in spent], pa.float64())
        return pa.table(columns)

    def _label_columns(self, probabilities: Sequence[np.ndarray]) -> dict[str, pa.Array]:
        import pyarrow as pa

        orders = [np.argsort(-values, kind="stable")[: self._top] for values in probabilities]
        names = [[self._video.class_names[i] for i in order] for order in orders]
        scores = [values[order].tolist() for values, order in zip(probabilities, orders, strict=True)]
        return {
            "label": pa.array([row[0] for row in names], pa.string()),
            "score": pa.array([row[0] for row in scores], pa.float32()),
            "labels": pa.array(names, pa.list_(pa.string())),
            "scores": pa.array(scores, pa.list_(pa.float32())),
        }

    def _spent(self, clip: Clip) -> tuple[int, int, float]:
        """Frames, tokens and GFLOPs of all views."""
        plan, views = clip.plan, len(clip.frames)
        cost = grid_cost(self._video.model.config.size, plan.grid, plan.keep, plan.selector)
        return views * plan.grid.frames, views * plan.keep, views * cost.total / 1e9


def _damaged_table(damaged: Sequence[tuple[str, str]]) -> pa.Table:
    import pyarrow as pa

    paths, reasons = ([_unicode(row[i]) for row in damaged] for i in (0, 1))
    return pa.table({"path": pa.array(paths, pa.string()), "reason": pa.array(reasons, pa.string())})


def _unicode(text: str) -> str:
    """Text without the halves of surrogate pairs that stand for the bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
