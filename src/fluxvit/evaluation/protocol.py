"""How figures came about: what a result file must say for anybody to get the same again."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fluxvit import __version__
from fluxvit.flux.plan import Plan
from fluxvit.models.config import FluxViTConfig


def _today() -> str:
    return time.strftime("%Y-%m-%d")


@dataclass(frozen=True)
class Protocol:
    """Everything that figures depend on but for the plans.

    Args:
        data_digest: Digest of the manifest.
        manifest: Its file.
        clips: Videos that count, unreadable ones too.
        views: Times x crops of each.
        sampling: How moments are chosen.
        resize: How the grid is cut out of frames.
        weights_digest: Digest of weights, architecture and normalisation.
        seed: Seed of selectors that draw at random.
        precision: ``fp32`` or ``bf16``.
        device: What it ran on.
        fluxvit, torch, python: Versions.
        date: Day of the evaluation.
    """

    data_digest: str
    manifest: str
    clips: int
    views: str
    sampling: str
    resize: str
    weights_digest: str
    seed: int
    precision: str
    device: str
    fluxvit: str = __version__
    torch: str = torch.__version__
    python: str = field(default_factory=platform.python_version)
    date: str = field(default_factory=_today)

    @property
    def facts(self) -> dict[str, str | int]:
        """What predictions depend on, whatever the file is called and the day is."""
        facts = asdict(self)
        del facts["date"], facts["manifest"]
        return facts

    def flat(self, plans: Sequence[Plan], config: FluxViTConfig) -> dict[str, str | int]:
        """All of it as one row for a result file, with the plans' settings listed in their order.

        Args:
            config: The network, for pools and the heads that are read.
        """
        pools = [config.pool(plan.grid) for plan in plans]
        columns: dict[str, list[Any]] = {
            "grid": [str(plan.grid) for plan in plans],
            "pool": pools,
            "keep": [plan.keep for plan in plans],
            "head": [head_of(plan, config) for plan in plans],
            "selector": [plan.selector for plan in plans],
        }
        return asdict(self) | {name: ", ".join(map(str, column)) for name, column in columns.items()}


def head_of(plan: Plan, config: FluxViTConfig) -> int:
    """The head that a plan reads."""
    return config.nearest_head(plan.keep) if plan.head is None else plan.head
