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

from fluxvit.checkpoints.folder import DEFAULT_CHECKPOINT, CheckpointInfo, load_checkpoint
from fluxvit.deploy.latency import plan_for
from fluxvit.flux.budget import Budget
from fluxvit.flux.cascade import Spent
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput
from fluxvit.utils.schema import convert, plain
from fluxvit.utils.system import usable_device
from fluxvit.video.inputs import VideoInput, given_path
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import eval_transform, read_clips

# Without a plan table: published searches end at pools of 1.3 to 4 times the budget (paper tables 1 and 11).
_USUAL_POOL = 2.5


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
        checkpoint: A checkpoint folder, or the name of one of the package's; default: the package's own.
        budget: What a clip may cost; a number is tokens. None: the largest trained budget. For one in
            milliseconds ``device`` is measured when the predictor is made
            (:func:`~fluxvit.deploy.latency.plan_for`); ``plan.measured`` tells what the plan costs.
        grid: Sampling grid; None: the checkpoint's plan for the budget, or one that it was trained on.
        head: Head to read; None: the one trained nearest to the number of kept tokens.
        device: Where to run; None: the accelerator if there is one.
        keep_frames: Keep the sampled frames in the predictions, at the video's own size: 25 MB for each frame
            of a 4K video. Needed to explain predictions of videos that are given in memory.

    Raises:
        ValueError: The checkpoint, the budget, the grid or the head cannot be used; the message says why.
    """

    def __init__(
        self,
        checkpoint: str | Path = DEFAULT_CHECKPOINT,
        budget: Budget | int | None = None,
        *,
        grid: SamplingGrid | None = None,
        head: int | None = None,
        device: str | torch.device | None = None,
        keep_frames: bool = False,
    ) -> None:
        _prepare_forks()
        self.keep_frames = keep_frames
        self.device = usable_device(device)
        self.model, self.info = load_checkpoint(checkpoint, self.device)
        config = self.model.config
        if config.num_classes == 0:
            raise ValueError(f"{checkpoint} has no classifier; it can embed, not predict")
        head = None if head is None else convert(plain(head), int, key="head")
        if head is not None and not 0 <= head < len(config.budgets):
            raise ValueError(
                f"head {head} does not exist; this model has heads 0 to {len(config.budgets) - 1}"
            )
        self.labels = self.info.labels or [f"class {i}" for i in range(config.num_classes)]
        plan = choose_plan(self.model, self.info, budget, grid)
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
        frames = self.clip(sampled.frames[plan.grid], plan.grid)
        out = self.model(frames, plan.keep, plan.head, plan.selector)
        cost = grid_cost(self.model.config.size, plan.grid, plan.keep, plan.selector)
        spent = Spent(plan.keep, cost.total / 1e9)
        return self.prediction(sampled, plan, self.info.probabilities(out.logits.cpu()), out, spent)

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
            sampling, end = self.info.sampling, reader.end
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

    def clip(self, frames: np.ndarray, grid: SamplingGrid) -> Tensor:
        """Frames uint8 ``[T, H, W, 3]`` ready for the network, ``[1, 3, T, height, width]`` on its device."""
        video = eval_transform(frames, grid.height, grid.width, self.info.mean, self.info.std)
        return video[None].to(self.device)

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


def choose_plan(
    model: FluxViT, info: CheckpointInfo, budget: Budget | int | None, grid: SamplingGrid | None = None
) -> Plan:
    """The plan that a budget leads to, on the device of the model.

    Args:
        info: Information of the model's checkpoint.
        budget: What a clip may cost; a number is tokens. None: the largest trained budget.
        grid: Sampling grid; None: the checkpoint's plan for the budget, or one that it was trained on.

    Raises:
        ValueError: The budget or the grid cannot be used, or the checkpoint names no training grids.
    """
    config = model.config
    if budget is None:
        budget = config.budgets[0]
    budget = Budget.of(budget)
    if grid:
        known = [Plan(grid, budget.tokens or grid.tokens(config.patch_size, config.tubelet_size))]
    else:
        known = info.plans or default_plans(config, info, budget.tokens)
    return plan_for(model, budget, known)


def default_plans(config: FluxViTConfig, info: CheckpointInfo, tokens: int | None) -> list[Plan]:
    """Plans for a checkpoint without a plan table: for each budget the training grid whose pool is nearest to
    2.5 times the budget; of equals, the one with more frames.

    Args:
        tokens: The token budget asked for, which gets a plan of its own.

    Raises:
        ValueError: The checkpoint names no training grids either.
    """
    if not info.grids:
        raise ValueError("the checkpoint names neither plans nor training grids; give a grid, such as 16x224")

    def pool(grid: SamplingGrid) -> int:
        return grid.tokens(config.patch_size, config.tubelet_size)

    def plan(budget: int) -> Plan:
        largest = max(info.grids, key=pool)
        fitting = [grid for grid in info.grids if pool(grid) >= budget] or [largest]
        return Plan(min(fitting, key=lambda g: (abs(pool(g) - _USUAL_POOL * budget), -g.frames)), budget)

    return [plan(budget) for budget in ([tokens] if tokens else config.budgets)]
