"""Clips of videos in the forms in which libraries of Hugging Face hand them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.transforms import read_clips, to_tensor


def read_clip(
    video: Any, grid: SamplingGrid | Callable[[float], SamplingGrid], sampling: ClipSampling
) -> Tensor:
    """Read a clip, uint8 ``[3, T, height, width]``, as :class:`~fluxvit.Predictor` does.

    Args:
        video: A video that :func:`~fluxvit.video.reader.open_video` accepts; frames ``[T, 3, H, W]``; an
            undecoded video of datasets, ``{"path": ..., "bytes": ...}``; or one of sentence-transformers,
            ``{"array": frames, "video_metadata": {"fps": ...}}``.
        grid: Sampling grid of the clip, or a function that returns it for the ratio of width to height.
        sampling: How its frames are spread over the video.

    Raises:
        VideoError: The video cannot be read.
        ValueError: The video has none of these forms.
    """
    fps = None
    if isinstance(video, Mapping) and "array" in video:
        fps = (video.get("video_metadata") or {}).get("fps")
        video = video["array"]
    elif isinstance(video, Mapping) and video.keys() == {"path", "bytes"}:
        video = video["path"] if video["bytes"] is None else video["bytes"]
    shape = tuple(getattr(video, "shape", ()))
    if len(shape) == 4 and shape[1] == 3 != shape[3]:
        video = torch.as_tensor(video).movedim(1, 3)
    with open_video(video, fps=fps) as reader:
        if not isinstance(grid, SamplingGrid):
            grid = grid(reader.info.width / reader.info.height)
        times = sampling.times(0, reader.end, grid.frames, reader.fps)
        (frames,) = read_clips(reader, [(times, (grid.height, grid.width))])
    return to_tensor(frames)
