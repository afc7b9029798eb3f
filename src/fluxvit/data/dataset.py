"""Clips of a data set on the requested sampling grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fluxvit.data.cache import FrameCache
from fluxvit.data.classes import multi_hot
from fluxvit.data.manifest import Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.augment import TSN_SCALES, RandAugment, multi_scale_crop, random_erase
from fluxvit.video.augment_settings import AugmentSettings
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import SPARSE, ClipSampling
from fluxvit.video.transforms import (
    crop_views,
    horizontal_flip,
    random_resized_crop,
    resize_and_crop,
    resize_to_fit,
    to_tensor,
)

TimesOf = Callable[[float, float, float], np.ndarray]
"""Chooses moments of a video: ``[T]`` seconds from its start, its end and its frames per second."""


class ClipRequest(NamedTuple):
    """Video number ``item`` on ``grid``; ``seed`` makes it a random training clip, None a test clip.

    More than one of ``samples`` asks for that many training clips of the same decoded frames, augmented
    differently. More than one of ``views``, (clips, crops), asks for that many test clips: so many times
    spread over the video, each cut out at so many places.
    """

    item: int
    grid: SamplingGrid
    seed: tuple[int, ...] | None = None
    samples: int = 1
    views: tuple[int, int] = (1, 1)


class Clip(NamedTuple):
    """A clip, or a batch of them with a leading axis B: ``video`` uint8 ``[3, T, H, W]``; its ``label``, as
    :meth:`ClipDataset.label` gives it; its number ``item``, and how many unreadable videos it stands in for
    (``replaced``), int64. ``faults`` are the errors of those videos, ``PATH: reason`` each; of a batch,
    of all of its clips.
    """

    video: Tensor
    label: Tensor
    item: Tensor
    replaced: Tensor
    faults: tuple[str, ...] = ()


class FrameSource(Protocol):
    """Gives frames of video ``index`` at ``positions`` in [0, 1) of its length, uint8 ``[T, H, W, 3]``."""

    def read(self, index: int, positions: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class TimedSource(FrameSource, Protocol):
    """A source that knows seconds, as dense sampling must; ``read_times`` reads what ``times`` chooses."""

    def read_times(self, index: int, times: TimesOf) -> np.ndarray: ...


@dataclass(frozen=True)
class VideoSource:
    """Decodes the files of a manifest.

    Raises (from its methods):
        VideoError: The file cannot be read.
    """

    manifest: Manifest

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        return self.read_times(index, lambda start, end, _: start + positions * (end - start))

    def read_times(self, index: int, times: TimesOf) -> np.ndarray:
        entry = self.manifest.entries[index]
        with open_video(entry.path) as reader:
            return reader.read(times(*entry.span(reader.end), reader.fps))


def read_frames(source: FrameSource, index: int, times: TimesOf) -> np.ndarray:
    """Frames of video ``index`` at the times that ``times`` chooses, uint8 ``[T, H, W, 3]``.

    For a source that does not know seconds, a video lasts from 0 to 1.
    """
    if isinstance(source, TimedSource):
        return source.read_times(index, times)
    return source.read(index, times(0.0, 1.0, 1.0))


def check_sampling(source: FrameSource | FrameCache, sampling: ClipSampling) -> None:
    """Raise a ValueError if a source cannot give frames at the times of a sampling."""
    if sampling.kind == "dense" and not isinstance(source, TimedSource):
        raise ValueError(
            "dense sampling needs the video files: cached frames are spread over the whole video and lie "
            "at no fixed stride; train without a cache, or with sparse sampling"
        )


@dataclass(frozen=True)
class Augmentation(AugmentSettings):
    """Augments training clips by its settings, which :class:`~fluxvit.video.augment_settings.AugmentSettings`
    describes.

    Raises:
        ValueError: A setting is out of its range, or does not belong to the crop.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        # One pixel goes through everything, so that a bad setting of a part fails here and not in a worker.
        self(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), (1, 1), np.random.default_rng(0))

    def __call__(
        self, clip: Tensor, size: tuple[int, int], rng: np.random.Generator, flip_allowed: bool = True
    ) -> Tensor:
        """Augment a clip, uint8 ``[3, T, H, W]``, to ``size`` = (height, width); contiguous.

        Cropping comes first, although the release crops last: what follows then works on fewer pixels.

        Args:
            flip_allowed: False where labels tell left from right.
        """
        clip = self._cropped(clip, size, rng)
        if self.flip and flip_allowed and rng.random() < self.flip:
            clip = horizontal_flip(clip)
        clip = clip.contiguous()
        if self.rand_augment is not None:
            clip = RandAugment.parse(self.rand_augment)(clip, rng)
        if self.erase and rng.random() < self.erase:
            clip = random_erase(clip, rng)
        return clip

    def _cropped(self, clip: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
        if self.crop == "multi_scale":
            scales = TSN_SCALES if self.crop_scale is None else self.crop_scale
            return multi_scale_crop(clip, size, rng, scales)
        if self.crop == "center":
            return resize_and_crop(clip, size)
        low, high = self.crop_scale or (0.5, 1.0)
        return random_resized_crop(clip, size, rng, (low, high), self.crop_ratio or (3 / 4, 4 / 3))


class ClipDataset(Dataset[Clip]):
    """Labelled clips.

    Args:
        manifest: The videos.
        source: Gives the frames; by default they are decoded from the files.
        augmentation: Applied to training clips, which are requests with a seed.
        order: Which frames the model sees: ``normal``; ``shuffled``, frames from random times in random
            order; ``single``, one random frame throughout. The last two are controls, which show whether a
            data set needs temporal understanding.
        sampling: How frames are spread over a video.
        flip_allowed: False where labels tell left from right: clips are never mirrored, whatever the recipe.
        jitter: Training clips take frames at random times; if False, at the times of test clips.
        max_bad_clips: Number of unreadable training videos in a row that are replaced; more are an error.
            Test videos are never replaced.
        classes: Number of classes of multi-hot labels, for videos of several classes each; None for class
            indices.

    Raises:
        ValueError: A setting is unknown or out of its range, or dense sampling is combined with cached frames
            or a control.
    """

    def __init__(
        self,
        manifest: Manifest,
        source: FrameSource | FrameCache | None = None,
        augmentation: Augmentation | None = None,
        order: str = "normal",
        flip_allowed: bool = True,
        jitter: bool = True,
        max_bad_clips: int = 20,
        sampling: ClipSampling = SPARSE,
        classes: int | None = None,
    ) -> None:
        if order not in ("normal", "shuffled", "single"):
            raise ValueError(f"order {order!r}: choose normal, shuffled or single")
        self.manifest = manifest
        self.source = source or VideoSource(manifest)
        check_sampling(self.source, sampling)
        if sampling.kind == "dense" and order != "normal":
            raise ValueError(f"order {order!r} takes frames from the whole video: use sparse sampling")
        self.augmentation = augmentation or Augmentation()
        self.order = order
        self.sampling = sampling
        self.flip_allowed, self.jitter = flip_allowed, jitter
        self.max_bad_clips = max_bad_clips
        self.classes = classes

    def __len__(self) -> int:
        return len(self.manifest)

    def label(self, item: int) -> Tensor:
        """The label of a video: a class index int64 ``[]``, or multi-hot float32 ``[classes]``."""
        entry = self.manifest.entries[item]
        if self.classes is None:
            return torch.tensor(entry.label)
        return torch.from_numpy(multi_hot([entry], self.classes)[0])

    def __getitem__(self, request: ClipRequest) -> Clip:
        """The requested clip; for more than one sample or view a batch of that many.

        Raises:
            ValueError: Less than one sample or view, several samples of a test clip, or several views of a
                training clip; or too many training videos in a row cannot be read.
            VideoError: A test video cannot be read.
        """
        if request.samples < 1 or (request.samples > 1 and request.seed is None):
            raise ValueError(f"cannot make {request.samples} samples of {request}; several need a seed")
        if min(request.views) < 1 or (request.views != (1, 1) and request.seed is not None):
            raise ValueError(f"cannot take {request.views} views of {request}; only test clips have several")
        if request.seed is None:
            return self._test_clips(request)
        # Unreadable training videos are replaced by the next that can be read, counted and named.
        faults: list[str] = []
        while len(faults) <= self.max_bad_clips:
            item = (request.item + len(faults)) % len(self)
            try:
                return self._training_clips(request, item, tuple(faults))
            except VideoError as error:
                faults.append(str(error))
        raise ValueError(f"{len(faults)} videos in a row cannot be read, the last: {faults[-1]}")

    def _test_clips(self, request: ClipRequest) -> Clip:
        # The controls need a generator here too; it depends on the video alone.
        rng = np.random.default_rng([request.item])
        times, crops = request.views
        size = (request.grid.height, request.grid.width)
        videos = self._sample(request.item, request.grid, rng, train=False, views=times)
        cut = torch.cat([crop_views(resize_to_fit(video, size), size, crops) for video in videos])
        label, item = self.label(request.item), torch.tensor(request.item)
        clips = [Clip(video, label, item, torch.tensor(0)) for video in cut]
        return clips[0] if len(clips) == 1 else collate(clips, torch.stack)

    def _training_clips(self, request: ClipRequest, item: int, faults: tuple[str, ...]) -> Clip:
        rng = np.random.default_rng(request.seed)
        (video,) = self._sample(item, request.grid, rng, train=True)
        entry, size = self.manifest.entries[item], (request.grid.height, request.grid.width)
        may_flip = self.flip_allowed and not entry.noflip
        facts = self.label(item), torch.tensor(item), torch.tensor(len(faults)), faults
        clips = [Clip(self.augmentation(video, size, rng, may_flip), *facts) for _ in range(request.samples)]
        return clips[0] if request.samples == 1 else collate(clips, torch.stack)

    def _sample(
        self, item: int, grid: SamplingGrid, rng: np.random.Generator, *, train: bool, views: int = 1
    ) -> list[Tensor]:
        """Frames of a video at the times that grid, sampling and order ask for, ``[3, T, H, W]`` a view."""
        generator = rng if train and self.jitter else None

        def times(view: int, start: float, end: float, fps: float) -> np.ndarray:
            # The controls draw frames from anywhere: one that is known to lie at a fixed time tells of order.
            if self.order == "shuffled":
                return start + rng.random(grid.frames) * (end - start)
            if self.order == "single":
                return np.full(grid.frames, start + rng.random() * (end - start))
            return self.sampling.times(
                start, end, grid.frames, fps, generator=generator, view=view, views=views
            )

        def all_times(start: float, end: float, fps: float) -> np.ndarray:
            return np.concatenate([times(view, start, end, fps) for view in range(views)])

        if isinstance(self.source, TimedSource):  # Files are decoded once for all views.
            return [to_tensor(part) for part in np.split(read_frames(self.source, item, all_times), views)]
        # A cache holds few frames, so each view is read separately.
        return [to_tensor(read_frames(self.source, item, partial(times, view))) for view in range(views)]


def collate(clips: Sequence[Clip], stack: Callable[[list[Tensor]], Tensor] = default_collate) -> Clip:
    """One batch of clips of one grid, or of batches of them, in their order.

    Args:
        stack: Joins tensors along a new axis; the default writes right into shared memory if this is a worker
            of a loader.
    """
    singles = [
        part for clip in clips for part in (zip(*clip[:4], strict=True) if clip.item.ndim else [clip[:4]])
    ]
    video, label, item, replaced = (stack(list(parts)) for parts in zip(*singles, strict=True))
    return Clip(video, label, item, replaced, tuple(dict.fromkeys(f for clip in clips for f in clip.faults)))
