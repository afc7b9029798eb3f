"""Frozen networks that a student learns from, behind one small interface.

:meth:`Teacher.features` gives the features of any teacher at the positions of the student's tokens. The
teacher sees the student's clip, with frames and size fitted to its own patches. There are two kinds:

* :class:`FluxViTTeacher`, for transformers of this package's architecture, including InternVideo2: its tokens
  have the positions of the student's, so that only the kept tokens are encoded.
* :class:`ImageTeacher`, for image networks: it sees the whole clip frame by frame, and its feature maps are
  resampled to the student's tokens.

A teacher is not a module, so that its owner neither trains it, nor saves it, nor shards it between processes.

Shapes: B clips, a pool of t * h * w student tokens, of which K are kept, D channels of a teacher's layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.flux.selection import gather_tokens
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.tensors import channel_values

TokenShape = tuple[int, int, int]


class TeacherFeatures(NamedTuple):
    """The features of clips.

    ``layers``: ``[B, K, D]`` for each requested layer, or ``[B, 1 + K, D]``, class token first, if the
    teacher has one for the clip. ``pooled`` ``[B, P]``: the vector of the clip. ``attention`` fp32 ``[B,
    K]``: the weight of each kept token in that vector; rows sum to 1.
    """

    layers: list[Tensor]
    pooled: Tensor
    attention: Tensor


class Teacher(ABC):
    """A frozen network in eval mode. It has no gradients and no stochastic depth (the official code of
    InternVideo2 leaves its teacher in training mode, with noisy targets).

    Args:
        network: The network; frozen, moved and cast in place.
        widths: Channels of each layer that it can give, the first one first.
        pooled_width: Channels of the pooled vector.
        class_token: Whether its layers begin with a class token of the clip.
        mean, std: Normalisation of RGB values in 0..1.
        dtype: Number format in which it computes.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        widths: Sequence[int],
        pooled_width: int,
        class_token: bool = False,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(dtype)
        self.widths, self.pooled_width, self.class_token = tuple(widths), pooled_width, class_token
        self.dtype = dtype
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def depth(self) -> int:
        """Layers that it can give."""
        return len(self.widths)

    def to(self, device: torch.device) -> Teacher:
        """Move to a device, in place."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def features(
        self, video: Tensor, shape: TokenShape, kept: Tensor | None = None, layers: Sequence[int] = (-1,)
    ) -> TeacherFeatures:
        """Features of clips at the student's tokens.

        Args:
            video: RGB in 0..1, ``[B, 3, T, H, W]``.
            shape: Tokens (t, h, w) of the student's pool.
            kept: Indices ``[B, K]`` into the pool; None: all.
            layers: Layers to return; negative numbers count from the end.

        Raises:
            ValueError: There is no such layer.
        """
        if any(not -self.depth <= layer < self.depth for layer in layers):
            raise ValueError(f"layers {list(layers)}: this teacher has layers 0 to {self.depth - 1}")
        frames, height, width = self.grid(shape)
        video = fit_clip(video.float(), frames, (height, width))
        mean, std = (channel_values(values, video.device) for values in (self.mean, self.std))
        video = ((video - mean) / std).to(self.dtype)
        with torch.autocast(video.device.type, enabled=False):
            features = self._features(video, shape, kept, [layer % self.depth for layer in layers])
        attention = features.attention.float()
        return features._replace(attention=attention / attention.sum(1, keepdim=True))

    @abstractmethod
    def grid(self, shape: TokenShape) -> tuple[int, int, int]:
        """Frames, height and width, in pixels, of the clip that it sees for a student's pool."""

    @abstractmethod
    def _features(
        self, video: Tensor, shape: TokenShape, kept: Tensor | None, layers: list[int]
    ) -> TeacherFeatures:
        """Like :meth:`features`, for a fitted and normalised clip."""


