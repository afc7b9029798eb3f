"""One object that answers what is to be seen in a video, at a budget."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fluxvit.checkpoints import DEFAULT_CHECKPOINT, CheckpointInfo, load_checkpoint
from fluxvit.flux.budget import Budget, Plan, fit_budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.config import FluxViTConfig
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times
from fluxvit.video.transforms import eval_transform

# Without a plan table: published searches end at pools of 1.3 to 4 times the budget (paper tables 1 and 11).
_USUAL_POOL = 2.5


@dataclass(frozen=True)
class Prediction:
    """What a model says of a clip.

    Args:
        path: The clip.
        labels: Class names in the order of the logits.
        probabilities: float64 ``[classes]``.
        plan: How the budget was spent.
        frames: The sampled frames at the video's own size, uint8 ``[T, H, W, 3]``.
        fps: Sampled frames per second of video.
        kept: int64 ``[K]`` indices of the kept tokens in the pool; None when nothing was dropped.
        embedding: float32 ``[P]``, the clip's pooled vector.
    """

    path: Path
    labels: Sequence[str]
    probabilities: np.ndarray
    plan: Plan
    frames: np.ndarray
    fps: float
    kept: np.ndarray | None
    embedding: np.ndarray

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` likeliest classes with their probabilities, likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.labels[i], float(self.probabilities[i])) for i in order]


class Predictor:
    """``Predictor("runs/demo/best", budget=Budget(latency_ms=80))("clip.mp4").top(5)``.

    Args:
        checkpoint: A checkpoint folder, or the name of one of the package's; default: the package's own.
        budget: What a clip may cost; a number is tokens. None: the largest trained budget. A budget in
            milliseconds is measured here, on ``device``, when the predictor is made.
        grid: Sampling grid; None: the checkpoint's plan for the budget, or one that it was trained on.
        head: Head to read; None: the one trained nearest to the number of kept tokens.
        device: Where to run.

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
        device: str | torch.device = "cpu",
    ) -> None:
        self.model, self.info = load_checkpoint(checkpoint, device)
        self.device = torch.device(device)
        config = self.model.config
        if config.num_classes == 0:
            raise ValueError(f"{checkpoint} has no classifier; it can embed, not predict")
        if budget is None:
            budget = config.budgets[0]
        if isinstance(budget, int):
            if budget < 1:
                raise ValueError(f"budget {budget}: at least one token must be kept")
            budget = Budget(tokens=budget)
        if head is not None and not 0 <= head < len(config.budgets):
            raise ValueError(
                f"head {head} does not exist; this model has heads 0 to {len(config.budgets) - 1}"
            )
        self.labels = self.info.labels or [f"class {i}" for i in range(config.num_classes)]
        known = (
            [Plan(grid, budget.tokens or grid.tokens(config.patch_size, config.tubelet_size))]
            if grid
            else (self.info.plans or default_plans(config, self.info, budget.tokens))
        )
        plan = fit_budget(budget, known, config.size, self.measure_ms)
        self.plan = plan if head is None else replace(plan, head=head)

    @torch.inference_mode()
    def __call__(self, path: str | Path) -> Prediction:
        """Classify a video file or a folder of frames.

        Raises:
            VideoError: It cannot be read.
        """
        grid = self.plan.grid
        with open_video(path) as reader:
            frames = reader.read(segment_times(0, reader.end, grid.frames).tolist())
            seconds = reader.end
        video = eval_transform(frames, grid.height, grid.width, self.info.mean, self.info.std)
        plan = self.plan
        out = self.model(video[None].to(self.device), plan.keep, plan.head, plan.selector)
        return Prediction(
            path=Path(path),
            labels=self.labels,
            probabilities=out.logits[0].double().softmax(-1).cpu().numpy(),
            plan=self.plan,
            frames=frames,
            fps=grid.frames / seconds,
            kept=None if out.kept is None else out.kept[0].cpu().numpy(),
            embedding=out.embedding[0].float().cpu().numpy(),
        )

    @torch.inference_mode()
    def measure_ms(self, plan: Plan, repeats: int = 7) -> float:
        """Median milliseconds of the network on one clip of a plan, on this device, after two warm-ups."""
        grid = plan.grid
        video = torch.zeros(1, self.model.config.in_chans, grid.frames, grid.height, grid.width)
        video = video.to(self.device)
        times = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            self.model(video, plan.keep, plan.head, plan.selector)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times[2:])


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
