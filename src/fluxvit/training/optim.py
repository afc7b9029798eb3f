"""Optimiser groups and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: Set[str]) -> list[dict[str, Any]]:
    """Two groups: matrices decay; vectors (norms, biases, per-channel affines) and ``no_decay`` do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name in no_decay else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def cosine_schedule(step: int, steps: int, warmup: int, floor: float) -> float:
    """Learning-rate factor of a step: a linear warm-up to 1, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
