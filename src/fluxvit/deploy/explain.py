"""Shows which tokens of a clip were kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fluxvit.deploy.predictor import Prediction
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import read_clips
from fluxvit.video.writer import write_video

_DIM = 0.22  # Brightness of dropped patches: clearly darker, but still recognisable.
_EDGE = np.array([255, 214, 10], np.float32)  # Outline of the kept region.


def kept_mask(kept: np.ndarray | None, token_shape: tuple[int, int, int], tubelet_size: int) -> np.ndarray:
    """Which patches of each frame were kept, bool ``[T, h, w]``; ``token_shape`` is (T / tubelet, h, w)."""
    mask = np.zeros(token_shape, bool)
    mask.reshape(-1)[slice(None) if kept is None else kept] = True
    return mask.repeat(tubelet_size, axis=0)


def dim_dropped(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Frames with dropped patches dim and grey, and an outline around the kept ones.

    Args:
        frames: uint8 ``[T, H, W, 3]``, H and W multiples of the mask's h and w.
        mask: bool ``[T, h, w]``.

    Returns:
        uint8 ``[T, H, W, 3]``.
    """
    _, height, width, _ = frames.shape
    down, across = height // mask.shape[1], width // mask.shape[2]
    kept = mask.repeat(down, axis=1).repeat(across, axis=2)
    picture = frames.astype(np.float32)
    grey = picture.mean(-1, keepdims=True) * _DIM
    picture = np.where(kept[..., None], picture, grey)
    edge = np.zeros_like(kept)
    line = max(1, min(down, across) // 12)
    for shift in range(1, line + 1):
        for axis in (1, 2):
            for step in (shift, -shift):
                edge |= kept & ~_shifted(kept, step, axis)
    picture[edge] = _EDGE
    return picture.astype(np.uint8)


def _shifted(mask: np.ndarray, step: int, axis: int) -> np.ndarray:
    """The mask moved by ``step`` pixels. The border counts as kept, so that it gets no outline."""
    moved = np.roll(mask, step, axis)
    border = [slice(None)] * mask.ndim
    border[axis] = slice(0, step) if step > 0 else slice(step, None)
    moved[tuple(border)] = True
    return moved


def shown_frames(
    prediction: Prediction,
    min_height: int = 336,
    *,
    video: VideoInput | None = None,
    fps: float | None = None,
) -> np.ndarray:
    """The sampled frames, read again and cropped as the network saw them, but larger.

    Args:
        min_height: Smallest height of a frame in pixels.
        video: The video, if it was given to the predictor in memory, with its ``fps``.

    Returns:
        uint8 ``[T, H, W, 3]``; H and W are a multiple of the grid's.

    Raises:
        VideoError: The video cannot be read again.
        ValueError: The video was given in memory, and ``video`` is not given.
    """
    grid = prediction.plan.grid
    zoom = -(-min_height // grid.height)
    source = prediction.path if video is None else video
    if source is None:
        raise ValueError("the predicted video was given in memory; give it again, as video=...")
    with open_video(source, fps=fps) as reader:
        (frames,) = read_clips(reader, [(prediction.times, (grid.height * zoom, grid.width * zoom))])
    return frames


def explain(prediction: Prediction, patch_size: int, tubelet_size: int) -> np.ndarray:
    """The sampled frames, and beside them the same with dropped patches dimmed.

    Returns:
        uint8 ``[T, H, 2 W + gap, 3]``.
    """
    frames = shown_frames(prediction)
    _, height, width = prediction.plan.grid.token_shape(patch_size, tubelet_size)
    shape = len(prediction.times) // tubelet_size, height, width
    mask = kept_mask(prediction.kept, shape, tubelet_size)
    gap = np.full((*frames.shape[:2], 2 * (1 + frames.shape[2] // 80), 3), 255, np.uint8)
    return np.concatenate([frames, gap, dim_dropped(frames, mask)], axis=2)


def write_explanation(path: str | Path, prediction: Prediction, patch_size: int, tubelet_size: int) -> None:
    """Write :func:`explain` as a video at the pace of the clip, or at two frames a second if that is slower.

    Raises:
        ValueError: The suffix of the file names no known container.
    """
    fps = min(60.0, max(2.0, prediction.fps))
    write_video(path, explain(prediction, patch_size, tubelet_size), fps, gop=1, crf=18)
