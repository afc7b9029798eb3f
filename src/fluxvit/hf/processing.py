"""From videos to model inputs, without torchvision: PyAV reads the frames that a budget leads to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.hf.configuration import FluxViTConfig
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import normalize, read_clips, to_tensor


class FluxViTVideoProcessor:
    """Samples, resizes and normalises videos as :class:`fluxvit.Predictor` does.

    The grid follows from the budget, through the plans of the checkpoint. The result holds the number of
    tokens to keep, so that ``model(**processor(video, budget=...))`` spends that budget.

    Args:
        config: The configuration of the model.
        budget: What a clip may cost if a call does not say it: a number of tokens, or a text such as
            ``"3gflops"``. None: the budget of the configuration, or else the largest trained budget.

    Raises:
        ValueError: The budget cannot be kept.
    """

    model_input_names = ("pixel_values_videos",)

    def __init__(self, config: FluxViTConfig, budget: Budget | int | str | None = None) -> None:
        self.config, self.budget = config, config.budget if budget is None else budget
        self._checkpoint = config.to_checkpoint()
        if self.budget is not None:
            self.plan()

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], budget: Budget | int | str | None = None, **options: Any
    ) -> FluxViTVideoProcessor:
        """The processor of a folder that transformers or fluxvit has written, or of a model on the hub.

        Args:
            options: Options of ``from_pretrained`` of transformers, such as ``revision`` and ``token``.
        """
        config = FluxViTConfig.from_pretrained(source, **options)
        config.read_plans(source, **options)
        return cls(config, budget)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write the configuration, from which :meth:`from_pretrained` makes the processor again."""
        self.config.save_pretrained(save_directory)

    def plan(self, budget: Budget | int | str | None = None, num_frames: int | None = None) -> Plan:
        """The plan that a budget leads to: its grid is sampled.

        Args:
            budget: As for the class; None: that of the processor.
            num_frames: Frames of the grid; None: those of the plan of the checkpoint.

        Raises:
            ValueError: The budget cannot be kept.
        """
        budget = self.budget if budget is None else budget
        spend = (
            Budget.parse(budget) if isinstance(budget, str) else None if budget is None else Budget.of(budget)
        )
        if spend is not None and spend.latency_ms is not None:
            raise ValueError(
                f"budget {spend}: milliseconds are measured on a device, which a processor does not know; "
                "give tokens or GFLOPs, or use fluxvit.Predictor"
            )
        plan = self._checkpoint.plan(spend)
        if num_frames is not None and num_frames != plan.grid.frames:
            plan = self._checkpoint.plan(spend, replace(plan.grid, frames=num_frames))
        return plan

    def __call__(
        self,
        videos: VideoInput | Sequence[VideoInput],
        budget: Budget | int | str | None = None,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        do_sample_frames: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Read videos for a model.

        Args:
            videos: A video or a list of videos: paths, bytes, open files, or frames; see
                :func:`~fluxvit.video.reader.open_video`. A list of images is one video.
            budget: What a clip may cost; None: the budget of the processor.
            num_frames: Frames to sample; None: those of the budget's plan.
            fps: Frames per second of folders of frames and of frames in memory; None: 25.
            do_sample_frames: Must be True, as pipelines say it.
            return_tensors: ``pt`` or ``np``.

        Returns:
            ``pixel_values_videos`` ``[B, T, 3, H, W]``; ``budget``, the tokens to keep; and ``head`` and
            ``selector``, where the plan of the checkpoint names them.

        Raises:
            VideoError: A video cannot be read.
            ValueError: The budget cannot be kept, or an argument has another type or shape.
        """
        if not do_sample_frames:
            raise ValueError(
                "do_sample_frames=False: frames are sampled; to use all, give num_frames=len(frames)"
            )
        plan = self.plan(budget, num_frames)
        clips = [self._clip(video, plan.grid, fps) for video in _each(videos)]
        features = BatchFeature({"pixel_values_videos": torch.stack(clips)}, tensor_type=return_tensors)
        features["budget"] = plan.keep
        if plan.head is not None:
            features["head"] = plan.head
        if plan.selector != "group_dynamic":
            features["selector"] = plan.selector
        return features

    @staticmethod
    def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch for ``Trainer``, as its ``data_collator``.

        Args:
            rows: ``pixel_values_videos`` ``[T, 3, H, W]`` and ``labels`` of each clip. Grids may differ.

        Returns:
            ``labels``, and ``pixel_values_videos`` as one tensor, or as a list if grids differ.
        """
        clips = [torch.as_tensor(row["pixel_values_videos"]) for row in rows]
        is_one_grid = len({clip.shape for clip in clips}) == 1
        # Labels come first: the Trainer takes the size of a batch from its first tensor.
        return {
            "labels": torch.stack([torch.as_tensor(row["labels"]) for row in rows]),
            "pixel_values_videos": torch.stack(clips) if is_one_grid else _ClipList(clips),
        }

    def _clip(self, video: VideoInput, grid: SamplingGrid, fps: float | None) -> Tensor:
        """A normalised clip ``[T, 3, height, width]``."""
        with open_video(video, fps=fps) as reader:
            times = self._checkpoint.sampling.times(0, reader.end, grid.frames, reader.fps)
            (frames,) = read_clips(reader, [(times, (grid.height, grid.width))])
        clip = normalize(to_tensor(frames), self._checkpoint.mean, self._checkpoint.std)
        return clip.transpose(0, 1).contiguous()


class _ClipList(list[Tensor]):
    """Clips of different grids. The Trainer asks for the number of values to estimate its FLOPs."""

    def numel(self) -> int:
        return sum(clip.numel() for clip in self)


def _each(videos: Any) -> Sequence[VideoInput]:
    """The videos of a list; a list of images is one video."""
    if not isinstance(videos, list | tuple) or not videos:
        return [videos]
    first = videos[0]
    is_video = isinstance(first, str | bytes | os.PathLike | list | tuple) or hasattr(first, "read")
    return videos if is_video or getattr(first, "ndim", 0) == 4 else [videos]
