"""Clips of a labelled set, on the sampling grid that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fluxvit.data.cache import FrameCache
from fluxvit.data.manifest import Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times
from fluxvit.video.transforms import random_resized_crop, resize_and_crop, to_tensor


class ClipRequest(NamedTuple):
    """Video number ``item`` on ``grid``; ``seed`` makes it a random training clip, None a test clip."""

    item: int
    grid: SamplingGrid
    seed: tuple[int, ...] | None = None


class Clip(NamedTuple):
    """A clip, or a batch of them with a leading axis B: ``video`` uint8 ``[3, T, H, W]``; its class ``label``
    and number ``item``, int64.
    """

    video: Tensor
    label: Tensor
    item: Tensor


class FrameSource(Protocol):
    """Gives frames of video ``index`` at ``positions`` in [0, 1) of its length, uint8 ``[T, H, W, 3]``."""

    def read(self, index: int, positions: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class VideoSource:
    """Decodes the files of a manifest.

    Raises (from :meth:`read`):
        VideoError: The file cannot be read.
    """

    manifest: Manifest

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        with open_video(self.manifest.entries[index].path) as reader:
            return reader.read((positions * reader.end).tolist())


@dataclass(frozen=True)
class Augmentation:
    """Of training clips; the same for all frames of one.

    Args:
        crop_scale: Range of the area of a random crop, as a part of the frame's.
        crop_ratio: Range of its width over its height.
    """

    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)


class ClipDataset(Dataset[Clip]):
    """Labelled clips.

    Args:
        manifest: The videos.
        source: Where frames come from; default: decoded from the files.
        augmentation: For requests with a seed.
        order: What the model is shown of time: ``normal``; ``shuffled``, frames from random times in random
        # Controls draw frames from anywhere: one that is known to lie at a fixed time tells of order.
            temporal understanding.
    """

    def __init__(
        self,
        manifest: Manifest,
        source: FrameSource | FrameCache | None = None,
        augmentation: Augmentation | None = None,
        order: str = "normal",
    ) -> None:
        if order not in ("normal", "shuffled", "single"):
            raise ValueError(f"order {order!r}: choose normal, shuffled or single")
        self.manifest = manifest
        self.source = source or VideoSource(manifest)
        self.augmentation = augmentation or Augmentation()
        self.order = order

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, request: ClipRequest) -> Clip:
        grid, entry = request.grid, self.manifest.entries[request.item]
        train = request.seed is not None
        # Test clips get a generator too, for the controls; it depends on the video alone.
        rng = np.random.default_rng(request.seed if request.seed is not None else [request.item])
        # The controls draw frames from anywhere: one that is known to lie at a fixed time tells of order.
        if self.order == "shuffled":
            positions = rng.random(grid.frames)
        elif self.order == "single":
            positions = np.full(grid.frames, rng.random())
        else:
            positions = segment_times(0, 1, grid.frames, generator=rng if train else None)
        video = to_tensor(self.source.read(request.item, positions))
        size = (grid.height, grid.width)
        if train:
            how = self.augmentation
            video = random_resized_crop(video, size, rng, how.crop_scale, how.crop_ratio)
        else:
            video = resize_and_crop(video, size)
        return Clip(video.contiguous(), torch.tensor(entry.label), torch.tensor(request.item))


def collate(clips: Sequence[Clip]) -> Clip:
    """Stack clips of one grid."""
    return Clip(*(torch.stack(field) for field in zip(*clips, strict=True)))
