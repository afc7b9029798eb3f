"""Videos whose brightness tells the time, for tests of windows and of search."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.writer import write_video

GRID = SamplingGrid(4, 16, 16)
FPS = 10


def shades(path: Path, seconds: float, hue: int = 0, seed: int = 0) -> Path:
    """A video whose blue grows with time, over a little noise; ``hue`` 0 or 1 makes two kinds of shots."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(round(seconds * FPS)):
        frame = rng.integers(0, 20, (24, 32, 3), dtype=np.uint8)
        frame[..., hue] += 130
        frame[..., 2] += np.uint8(40 * i / (seconds * FPS))
        frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, FPS, crf=5)
    return path
