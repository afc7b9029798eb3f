"""Optimisers, their groups, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.config import TrainConfig
from fluxvit.training.tasks.base import Task


def layer_numbers(model: FluxViT) -> dict[str, int]:
    """The layer of each parameter, from 0, in the order of the model's ``group_matcher``."""
    patterns = list(model.group_matcher().values())

    def order(name: str) -> tuple[int, ...]:
        for number, pattern in enumerate(patterns):
            if match := re.match(pattern, name):
                return number, *map(int, match.groups())
        return (len(patterns),)

    orders = {name: order(name) for name, _ in model.named_parameters()}
    layers = sorted(set(orders.values()))
    return {name: layers.index(position) for name, position in orders.items()}


def parameter_groups(task: Task, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of a task's trained parameters for AdamW.

    Vectors (norms, biases, per-channel affines), positions and the class token do not decay. With
    ``layer_decay`` below 1 each layer of the model learns that much slower than the one above it (0.75 in the
    authors' script); ``lr_scale`` of a group is its factor. What is trained beside the model learns like its
    heads.
    """
    layers = {f"model.{name}": layer for name, layer in layer_numbers(task.model).items()}
    top, exempt = max(layers.values()), task.no_weight_decay()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            rate = task.lr_scale(name) * layer_decay ** (top - layers.get(name, top))
            decay = weight_decay if parameter.ndim > 1 and name not in exempt else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": rate}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(task: Task, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW of a task's trained parameters, which it updates in one pass over each.

    If its attribute ``found_inf`` is a tensor of value 1, a step changes nothing, and the host does not wait
    for that value. (PyTorch's gradient scaler uses it likewise. MPS ignores it.)
    """
    groups = parameter_groups(task, config.weight_decay, config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def cosine_schedule(step: int, steps: int, warmup: int, floor: float) -> float:
    """Learning-rate factor of a step: a linear warm-up to 1, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
