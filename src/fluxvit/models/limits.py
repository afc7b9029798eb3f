"""What a network refuses: more memory than there is, too large pools, and budgets that are no tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import max_pool
from fluxvit.models.config import FluxViTConfig
from fluxvit.utils.system import memory_bytes


def check_memory(config: FluxViTConfig) -> None:
    """Raise a ValueError for a network that the memory of the CPU cannot hold: the system would kill the
    process.
    """
    memory = memory_bytes()
    needed = config.parameters * torch.get_default_dtype().itemsize
    if memory is not None and needed > memory and torch.empty(0).device.type == "cpu":
        raise ValueError(
            f"a network of {config.parameters:.3g} parameters needs {needed / 1e9:.0f} GB of memory, and "
            f"this machine has {memory / 1e9:.0f} GB; see embed_dim, depth, table_shape and num_classes"
        )


def check_pool(config: FluxViTConfig, video: Tensor) -> None:
    """Raise a ValueError if the pool of these clips is larger than a process may allocate."""
    frames, height, width = video.shape[-3:] if video.ndim == 5 else (0, 0, 0)
    pool = (frames // config.tubelet_size) * (height // config.patch_size) * (width // config.patch_size)
    if pool > (most := max_pool()):
        raise ValueError(
            f"clips of {frames} frames of {height}x{width}: their pool has {pool} tokens, more than "
            f"the limit of {most}; use fewer frames or a smaller size, or set FLUXVIT_MAX_POOL={pool}"
        )


def token_budget(budget: Any) -> int:
    """A budget as a number of tokens.

    Raises:
        ValueError: It is not a positive integer, or has another unit.
    """
    if type(budget) is int and 1 <= budget < 1 << 40:
        return budget
    tokens = Budget.of(budget).tokens
    if tokens is None:
        raise ValueError(f"budget {budget}: a model takes tokens; fluxvit.Predictor takes every unit")
    return tokens
