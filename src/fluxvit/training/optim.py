"""Optimiser groups and learning-rate schedule."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from fluxvit.models.fluxvit import FluxViT


def layer_of(name: str, depth: int) -> int:
    """Depth of a parameter: 0 for the stem, 1 to ``depth`` for the blocks, ``depth + 1`` for what follows."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else depth + 1


def parameter_groups(
    model: FluxViT, weight_decay: float, layer_decay: float = 1.0, task: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Groups for AdamW.

    Vectors (norms, biases, per-channel affines), positions and the class token do not decay. With
    ``layer_decay`` below 1 each layer learns that much slower than the one above (table 15's 0.75 is the
    release's); every group has its factor under ``lr_scale``. What a ``task`` trains beside the model learns
    like the heads.
    """
    depth, top = len(model.blocks), len(model.blocks) + 1
    named = [
        (name, parameter, layer_of(name, depth) if layer_decay != 1 else top, model.no_weight_decay())
        for name, parameter in model.named_parameters()
    ]
    if task is not None:
        exempt = task.no_weight_decay()  # type: ignore[operator]
        named += [(name, parameter, top, exempt) for name, parameter in task.named_parameters()]
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter, layer, exempt in named:
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in exempt
            groups.setdefault((layer, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (top - layer),
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def cosine_schedule(step: int, steps: int, warmup: int, floor: float) -> float:
    """Learning-rate factor of a step: a linear warm-up to 1, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
