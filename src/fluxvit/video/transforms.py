"""Resizing, cropping and normalising clips, the same for every frame of a clip.

A *clip* is a tensor ``[3, T, H, W]``, uint8 (0 to 255) or floating (0 to 1). Keep uint8 until `normalize`:
it is a quarter of the memory. Antialiased resizing of uint8 needs the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.utils.tensors import channel_values
from fluxvit.video.base import VideoReader

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A clip that is so many times longer along one side than its crop loses its ends before it is resized.
_MOST_STRETCHED = 8


def to_tensor(frames: np.ndarray | Tensor) -> Tensor:
    """View a reader's frames ``[T, H, W, 3]`` as a clip ``[3, T, H, W]`` of the same memory and dtype.

    Raises:
        ValueError: The shape is not ``[T, H, W, 3]``, or the dtype is neither uint8 nor floating.
    """
    video = torch.as_tensor(frames)
    if video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"frames must be [T, H, W, 3], got {list(video.shape)}")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise ValueError(f"frames must be uint8 or floating, got {video.dtype}")
    return video.permute(3, 0, 1, 2)


def resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a clip to ``size`` = (height, width), bilinear with antialiasing; dtype is kept.

    Raises:
        ValueError: ``size`` is not positive, or ``video`` is not a clip.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height}x{width}: sides must be at least 1 pixel")
    if _size(video) == size:
        return video
    images = F.interpolate(video.transpose(0, 1), size=size, mode="bilinear", antialias=True)
    return images.transpose(0, 1)


def center_crop(video: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (height, width) of a clip, a view.

    Raises:
        ValueError: The clip is smaller than ``size``.
    """
    _check_fits(video, size)
    (height, width), (crop_height, crop_width) = _size(video), size
    return _crop(video, (height - crop_height) // 2, (width - crop_width) // 2, size)


def resize_and_crop(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a clip, keeping its aspect, until ``size`` = (height, width) just fits, and cut the middle out.

    If a clip is more than eight times too long along one side, its ends are cut off before it is resized:
    frames one pixel high would take gigabytes.

    Raises:
        ValueError: See `resize`.
    """
    if min(size) >= 1:
        video = center_crop(video, _not_too_stretched(_size(video), size))
    return center_crop(resize_to_fit(video, size), size)


def crop_box(frame: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a frame of (height, width) that `resize_and_crop` to ``size`` keeps.

    Returns:
        Top, left, bottom and right, from 0 to 1 of the frame.
    """
    middle = _not_too_stretched(frame, size)
    box = []
    for whole, side, fitted, length in zip(frame, middle, _fitted(middle, size), size, strict=True):
        first = (whole - side) // 2 + (fitted - length) // 2 / fitted * side
        box.append((first / whole, (first + length / fitted * side) / whole))
    (top, bottom), (left, right) = box
    return top, left, bottom, right


def resize_to_fit(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a clip, keeping its aspect, until ``size`` = (height, width) just fits into it.

    Raises:
        ValueError: See `resize`.
    """
    return resize(video, _fitted(_size(video), size))


def crop_views(video: Tensor, size: tuple[int, int], views: int = 3) -> Tensor:
    """Crops spread evenly along the side that has more room for them, and central across it.

    Three views are left, centre, right or top, middle, bottom. One view is the centre.

    Args:
        size: (height, width) of a crop.

    Returns:
        ``[views, 3, T, height, width]``.

    Raises:
        ValueError: The clip is smaller than ``size``, or ``views`` is below 1.
    """
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    _check_fits(video, size)
    height, width = _size(video)
    down, across = height - size[0], width - size[1]
    crops = []
    for view in range(views):
        part = 0.5 if views == 1 else view / (views - 1)
        top = int(down * (part if down > across else 0.5))
        left = int(across * (0.5 if down > across else part))
        crops.append(_crop(video, top, left, size))
    return torch.stack(crops)


def random_resized_crop(
    video: Tensor,
    size: tuple[int, int],
    generator: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut a random box out of a clip and resize it to ``size`` = (height, width).

    Args:
        scale, ratio: Ranges of area and aspect; see :func:`random_box`.

    Raises:
        ValueError: A range is empty or not positive, or ``size`` is not positive.
    """
    top, left, height, width = random_box(_size(video), generator, scale, ratio)
    return resize(_crop(video, top, left, (height, width)), size)


def random_box(
    frame: tuple[int, int],
    generator: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draw a box in a frame of (height, width) pixels. A box that is larger than the frame is cut.

    Args:
        area: Range of the box's area as a fraction of the frame's; the draw is uniform.
        aspect: Range of the box's width over its height; the draw is uniform in the logarithm.

    Returns:
        Top, left, height and width in pixels.

    Raises:
        ValueError: A range is empty or not positive, or ``area`` exceeds 1.
    """
    if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"need 0 < low <= high, and area at most 1; got area={area}, aspect={aspect}")
    height, width = frame
    pixels = height * width * generator.uniform(*area)
    ratio = math.exp(generator.uniform(math.log(aspect[0]), math.log(aspect[1])))
    box_height = min(height, max(1, round(math.sqrt(pixels / ratio))))
    box_width = min(width, max(1, round(math.sqrt(pixels * ratio))))
    top = int(generator.integers(height - box_height, endpoint=True))
    left = int(generator.integers(width - box_width, endpoint=True))
    return top, left, box_height, box_width


def horizontal_flip(video: Tensor) -> Tensor:
    """Mirror a clip left to right. Do not use it where labels tell left from right."""
    return video.flip(-1)


def normalize(
    video: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Compute ``(video - mean) / std`` per channel, float32; uint8 is scaled to 0..1 first. Batches work too.

    Raises:
        ValueError: ``mean`` and ``std`` are not three numbers each, ``std`` is not positive, or ``video`` is
            not ``[..., 3, T, H, W]``.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three numbers each, std above 0; got {mean} and {std}")
    if video.ndim < 4 or video.shape[-4] != 3:
        raise ValueError(f"clips must be [..., 3, T, H, W], got {list(video.shape)}")
    unit = 255.0 if video.dtype == torch.uint8 else 1.0
    # One multiply and one add over the clip: (x / unit - mean) / std = x * gain + bias.
    gain = channel_values(tuple(1 / (unit * s) for s in std), video.device)
    bias = channel_values(tuple(-m / s for m, s in zip(mean, std, strict=True)), video.device)
    return torch.addcmul(bias, video.contiguous().to(torch.float32), gain)


def read_clips(
    reader: VideoReader, requests: Sequence[tuple[np.ndarray, tuple[int, int] | None]]
) -> list[np.ndarray]:
    """Read several clips of a video at once, each resized and cropped as by `resize_and_crop`.

    The pixels are those of ``resize_and_crop(to_tensor(reader.read(times)), size)``, but frames are resized
    one by one, so that only one is held at its own size, and frames of several clips are decoded once.

    Args:
        requests: For each clip, seconds ``[T]`` in any order and (height, width); None keeps the frames' own
            size.

    Returns:
        For each request, uint8 RGB ``[T, height, width, 3]``.

    Raises:
        ValueError: A size is not positive, or times are missing or not finite.
        VideoError: Nothing can be decoded.
    """
    moments = np.unique(np.concatenate([times for times, _ in requests]))
    clips: list[dict[float, np.ndarray]] = [{} for _ in requests]
    for moment, image in zip(moments, reader.walk(moments), strict=True):
        video = to_tensor(np.ascontiguousarray(image)[None])
        for clip, (times, size) in zip(clips, requests, strict=True):
            if moment in times:
                fitted = video if size is None else resize_and_crop(video, size)
                clip[moment] = fitted[:, 0].permute(1, 2, 0).contiguous().numpy()
    return [
        np.stack([clip[moment] for moment in times]) for clip, (times, _) in zip(clips, requests, strict=True)
    ]


def _size(video: Tensor) -> tuple[int, int]:
    """Height and width of a clip."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"a clip must be [3, T, H, W], got {list(video.shape)}; see to_tensor")
    return video.shape[-2], video.shape[-1]


def _not_too_stretched(frame: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size of the middle that is left of a frame if it is much longer along one side than ``size``."""
    (height, width), (crop_height, crop_width) = frame, size
    return (
        min(height, math.ceil(_MOST_STRETCHED * width * crop_height / crop_width)),
        min(width, math.ceil(_MOST_STRETCHED * height * crop_width / crop_height)),
    )


def _fitted(frame: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size to which a frame is resized so that ``size`` just fits into it."""
    height, width = frame
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def _crop(video: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    return video[..., top : top + size[0], left : left + size[1]]


def _check_fits(video: Tensor, size: tuple[int, int]) -> None:
    height, width = _size(video)
    if not 1 <= size[0] <= height or not 1 <= size[1] <= width:
        raise ValueError(f"cannot cut {size[0]}x{size[1]} out of a {height}x{width} clip; resize it first")
