"""A moving average of a model's weights."""

from __future__ import annotations

import copy

import torch

from fluxvit.models.fluxvit import FluxViT


class Ema:
    """Exponential moving average of parameters and buffers; what is evaluated and saved as the model.

    Args:
        model: Followed; the average starts at its weights.
        decay: Per step, such as 0.9999. While few steps have been taken it is (1 + step) / (10 + step), so
            that the average does not remember the initialisation.
    """

    def __init__(self, model: FluxViT, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay of the moving average is {decay}; it lies between 0 and 1")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: FluxViT, step: int) -> None:
        """Move towards ``model`` after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        theirs = model.state_dict()
        for name, ours in self.model.state_dict().items():
            if ours.is_floating_point():
                ours.lerp_(theirs[name].to(ours.dtype), 1 - decay)
            else:
                ours.copy_(theirs[name])
