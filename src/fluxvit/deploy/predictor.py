"""One object that answers what is to be seen in a video, at a budget."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.flux.budget import Budget
from fluxvit.flux.cascade import Spent
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViTOutput
from fluxvit.utils.schema import convert, plain
from fluxvit.utils.system import usable_device
from fluxvit.video.inputs import VideoInput, given_path
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import read_clips


@dataclass(frozen=True)
class Sampled:
    """Frames of a video for the network.

    Args:
        path: The video; None if it was given in memory.
        times: For each grid, seconds of its frames, float64 ``[T]``.
        frames: For each grid, frames of its size, uint8 ``[T, height, width, 3]``.
        originals: The same frames at the video's own size, uint8 ``[T, H, W, 3]``, if they are to be kept.
    """

    path: Path | None
    times: Mapping[SamplingGrid, np.ndarray]
    frames: Mapping[SamplingGrid, np.ndarray]
    originals: Mapping[SamplingGrid, np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a clip.

    Args:
        path: The clip; None if it was given in memory.
        labels: Class names in the order of the logits.
        probabilities: float64 ``[classes]``; they sum to 1, unless the checkpoint tells several classes of a
            clip.
        plan: How the budget was spent.
        frames: The sampled frames at the video's own size, uint8 ``[T, H, W, 3]``, if the predictor was asked
            to keep them, else None.
        times: Seconds of the sampled frames, float64 ``[T]``.
        kept: int64 ``[K]`` indices of the kept tokens in the pool; None when nothing was dropped.
        embedding: float32 ``[P]``, the clip's pooled vector.
        spent: What the clip has cost.
    """

    path: Path | None
    labels: Sequence[str]
    probabilities: np.ndarray
    plan: Plan
    frames: np.ndarray | None
    times: np.ndarray
    kept: np.ndarray | None
    embedding: np.ndarray
    spent: Spent

    @property
    def fps(self) -> float:
        """Sampled frames per second of video; 0 for a single frame."""
        span = self.times[-1] - self.times[0]
        return float((len(self.times) - 1) / span) if span else 0.0

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` likeliest classes with their probabilities, likeliest first."""
        return likeliest(self.labels, self.probabilities, count)


def likeliest(labels: Sequence[str], probabilities: np.ndarray, count: int) -> list[tuple[str, float]]:
    """The ``count`` likeliest classes with their probabilities ``[classes]``, likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(labels[i], float(probabilities[i])) for i in order]


class Predictor:
    """``Predictor("runs/demo/best", budget=Budget(latency_ms=80))("clip.mp4").top(5)``.

    Args:
        checkpoint: A checkpoint, which stays where it is; a checkpoint folder; or the name of one of the
            package's. By default it is the package's own.
        budget: What a clip may cost; a number is tokens. None: the largest trained budget. For one in
            milliseconds ``device`` is measured when the predictor is made
            (:func:`~fluxvit.checkpoints.latency.plan_for`); ``plan.measured`` tells what the plan costs.
        grid: Sampling grid; None: the checkpoint's plan for the budget, or one that it was trained on.
        head: Head to read; None: the one trained nearest to the number of kept tokens.
        device: Where to run a checkpoint that is read; None: the accelerator if there is one.
        keep_frames: Keep the sampled frames in the predictions, at the video's own size: 25 MB for each frame
            of a 4K video. Needed to explain predictions of videos that are given in memory.

    Raises:
        ValueError: The checkpoint, the budget, the grid or the head cannot be used; the message says why.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path = DEFAULT_CHECKPOINT,
        budget: Budget | int | None = None,
        *,
        grid: SamplingGrid | None = None,
        head: int | None = None,
        device: str | torch.device | None = None,
        keep_frames: bool = False,
    ) -> None:
        _prepare_forks()
        self.keep_frames = keep_frames
        name = "the checkpoint" if isinstance(checkpoint, Checkpoint) else checkpoint
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.load(checkpoint, usable_device(device))
        self.checkpoint, self.model, self.device = checkpoint, checkpoint.model, checkpoint.device
        config = self.model.config
        if config.num_classes == 0:
            raise ValueError(f"{name} has no classifier; it can embed, not predict")
        head = None if head is None else convert(plain(head), int, key="head")
        if head is not None and not 0 <= head < len(config.budgets):
            raise ValueError(
                f"head {head} does not exist; this model has heads 0 to {len(config.budgets) - 1}"
            )
        self.labels = checkpoint.class_names
        plan = checkpoint.plan(budget, grid)
        if head is not None and head != plan.head:
            # The accuracy was the other head's; the cost is the same.
            measured = plan.measured and replace(plan.measured, correct=None, total=None)
            plan = replace(plan, head=head, measured=measured)
        self.plan = plan

    @torch.inference_mode()
    def __call__(self, video: VideoInput, *, fps: float | None = None) -> Prediction:
        """Classify a video.

        Args:
            video: The path of a video file or of a folder of frames, the bytes of a file, a file opened in
                binary mode, or frames; see :func:`~fluxvit.video.reader.open_video`.
            fps: Frames per second of a folder of frames or of frames in memory; None: 25.

        Raises:
            VideoError: It cannot be read.
            ValueError: Frames have another shape or type, or ``fps`` cannot be used.
        """
        plan = self.plan
        sampled = self.sample(video, [plan.grid], fps)
        frames = self.checkpoint.clip(sampled.frames[plan.grid], plan.grid)
        out = self.model(frames, plan.keep, plan.head, plan.selector)
        cost = grid_cost(self.model.config.size, plan.grid, plan.keep, plan.selector)
        spent = Spent(plan.keep, cost.total / 1e9)
        return self.prediction(sampled, plan, self.checkpoint.probabilities(out.logits.cpu()), out, spent)

    def sample(self, video: VideoInput, grids: Sequence[SamplingGrid], fps: float | None = None) -> Sampled:
        """Frames of a video on each of ``grids``, at the times that the checkpoint was trained for.

        Args:
            video: As in a call.
            fps: As in a call.

        Raises:
            VideoError: It cannot be read.
            ValueError: Frames have another shape or type, or ``fps`` cannot be used.
        """
        with open_video(video, fps=fps) as reader:
            sampling, end = self.checkpoint.sampling, reader.end
            times = {grid: sampling.times(0, end, grid.frames, reader.fps) for grid in grids}
            requests: list[tuple[np.ndarray, tuple[int, int] | None]] = [
                (moments, (grid.height, grid.width)) for grid, moments in times.items()
            ]
            if self.keep_frames:
                requests += [(moments, None) for moments in times.values()]
            clips = read_clips(reader, requests)
        originals = dict(zip(times, clips[len(times) :], strict=True)) if self.keep_frames else {}
        return Sampled(
            given_path(video), times, dict(zip(times, clips[: len(times)], strict=True)), originals
        )

    def prediction(
        self, sampled: Sampled, plan: Plan, probabilities: Tensor, out: FluxViTOutput, spent: Spent
    ) -> Prediction:
        """What the network gave for one clip, with ``probabilities`` ``[1, classes]``, as a prediction.

        Raises:
            NotFiniteError: The probabilities or the embedding are not finite.
        """
        name = sampled.path or "the given video"
        embedding = check_finite(out.embedding[0].float().cpu(), name).numpy()
        check_finite(probabilities, name)
        return Prediction(
            path=sampled.path,
            labels=self.labels,
            probabilities=probabilities[0].numpy(),
            plan=plan,
            frames=sampled.originals.get(plan.grid),
            times=sampled.times[plan.grid],
            kept=None if out.kept is None else out.kept[0].cpu().numpy(),
            embedding=embedding,
            spent=spent,
        )


@cache
def _prepare_forks() -> None:
    """Let processes that are forked from this one compute in one thread.

    The threads of a parent that has computed do not exist in its children, which would wait for them forever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
