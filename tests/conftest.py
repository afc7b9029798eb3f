"""Small things that many tests need."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.utils.system import log_device
from fluxvit.video.writer import write_video

torch.set_num_threads(1)

# PyTorch logs several lines for each tensor that is saved, of which pytest keeps each for its report.
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)

_numbers = itertools.count()

# The same examples every time: a failure is one of the change at hand, and comes again.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def small_model(num_classes: int = 5) -> FluxViT:
    torch.manual_seed(0)
    return create_model(
        "fluxvit_nano",
        embed_dim=32,
        depth=2,
        pool_dim=16,
        pool_heads=2,
        budgets=(24, 12, 6),
        table_shape=(4, 4, 4),
        num_classes=num_classes,
    ).eval()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither believe nor write what the user's machine has measured."""
    cache = tmp_path_factory.getbasetemp() / f"cache-{next(_numbers)}"
    monkeypatch.setenv("FLUXVIT_CACHE", str(cache))


@pytest.fixture(autouse=True)
def _own_log() -> None:
    """Commands log the device once in a process, and show the log; each test begins anew."""
    log_device.cache_clear()
    log = logging.getLogger("fluxvit")
    log.setLevel(logging.NOTSET)
    log.handlers.clear()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random model with plans for two of its budgets."""
    made = Checkpoint(
        small_model(),
        labels=["a", "b", "c", "d", "e"],
        grids=[SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)],
        plans=[Plan(SamplingGrid(8, 24, 24), 24), Plan(SamplingGrid(8, 16, 32), 12)],
    )
    return made.save(tmp_path / "checkpoint")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A bright square that moves over noise, 20 frames of 64x48."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (20, 48, 64, 3), dtype=np.uint8)
    for t in range(20):
        frames[t, 16:32, 2 * t : 2 * t + 16] = 240
    path = tmp_path / "clip.mp4"
    write_video(path, frames, 10)
    return path
