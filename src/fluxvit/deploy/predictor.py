"""A predictor classifies videos at a budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.flux.budget import Budget
from fluxvit.flux.cascade import Spent
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.flux.selection import Codec, Selector, SelectorName, get_selector
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViTOutput
from fluxvit.models.inference import Backend
from fluxvit.models.openvino_blocks import OpenVINOBlocks
from fluxvit.utils.ahead import map_ahead
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import convert, plain
from fluxvit.utils.system import usable_device
from fluxvit.video.base import VideoError, VideoReader
from fluxvit.video.inputs import VideoInput, given_path
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import crop_box, read_clips

# Clips of one video that are decoded together, and that pass through the network together.
_DECODED, _BATCH = 64, 8

T = TypeVar("T")


@dataclass(frozen=True)
class Sampled:
    """Frames of a video for the network.

    Args:
        path: The video; None if it was given in memory.
        times: For each grid, the seconds of its frames, float64 ``[T]``.
        frames: For each grid, frames of its size, uint8 ``[T, height, width, 3]``.
        motion: For each grid, the motion of its tokens, float32 ``[T, h, w]``, if it was asked for and the
            codec tells it.
    """

    path: Path | None
    times: Mapping[SamplingGrid, np.ndarray]
    frames: Mapping[SamplingGrid, np.ndarray]
    motion: Mapping[SamplingGrid, np.ndarray] = field(default_factory=dict)

    def selector(self, plan: Plan) -> str | Selector:
        """The selector of a plan, with the motion of the clip if it chooses by that."""
        selector = get_selector(plan.selector)
        if isinstance(selector, Codec) and plan.grid in self.motion:
            return selector.given(torch.from_numpy(self.motion[plan.grid])[None])
        return plan.selector


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answers about one clip.

    Args:
        labels: Class names in the order of the logits.
        probabilities: float64 ``[classes]``. They sum to 1, unless a clip may have several classes.
        plan: How the budget was spent.
        kept: int64 ``[K]`` indices of the kept tokens in the pool; None when nothing was dropped.
        embedding: float32 ``[P]``, the clip's pooled vector.
    """

    labels: Sequence[str]
    probabilities: np.ndarray
    plan: Plan
    kept: np.ndarray | None
    embedding: np.ndarray

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` most likely classes with their probabilities, most likely first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.labels[i], float(self.probabilities[i])) for i in order]


@dataclass(frozen=True, kw_only=True)
class Prediction(Answer):
    """An answer about a video.

    With a budget per second, a long video is answered by N clips, which are spread over it as the views of a
    test. Probabilities and embedding are then means over the clips, ``plan`` is that of each clip, and
    ``kept`` ``[N K]`` and ``times`` ``[N T]`` describe the clips as if they were one.

    Args:
        path: The video; None if it was given in memory.
        times: Seconds of the sampled frames, float64 ``[T]``.
        spent: What the answer has cost.
    """

    path: Path | None
    times: np.ndarray
    spent: Spent

    @property
    def fps(self) -> float:
        """Sampled frames per second of video; 0 for a single frame."""
        span = self.times[-1] - self.times[0]
        return float((len(self.times) - 1) / span) if span else 0.0


class Predictor:
    """``Predictor("runs/demo/best", budget=Budget(latency_ms=80))("clip.mp4").top(5)``.

    Args:
        checkpoint: A checkpoint, which stays on its device; a checkpoint folder; or the name of a checkpoint
            that comes with the package.
        budget: What a video may cost; a number means tokens. None is the largest trained budget. With
            milliseconds ``device`` is measured when the predictor is made
            (:func:`~fluxvit.checkpoints.latency.plan_for`), and ``plan.measured`` holds the cost of the plan.
            With tokens per second each video has a plan that follows from its length, and several clips if it
            may cost more than the largest trained budget.
        grid: Sampling grid. None takes the checkpoint's plan for the budget, or a grid of its training.
        head: Index of the head to read. None is the one trained nearest to the number of kept tokens.
        selector: Rule that selects the kept tokens, as a name. None is that of the plan.
        device: Device to run on if the checkpoint is read from disk. None is the accelerator if there is one.
        precision: Type in which the blocks compute: ``fp32``, ``bf16``, or ``auto`` for the faster of both
            on the device. Selection is computed in fp32, so that the same tokens are kept.
        backend: What runs the blocks: ``torch``, ``openvino``, or ``auto`` for OpenVINO on a CPU if it is
            installed.

    Raises:
        ValueError: The checkpoint, the budget, the grid, the head or the backend cannot be used; the message
            says why.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path = DEFAULT_CHECKPOINT,
        budget: Budget | int | None = None,
        *,
        grid: SamplingGrid | None = None,
        head: int | None = None,
        selector: SelectorName | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        backend: Backend = "auto",
    ) -> None:
        _prepare_forks()
        name = "the checkpoint" if isinstance(checkpoint, Checkpoint) else checkpoint
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.load(checkpoint, usable_device(device))
        checkpoint = checkpoint.prepared(precision, backend)
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
        self._grid, self._head, self._selector = grid, head, selector
        budget = None if budget is None else Budget.of(budget)
        self._rate = budget if budget is not None and budget.tokens_per_s is not None else None
        self._plans: dict[int, Plan] = {}
        self._plan = None if self._rate else self._plan_for(budget)
        if isinstance(self.model.blocks, OpenVINOBlocks):
            self.model.blocks.clear()  # Plans that were measured for the budget are not needed any more.

    @property
    def plan(self) -> Plan:
        """How the budget of a clip is spent.

        Raises:
            ValueError: The budget is one per second, so that each video has its own plan.
        """
        if self._plan is None:
            raise ValueError(
                f"budget {self._rate}: the plan follows from the length of a video; see its prediction.plan"
            )
        return self._plan

    def _plan_for(self, budget: Budget | int | None) -> Plan:
        plan, head = self.checkpoint.plan(budget, self._grid), self._head
        if self._selector not in (None, plan.selector):
            plan = replace(plan, selector=self._selector, measured=None)
        if head is None or head == plan.head:
            return plan
        # The measured accuracy belongs to the other head; the cost is the same.
        measured = plan.measured and replace(plan.measured, correct=None, total=None)
        return replace(plan, head=head, measured=measured)

    def __call__(self, video: VideoInput, *, fps: float | None = None) -> Prediction:
        """Classify a video.

        Args:
            video: The path of a video file or of a folder of frames, the bytes of a file, a file opened in
                binary mode, or frames; see :func:`~fluxvit.video.reader.open_video`.
            fps: Frames per second of a folder of frames or of frames in memory. None means 25.

        Raises:
            VideoError: The video cannot be read.
            ValueError: Frames have another shape or type, or ``fps`` cannot be used.
        """
        if self._rate is not None:
            return self._predict_views(video, self._rate, fps)
        return self._predict(self._sample(video, fps))

    def map(
        self, videos: Iterable[VideoInput], *, fps: float | None = None, ahead: int = 2
    ) -> Iterator[Prediction | VideoError]:
        """Classify videos; the next ones are decoded in threads while the network computes.

        Args:
            videos: As for a call, in any number. They are taken as they are needed.
            fps: Frames per second of folders of frames and of frames in memory. None means 25.
            ahead: Number of videos to decode at once, and of decoded clips that wait.

        Yields:
            In the order of the videos, the prediction of each, or the error of one that cannot be read.

        Raises:
            ValueError: Frames have another shape or type, or ``fps`` or ``ahead`` cannot be used.
        """
        if self._rate is not None:  # A video may be too long to be decoded before its clips are classified.
            return read_ahead(
                videos, lambda video: video, partial(self._predict_views, rate=self._rate, fps=fps), ahead
            )
        return read_ahead(videos, partial(self._sample, fps=fps), self._predict, ahead)

    def _sample(self, video: VideoInput, fps: float | None) -> Sampled:
        return self.sample(video, [self.plan.grid], fps, motion=_by_motion(self.plan))

    @torch.inference_mode()
    def _predict(self, sampled: Sampled) -> Prediction:
        plan = self.plan
        frames = self.checkpoint.clip(sampled.frames[plan.grid], plan.grid)
        out = self.model(frames, plan.keep, plan.head, sampled.selector(plan))
        cost = grid_cost(self.model.config.size, plan.grid, plan.keep, plan.selector)
        spent = Spent(plan.keep, cost.total / 1e9)
        return self.prediction(sampled, plan, self.checkpoint.probabilities(out.logits.cpu()), out, spent)

    @torch.inference_mode()
    def _predict_views(self, video: VideoInput, rate: Budget, fps: float | None) -> Prediction:
        """The mean answer about the clips that ``rate`` gives a video."""
        checkpoint, name = self.checkpoint, given_path(video) or "the given video"
        with open_video(video, fps=fps) as reader:
            try:
                count, tokens = rate.spread(reader.end, self.model.config.budgets[0])
            except ValueError as error:
                raise VideoError.of(name, str(error)) from None
            if tokens not in self._plans:
                self._plans[tokens] = self._plan_for(tokens)
            plan = self._plans[tokens]
            grid, size = plan.grid, (plan.grid.height, plan.grid.width)
            times = [
                checkpoint.sampling.times(0, reader.end, grid.frames, reader.fps, view=view, views=count)
                for view in range(count)
            ]
            outputs = []
            for first in range(0, count, _DECODED):
                clips = read_clips(reader, [(moments, size) for moments in times[first : first + _DECODED]])
                for start in range(0, len(clips), _BATCH):
                    batch = [checkpoint.clip(frames, grid) for frames in clips[start : start + _BATCH]]
                    outputs.append(self.model(torch.cat(batch), plan.keep, plan.head, plan.selector))
        kept = None
        if outputs[0].kept is not None:
            # As if the clips were one after the other in a single pool.
            starts = checkpoint.pool(grid) * torch.arange(count)[:, None]
            kept = (torch.cat([out.kept.cpu() for out in outputs]) + starts).reshape(1, -1)
        probabilities = torch.cat([checkpoint.probabilities(out.logits.cpu()) for out in outputs]).mean(0)
        embedding = torch.cat([out.embedding for out in outputs]).mean(0)
        out = outputs[0]._replace(embedding=embedding[None], kept=kept)
        cost = grid_cost(self.model.config.size, grid, plan.keep, plan.selector)
        spent = Spent(count * plan.keep, count * cost.total / 1e9, count)
        sampled = Sampled(given_path(video), {grid: np.concatenate(times)}, {})
        return self.prediction(sampled, plan, probabilities[None], out, spent)

    def sample(
        self,
        video: VideoInput,
        grids: Sequence[SamplingGrid],
        fps: float | None = None,
        *,
        motion: bool = False,
    ) -> Sampled:
        """Frames of a video on each of ``grids``, at the times that the checkpoint was trained for.

        Args:
            motion: Also read how much each token moves.

        The other arguments and the errors are those of a call.
        """
        with open_video(video, fps=fps, motion=motion) as reader:
            sampling, end = self.checkpoint.sampling, reader.end
            times = {grid: sampling.times(0, end, grid.frames, reader.fps) for grid in grids}
            clips = read_clips(reader, [(times[grid], (grid.height, grid.width)) for grid in grids])
            maps = {grid: self._motion(reader, times[grid], grid) for grid in grids} if motion else {}
        known = {grid: values for grid, values in maps.items() if values is not None}
        return Sampled(given_path(video), times, dict(zip(grids, clips, strict=True)), known)

    def _motion(self, reader: VideoReader, times: np.ndarray, grid: SamplingGrid) -> np.ndarray | None:
        """How much the tokens of a clip that was read move, float32 ``[T, h, w]``; None if nothing tells."""
        config, info = self.model.config, reader.info
        box = crop_box((info.height, info.width), (grid.height, grid.width))
        shape = grid.token_shape(config.patch_size, config.tubelet_size)
        return reader.motion_maps(times, box, shape)

    def prediction(
        self, sampled: Sampled, plan: Plan, probabilities: Tensor, out: FluxViTOutput, spent: Spent
    ) -> Prediction:
        """A prediction from the output of the network for one clip and ``probabilities`` ``[1, classes]``.

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
            times=sampled.times[plan.grid],
            kept=None if out.kept is None else out.kept[0].cpu().numpy(),
            embedding=embedding,
            spent=spent,
        )


def read_ahead(
    videos: Iterable[VideoInput],
    read: Callable[[VideoInput], T],
    answer: Callable[[T], Prediction],
    ahead: int,
) -> Iterator[Prediction | VideoError]:
    """``answer(read(video))`` for each video, where threads read the next videos meanwhile; see
    :meth:`Predictor.map`.
    """
    if ahead < 1:
        raise ValueError(f"ahead is {ahead}; at least one video must be decoded at a time")

    def attempt(function: Callable[[Any], Any], value: Any) -> Any:
        try:
            return value if isinstance(value, VideoError) else function(value)
        except VideoError as error:
            return error

    return (attempt(answer, sampled) for sampled in map_ahead(partial(attempt, read), videos, ahead))


def _by_motion(plan: Plan) -> bool:
    return isinstance(get_selector(plan.selector), Codec)


@cache
def _prepare_forks() -> None:
    """Let processes that are forked from this one compute in one thread.

    The threads of the parent do not exist in its children, which would wait for them forever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
