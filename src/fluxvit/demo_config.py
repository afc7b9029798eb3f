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

    An interrupted demo goes on where it stopped.

    Args:
        out: Folder of everything that the demo writes.
        videos: Training videos.
        val: Validation videos, on which the sampling grids are chosen.
        test: Test videos.
        epochs: Epochs of training, for the model and again for the one it is compared with.
        minutes: Minutes that the demo may take. The speed of training is measured, and if all epochs would
            take longer, fewer are trained, but at least 30 %. 0 means no limit. ``bash run demo`` includes
            the time of the set-up.
        seed: Seed of data, initialisation and order.
        workers: Processes that make videos. By default there is one per core.
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
