"""Options of ``fluxvit demo``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from fluxvit.utils.options import DeviceOptions
from fluxvit.utils.schema import Seed, check

BATCH = 32
"""Clips of a training batch, so the least number of training videos."""
_MOST_VIDEOS = 10_000_000


@dataclass(frozen=True)
class DemoConfig(DeviceOptions):
    """Make a small data set of videos, train a model with three token budgets on it, evaluate it, and report.

    An interrupted demo continues where it stopped.

    Args:
        out: Folder for the data set, checkpoints, logs and report.
        videos: Number of training videos.
        val: Number of validation videos, on which the sampling grids are chosen.
        test: Number of test videos.
        epochs: Passes over the training videos, both for the model and for the fixed-grid model that it is
            compared with.
        minutes: Time limit in minutes. The training speed is measured, and if the demo would take longer,
            fewer epochs are trained, but at least 30 % of them. 0 means no limit. ``bash run demo`` also
            counts the time of the set-up.
        seed: Seed of the videos, the initial weights and the order of the clips.
        workers: Number of processes that make videos. By default there is one per CPU core.
    """

    out: str = "runs/demo"
    videos: Annotated[int, Meta(ge=BATCH, le=_MOST_VIDEOS)] = 2400
    val: Annotated[int, Meta(ge=1, le=_MOST_VIDEOS)] = 240
    test: Annotated[int, Meta(ge=1, le=_MOST_VIDEOS)] = 400
    epochs: Annotated[float, Meta(gt=0, le=1e6)] = 13.0
    minutes: Annotated[float, Meta(ge=0, le=1e6)] = 15.0
    seed: Seed = 0
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None

    def __post_init__(self) -> None:
        check(self)
