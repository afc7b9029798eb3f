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
from fluxvit.flux.grid import SamplingGrid, with_aspect
from fluxvit.flux.plan import Plan
from fluxvit.hf.clips import read_clip
from fluxvit.hf.configuration import FluxViTConfig
from fluxvit.video.transforms import normalize


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
        videos: Any,
        budget: Budget | int | str | None = None,
        *,
        num_frames: int | None = None,
        do_sample_frames: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Read videos for a model.

        Args:
            videos: A video or a list of videos. A video is a path, the bytes of a file, an open file, frames
                uint8 ``[T, H, W, 3]`` or ``[T, 3, H, W]``, a list of images, or a video of ``datasets`` that
                is not decoded, ``{"path": ..., "bytes": ...}``.
            budget: What a clip may cost; None: the budget of the processor.
            num_frames: Frames to sample; None: those of the budget's plan.
            do_sample_frames: Must be True, as pipelines say it.
            return_tensors: ``pt`` or ``np``.

        Returns:
            ``pixel_values_videos`` ``[B, T, 3, H, W]``, or a list of clips ``[T, 3, H, W]`` where
            ``keep_aspect`` gives them several sizes; ``budget``, the tokens to keep; and ``head`` and
            ``selector``, where the plan has others than the model would take.

        Raises:
            VideoError: A video cannot be read.
            ValueError: The budget cannot be kept, or an argument has another type or shape.
        """
        if not do_sample_frames:
            raise ValueError(
                "do_sample_frames=False: frames are sampled; to use all, give num_frames=len(frames)"
            )
        plan = self.plan(budget, num_frames)
        clips = [self._clip(video, plan) for video in _each(videos)]
        if len({clip.shape for clip in clips}) == 1:
            features = BatchFeature({"pixel_values_videos": torch.stack(clips)}, tensor_type=return_tensors)
        else:
            features = BatchFeature({"pixel_values_videos": clips})
        features["budget"] = plan.keep
        if plan.head is not None:
            features["head"] = plan.head
        if plan.selector != self.config.selector:
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

    def _clip(self, video: Any, plan: Plan) -> Tensor:
        """A normalised clip ``[T, 3, height, width]``."""

        def grid(aspect: float) -> SamplingGrid:
            network = self._checkpoint.model.config
            least = -(-plan.keep * network.tubelet_size // plan.grid.frames)
            return with_aspect(plan.grid, aspect, network.patch_size, least)

        clip = read_clip(video, grid if self.config.keep_aspect else plan.grid, self._checkpoint.sampling)
        return normalize(clip, self._checkpoint.mean, self._checkpoint.std).transpose(0, 1).contiguous()


class _ClipList(list[Tensor]):
    """Clips of different grids. The Trainer asks for the number of values to estimate its FLOPs."""

    def numel(self) -> int:
        return sum(clip.numel() for clip in self)


def _each(videos: Any) -> Sequence[Any]:
    """The videos of a list; a list of images, arrays or those of PIL, is one video."""
    if not isinstance(videos, list | tuple) or not videos:
        return [videos]
    is_image = getattr(videos[0], "ndim", 0) == 3 or hasattr(videos[0], "convert")
    return [videos] if is_image else videos
