"""Optimisers, their groups, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.tasks.base import Task

_OUTPUTS = re.compile(r"model\.(heads\.\d+\.fc|aligners)\.")


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
    return {name: layers.index(found) for name, found in orders.items()}


def parameter_groups(task: Task, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of a task's parameters for AdamW or `Muon`.

    Vectors (norms, biases, per-channel affines), positions and the class token do not decay. With
    ``layer_decay`` below 1 each layer of the model learns that much slower than the one above it (0.75 in
    table 15 of the paper); every group has its factor under ``lr_scale``. What is trained beside the model
    learns like its heads. ``hidden`` says whether a group holds matrices between features: not vectors,
    positions, classifiers or aligners.
    """
    layers = {f"model.{name}": layer for name, layer in layer_numbers(task.model).items()}
    top, exempt = max(layers.values()), task.no_weight_decay()
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            rate = task.lr_scale(name) * layer_decay ** (top - layers.get(name, top))
            decays = parameter.ndim > 1 and name not in exempt
            hidden = decays and parameter.ndim == 2 and not _OUTPUTS.match(name)
            groups.setdefault((rate, decays, hidden), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": rate,
            "hidden": hidden,
        }
        for (rate, decays, hidden), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


class Muon(torch.optim.AdamW):
    """Muon for groups that are ``hidden``, AdamW for the others (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).

    The momentum of a matrix is brought near to the closest one with orthogonal rows or columns before it is
    taken as a step: all directions are learned as fast, not only those of large gradients. Steps are as long
    as AdamW's usually are (Liu et al. 2025, arXiv 2502.16982), so that its learning rates and decays hold.
    """

    momentum = 0.95

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; of the groups' ``lr``, ``weight_decay`` and gradients as they are."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["hidden"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["hidden"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike.setdefault(tuple(parameter.shape), []).append(parameter)
        for shape, parameters in alike.items():
            updates = []
            for parameter in parameters:
                gradient, state = parameter.grad, self.state[parameter]
                assert gradient is not None
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - self.momentum)
                updates.append(gradient.lerp(state["momentum"], self.momentum))
            rate = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, update in zip(parameters, orthogonalize(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices ``[N, R, C]`` with singular values near 1 (about 0.7 to 1.2) and the singular vectors of those
    given; five of Jordan's quintic Newton-Schulz iterations.
    """
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def cosine_schedule(step: int, steps: int, warmup: int, floor: float) -> float:
    """Learning-rate factor of a step: a linear warm-up to 1, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