class FluxViTTeacher(Teacher):
    """A FluxViT, or an InternVideo2, which is one without dual norms and GLPE.

    Its layers have a class token, and the attention is that of the head trained nearest to the number of kept
    tokens. Only the kept tokens enter its blocks, so that its cost does not depend on the grid (paper section
    3: 2048 tokens).

    Args:
        model: The network; frozen in place.
        mean, std: Normalisation of RGB values in 0..1.
    """

    network: FluxViT

    def __init__(
        self,
        model: FluxViT,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        config = model.config
        super().__init__(
            model,
            widths=[config.embed_dim] * config.depth,
            pooled_width=config.pool_dim,
            class_token=True,
            mean=mean,
            std=std,
            dtype=dtype,
        )

    def grid(self, shape: TokenShape) -> tuple[int, int, int]:
        config = self.network.config
        return (
            shape[0] * config.tubelet_size,
            shape[1] * config.patch_size,
            shape[2] * config.patch_size,
        )

    def _features(
        self, video: Tensor, shape: TokenShape, kept: Tensor | None, layers: list[int]
    ) -> TeacherFeatures:
        model = self.network
        embeddings, _ = model.patch_embed(video)
        (tokens,) = model.add_positions(embeddings, shape, [kept])
        tokens, outputs = model.encode_layers(tokens, layers)
        pool = model.heads[model.config.nearest_head(tokens.shape[1] - 1)].pool
        return TeacherFeatures(outputs, pool(tokens), pool.attention(tokens)[:, 1:])


class Maps(NamedTuple):
    """The output of an image network on its own grid: ``layers`` ``[N, h0, w0, D]`` each, ``pooled``
    ``[N, P]``, and ``attention`` ``[N, h0, w0]``, of any scale, none below 0.
    """

    layers: list[Tensor]
    pooled: Tensor
    attention: Tensor


class ImageTeacher(Teacher):
    """An image network, which sees single frames: one for each token frame of the student.

    All frames count alike: the pooled vector is the mean of theirs, and each has the same share of the
    attention.
    """

    def _features(
        self, video: Tensor, shape: TokenShape, kept: Tensor | None, layers: list[int]
    ) -> TeacherFeatures:
        clips = (video.shape[0], video.shape[2])
        maps = self._frames(video.transpose(1, 2).flatten(0, 1), layers)
        attention = maps.attention.float()
        attention = attention / attention.sum((-2, -1), keepdim=True).clamp_min(1e-12)
        return TeacherFeatures(
            [tokens_of_maps(layer.unflatten(0, clips), shape, kept) for layer in maps.layers],
            maps.pooled.unflatten(0, clips).mean(1),
            tokens_of_maps(attention.unflatten(0, clips)[..., None], shape, kept)[..., 0],
        )

    @abstractmethod
    def _frames(self, images: Tensor, layers: list[int]) -> Maps:
        """Maps of images ``[N, 3, H, W]``."""


def fit_clip(video: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """Fit a clip ``[B, 3, T, H, W]``, floating RGB in 0..1, to ``frames`` of ``size`` = (height, width).

    Frames are picked, or repeated, evenly; of a tubelet the middle one is picked. Sizes change by bicubic
    resampling with antialiasing, as in Unmasked Teacher.
    """
    count = video.shape[2]
    if frames != count:
        steps = 2 * torch.arange(frames, device=video.device) + 1
        video = video[:, :, steps * count // (2 * frames)]
    if tuple(video.shape[3:]) == size:
        return video
    images = video.transpose(1, 2).flatten(0, 1)
    images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return images.unflatten(0, (video.shape[0], frames)).transpose(1, 2)


def resample_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Feature maps ``[B, t, h0, w0, D]`` on another grid (h, w) in space, bilinear with antialiasing."""
    former = (maps.shape[2], maps.shape[3])
    if size == former:
        return maps
    # A product with few weights is faster than interpolating images of a thousand channels.
    weights = _space_weights(former, size, maps.device)
    return (weights.to(maps.dtype) @ maps.flatten(2, 3)).unflatten(2, size)


@lru_cache(maxsize=256)
def _space_weights(source: tuple[int, int], target: tuple[int, int], device: torch.device) -> Tensor:
    """The weight of each source pixel in each target pixel, ``[h * w, h0 * w0]``."""
    pixels = torch.eye(source[0] * source[1]).view(-1, 1, *source)
    return F.interpolate(pixels, size=target, mode="bilinear", antialias=True).flatten(1).t().to(device)


def tokens_of_maps(maps: Tensor, shape: TokenShape, kept: Tensor | None) -> Tensor:
    """Maps ``[B, t, h0, w0, D]`` at the kept tokens of a pool (None: all): ``[B, K, D]``."""
    tokens = resample_maps(maps, shape[1:]).flatten(1, 3)
    return tokens if kept is None else gather_tokens(tokens, kept)


def spread_layers(student_depth: int, teacher_depth: int, count: int) -> tuple[list[int], list[int]]:
    """Pair layers of a student with the layers of a teacher that they learn, both ascending.

    The student's layers are its last ones. The teacher's layers are spaced by the ratio of the depths, and
    the last layers form a pair. For 6 layers of 12 these are 23, 26, 29, 33, 36, 39 of 40, as in
    InternVideo2's distillation, or the last six of 12, as in UMT. No layer of the teacher is used twice.
    """
    count = min(count, student_depth, teacher_depth)
    steps = [i * max(teacher_depth, student_depth) // student_depth for i in range(count)]
    return (
        list(range(student_depth - count, student_depth)),
        [teacher_depth - 1 - step for step in reversed(steps)],
    )
